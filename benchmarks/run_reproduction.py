"""`make reproduce`: what growth saves, from nothing.

Each cell is a run of `apollo-train` with a preset of benchmarks/conf. It is trained in outputs/reproduction, an
interrupted one is resumed, and complete ones are kept without their weights and not trained again.
`python -m benchmarks.run_reproduction CORPUS FILE...` does so on other text with fewer cells.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch

from apollo_cli.training.calibration import seconds_by_depth
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_task
from benchmarks import render_reproduction
from benchmarks.campaign import Campaign, clock, text_words
from benchmarks.cells import DEFAULT, RATES, ReproductionCell, cells
from benchmarks.configs import config_of, plan_of


def main(words: Sequence[str]) -> None:
    """Trains the missing cells and writes the report."""
    name, *text = words or [DEFAULT]
    campaign = Campaign(name, text_words(text))
    wanted = cells(name)
    missing = campaign.missing(wanted)
    at_once = max(1, min(os.cpu_count() or 1, len(missing)))
    print(f"{len(wanted)} cells on {name}, {len(missing)} to train, {at_once} at once", flush=True)
    if missing:
        print(f"about {clock(seconds(campaign, missing) / at_once)}; complete cells are kept", flush=True)
    campaign.run_all(missing, campaign.train, at_once, "make reproduce")
    render_reproduction.write(name)
    campaign.save()


def seconds(campaign: Campaign, missing: Sequence[ReproductionCell]) -> float:
    """Seconds of these cells on one core, from micro-steps timed here; a quarter more, for they run together."""
    torch.set_num_threads(1)

    @cache
    def seconds_of_depth(kind: str) -> Callable[[int], float]:
        cell = next(cell for cell in missing if cell.kind == kind)
        config = config_of([*cell.words, *campaign.words])
        return seconds_by_depth(config, choose(config.run), make_task(config))

    @cache
    def seconds_of_cell(cell: ReproductionCell) -> float:
        stages = plan_of([*cell.words, *campaign.words]).stages
        return sum(n * seconds_of_depth(cell.kind)(depth) for s in stages for depth, n in s.depth_counts.items())

    like = [replace(cell, rate=RATES[cell.kind][0], seed=0) for cell in missing]  # rate and seed hardly matter
    return 1.25 * sum(map(seconds_of_cell, like))


if __name__ == "__main__":
    main(sys.argv[1:])
