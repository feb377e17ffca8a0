"""GLUE of the reproduction's BERT models: scratch beside StackBERT beside Apollo beside the headline's method.

`python -m benchmarks.glue GLUE_DIR` fine-tunes them on the tasks of GROUPS, from a folder with the original files.
It says how long that takes before it starts. A model whose weights are not in outputs/reproduction is trained anew.
Results are kept beside the rows of each cell, in benchmarks/reproduction/pydocs/CELL/glue; what is done, here or
elsewhere, is not done again, and an interrupted run is resumed. Without words the table alone is made anew.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from apollo_cli import files
from apollo_cli.glue.results import averages
from apollo_cli.glue.tasks import TASKS
from apollo_cli.report import glue_scores
from benchmarks import results
from benchmarks.reproduce import DEFAULT, RATES, SEEDS, TUNED, Cell, Corpus, clock

FINE_TUNING_SEEDS = (0,)  # of each model; the models have seeds of their own
EPOCHS, BATCH = 3, 32
PRECISION = "precision=fp32"  # on a GPU, too: models of several machines are compared
CORPUS = Corpus(DEFAULT, (PRECISION,))
_AT_WORK: defaultdict[Cell, Lock] = defaultdict(Lock)  # a model is fine-tuned on one part at a time


@dataclass(frozen=True)
class Group:
    """Tasks, and the learning rates of which the best one counts."""

    tasks: tuple[str, ...]
    rates: tuple[str, ...]


GROUPS = (
    Group(("cola", "mrpc", "stsb", "rte", "wnli"), ("1e-4", "3e-4", "1e-3")),  # for a width of 64
    Group(("sst2",), ("3e-4",)),  # has three times the rows of all others, and one rate takes as long as theirs
)


def models(seed: int) -> dict[str, Cell]:
    """What is compared, by its name in the table; scratch also with the FLOPs of `apollo_late`."""
    rate = TUNED["bert", "scratch"]
    return {
        "scratch": Cell("bert", "scratch", rate, seed),
        "scratch, 2000 steps": Cell("bert", "scratch", rate, seed, steps=2000),
        "stackbert": Cell("bert", "stackbert", TUNED["bert", "stackbert"], seed),
        "apollo_late": Cell("bert", "apollo_late", TUNED["bert", "apollo_late"], seed),
        "late_zero_init": Cell("bert", "late_zero_init", TUNED["bert", "late_zero_init"], seed),
    }


@dataclass(frozen=True)
class Unit:
    """A group of tasks of a model."""

    cell: Cell
    group: Group

    @property
    def missing(self) -> tuple[str, ...]:
        """The tasks that are not kept yet, with every rate."""
        there, rates = kept(self.cell).get("tasks", {}), sorted(map(float, self.group.rates))
        return tuple(name for name in self.group.tasks if name not in there or there[name]["rates"] != rates)


def units() -> list[Unit]:
    """All, in the order in which they are wanted."""
    return [Unit(cell, group) for group in GROUPS for seed in SEEDS for cell in models(seed).values()]


def kept(cell: Cell) -> dict[str, Any]:
    """The results of a cell; empty where there are none."""
    path = CORPUS.kept(cell) / glue_scores.FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(cell: Cell, folder: Path) -> None:
    """Adds the results of a run directory to those that are kept.

    Raises:
        RuntimeError: those are of other weights, or these are of other learning rates than the table says.
    """
    found = json.loads((folder / glue_scores.FILE).read_text(encoding="utf-8"))
    before = kept(cell)
    if before and before["pretrained"]["weights"] != found["pretrained"]["weights"]:
        path = CORPUS.kept(cell) / glue_scores.FILE
        raise RuntimeError(f"{path} is of other weights than {folder}: remove it, and all tasks are done again")
    found["pretrained"].pop("run_dir", None)  # where it was on this machine
    rates = {name: set(map(float, group.rates)) for group in GROUPS for name in group.tasks}
    found["tasks"] = {name: task for name, task in found["tasks"].items() if name in rates}
    for name, task in found["tasks"].items():
        if others := set(task["rates"]) - rates[name]:
            raise RuntimeError(f"{folder}: {name} was fine-tuned at {sorted(others)}, too; remove those runs")
    tasks = {**before.get("tasks", {}), **found["tasks"]}
    found["tasks"] = {name: tasks[name] for name in TASKS if name in tasks}
    found["average"] = averages(found["tasks"])
    path = CORPUS.kept(cell) / glue_scores.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, found)


def fine_tune(data_dir: Path, unit: Unit, threads: int) -> None:
    """Fine-tunes the model of a unit on what is missing, and keeps the results."""
    with _AT_WORK[unit.cell]:
        _fine_tune(data_dir, unit, threads)


def _fine_tune(data_dir: Path, unit: Unit, threads: int) -> None:
    folder = CORPUS.trained(unit.cell, threads)
    words = (
        f"run={folder}",
        f"task={','.join(unit.missing)}",
        f"glue.data_dir={data_dir}",
        f"optim.lr={','.join(unit.group.rates)}",
        f"seed={','.join(map(str, FINE_TUNING_SEEDS))}",
        f"glue.epochs={EPOCHS}",
        f"batch.size={BATCH}",
        PRECISION,
        "log.every=200",
        "tracking=local",
    )
    CORPUS.run("apollo_cli.glue.command", words, folder.with_name(f"{unit.cell.name}_glue.log"), threads)
    keep(unit.cell, folder)
    tasks = kept(unit.cell)["tasks"]
    scores = ", ".join(f"{name} {100 * tasks[name]['mean']:.1f}" for name in unit.group.tasks)
    print(f"{unit.cell.name}: {scores}", flush=True)


def main(words: Sequence[str]) -> None:
    """Fine-tunes what is missing, and writes the table of what is there."""
    from benchmarks import glue_table

    missing = [unit for unit in units() if unit.missing]
    at_once = max(1, min(os.cpu_count() or 1, len(missing)))
    how = f"{at_once} at once" if words else "which needs GLUE_DIR: the table alone is made"
    print(f"{len(units())} parts, {len(missing)} to do, {how}", flush=True)
    if words and missing:
        data_dir = Path(words[0]).resolve()
        print(f"about {clock(_seconds(missing) / at_once)}; every part that is done is kept", flush=True)
        CORPUS.each(missing, lambda unit, threads: fine_tune(data_dir, unit, threads), at_once, "the same command")
    results.put("GLUE of the reproduction's models", glue_table.lines())


def _seconds(missing: Sequence[Unit]) -> float:
    """From a pretraining micro-step timed here and now, which has rows as long as the longest ones of GLUE."""
    import torch

    from apollo_cli.config.config import parse
    from apollo_cli.config.hydra_syntax import compose_values
    from apollo_cli.training.calibration import seconds_by_depth
    from apollo_cli.training.device import choose
    from apollo_cli.training.planning import make_plan, make_task

    torch.set_num_threads(1)
    config = parse(compose_values(list(Cell("bert", "scratch", RATES["bert"][0], 0).words)))
    step = seconds_by_depth(config, choose(config.run), make_task(config))(config.model.layers)
    rows = sum(TASKS[name].splits.train.rows * len(unit.group.rates) for unit in missing for name in unit.missing)
    fine_tuning = rows / BATCH * EPOCHS * len(FINE_TUNING_SEEDS)
    steps = make_plan(config, choose(config.run)).steps
    untrained = {unit.cell for unit in missing if not (CORPUS.folder(unit.cell) / "model").is_dir()}
    return step * (fine_tuning + steps * len(untrained))


if __name__ == "__main__":
    main(sys.argv[1:])
