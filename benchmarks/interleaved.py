"""Whole runs timed in turns, some steps of each after some of the others, so that load changes hit all alike."""

import json
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.gate import GatedProgram

THINNED = 20  # long runs are timed in a twentieth of their steps
_TURN = 10  # steps of the shortest run; the first one of a turn finds the caches full of another run


def run_in_turns(words: dict[str, list[str]], steps: dict[str, int]) -> dict[str, dict[str, float]]:
    """FLOPs and training seconds of each run.

    Args:
        words: overrides of `apollo-train` by the name of a run.
        steps: its length by the same names.
    """
    folders, programs = {}, {}
    for name in words:
        folders[name] = Path(mkdtemp()) / "run"
        length = ["budget.flops=null", f"budget.steps={steps[name]}", f"hydra.run.dir={folders[name]}"]
        programs[name] = GatedProgram(["-m", "benchmarks.gated_training", *words[name], *length])
    turns = max(1, min(steps.values()) // _TURN)
    for turn in range(turns):
        for name in list(programs)[:: 1 if turn % 2 else -1]:
            first, end = (steps[name] * t // turns for t in (turn, turn + 1))
            programs[name].run(end - first, ends=end == steps[name])
    spent = {}
    for name, folder in folders.items():
        programs[name].close()
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        spent[name] = {"flops": last["flops"], "train_seconds": last["train_seconds"]}
    return spent
