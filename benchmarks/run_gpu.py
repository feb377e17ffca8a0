"""The reproduction on one GPU: `python -m benchmarks.run_gpu KIND STEPS FILE...`.

Scratch takes STEPS, 30,000 as shipped; every other method keeps its share of them. The text is read byte by byte.
"""

import sys
from collections.abc import Sequence
from time import perf_counter

from apollo_cli import files
from benchmarks import render_gpu
from benchmarks.bare_trainer import FixedDepth, make_trainer
from benchmarks.campaign import Campaign, text_words
from benchmarks.cells import SEARCH_PATH
from benchmarks.gpu_cells import NAME, gpu_cells

AT_ONCE = 3  # they fill each other's gaps: start, compilation, evaluation; a step's seconds are measured alone
DEPTHS = (3, 6, 12)
TIMED = 40  # steps


def main(kind: str, steps: str, *texts: str) -> None:
    """Trains the missing cells, times steps and writes the report."""
    campaign = Campaign(NAME, words(int(steps), texts))
    command = " ".join(["python -m benchmarks.run_gpu", kind, steps, *texts])
    campaign.run_all(campaign.missing(gpu_cells(kind, int(steps))), campaign.train, AT_ONCE, command)
    seconds = {str(depth): step_seconds(kind, campaign, depth) for depth in DEPTHS}
    files.write_json(campaign.folder / f"{kind}_seconds.json", seconds)
    render_gpu.write()
    campaign.save()


def words(steps: int, texts: Sequence[str]) -> tuple[str, ...]:
    """Overrides of all cells."""
    data = (*text_words(texts), "data.tokenizer=bytes", "data.seq_len=256")
    return (*data, f"eval.every={max(1, steps // 60)}", f"checkpoint.every={max(1, steps // 4)}")


def step_seconds(kind: str, campaign: Campaign, depth: int) -> float:
    """Seconds of a step with so many layers stored and run, without other runs beside it."""
    overrides = [SEARCH_PATH, "experiment=repro_gpu_scratch", f"model={kind}", *campaign.words, "device=cuda"]
    trainer = make_trainer(overrides, depth, FixedDepth(depth))
    for _ in range(2):  # the first time warms up
        trainer.device.synchronize()
        began = perf_counter()
        for _ in range(TIMED):
            trainer.step()
        trainer.sync_pending_steps()
        trainer.device.synchronize()
    return (perf_counter() - began) / TIMED


if __name__ == "__main__":
    main(*sys.argv[1:])
