"""The mixing bench: how fast the layers that a growth adds become worth their FLOPs.

`python -m benchmarks.mixing bert|gpt|llama FILE...` trains the missing cells, on the default text where no file is
given, as many at once as torch takes threads (OMP_NUM_THREADS), each on one core; a stopped one continues. What is
complete is kept in benchmarks/results and reported in benchmarks/MIXING.md, however it ends.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from apollo_cli.config.config import parse
from apollo_cli.run_directory import RunDirectory
from apollo_cli.training.calibration import seconds_by_depth
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_task
from benchmarks import render_mixing
from benchmarks.campaign import Campaign, clock, text_words
from benchmarks.cells import ReproductionCell
from benchmarks.configs import config_of, plan_of
from benchmarks.mixing_cells import (
    DEEP,
    KINDS,
    NAME,
    SHALLOW,
    MixingCell,
    by_setting,
    chain,
    mixing_cells,
    reference,
)

_EVALUATIONS = 1.25  # of the seconds of steps: evaluations, and cells beside each other


@dataclass(frozen=True)
class MixingCampaign(Campaign):
    """Keeps the evaluations of a run; a cell begins from a run that was trained before."""

    def rows(self, metrics: Path) -> bytes:
        """Rows of a run that are kept."""
        lines = metrics.read_bytes().splitlines(keepends=True)
        return b"".join(line for line in lines if "eval/loss" in json.loads(line))

    def begun(self, cell: MixingCell) -> MixingCell:
        """The cell with the run from which it begins."""
        source = cell.source
        if not source:
            return cell
        more = (
            f"init_from.path={self.run_directory(source)}",
            f"init_from.checkpoint=step_{cell.first_step - source.first_step:08d}",
            "init_from.optimizer=true",
            "init_from.data=true",
        )
        return replace(cell, more=more)

    def train(self, cell: ReproductionCell, threads: int) -> None:
        """Trains or resumes a cell on one core, for nothing of this size gains from more, and keeps it."""
        super().train(cell, 1)

    def train_reference(self, cell: MixingCell, threads: int) -> None:
        """Trains the parts of a reference up to this one that are not kept, or not trained on this machine."""
        for part in chain(cell):
            if self.missing([part]) or not self.is_trained(part):
                self.train(self.begun(part), threads)

    def is_trained(self, cell: MixingCell) -> bool:
        """Whether its weights are on this machine."""
        return RunDirectory(self.run_directory(cell)).summary().get("status") == "completed"

    def untrained(self, cells: Sequence[MixingCell]) -> list[MixingCell]:
        """The missing ones of these cells, and what has to be trained again before them, for its weights."""
        missing = self.missing(cells)
        before = [part for cell in missing if cell.source for part in chain(cell.source)]
        return list(dict.fromkeys([*missing, *(part for part in before if not self.is_trained(part))]))

    def keep(self, cell: ReproductionCell, folder: Path) -> None:
        """Keeps a run; a reference that is kept may have been trained again, for its weights."""
        if not self.kept(cell).exists():
            super().keep(cell, folder)


def main(words: Sequence[str]) -> None:
    """Trains the missing cells of a model."""
    if not words or words[0] not in KINDS:
        sys.exit(f"python -m benchmarks.mixing MODEL FILE...: MODEL is one of {', '.join(KINDS)}")
    kind, *text = words
    campaign = MixingCampaign(NAME, text_words(text), kind=kind)
    run(campaign, mixing_cells(kind), " ".join(["python -m benchmarks.mixing", *words]))


def run(campaign: MixingCampaign, cells: Sequence[MixingCell], command: str) -> None:
    """Prints the cost of the missing cells, trains them, setting after setting, and writes the report.

    Args:
        campaign: of one kind of model.
        cells: all that are wanted, in this order.
        command: continues when it was stopped.
    """
    check_text(campaign, cells)
    untrained, at_once = campaign.untrained(cells), torch.get_num_threads()
    print(f"{len(cells)} cells of {campaign.kind}, {len(untrained)} to train, {at_once} at once", flush=True)
    if untrained:
        flops, seconds = cost(campaign, untrained)
        print(f"{flops:.2e} FLOPs, about {clock(seconds / at_once)}; complete cells are kept", flush=True)
    try:
        for group in by_setting(cells).values():
            grown = campaign.missing(group)
            shallow, deep = (reference(group[0], name) for name in (SHALLOW, DEEP))
            references = [*([shallow] if grown else campaign.missing([shallow])), *campaign.missing([deep])]
            campaign.run_all(references, campaign.train_reference, at_once, command)
            campaign.run_all([campaign.begun(cell) for cell in grown], campaign.train, at_once, command)
    finally:
        render_mixing.write({campaign.kind or "": cells})
        campaign.save()


def check_text(campaign: MixingCampaign, cells: Sequence[MixingCell]) -> None:
    """Refuses another text than that of the cells that are complete."""
    for cell in campaign.complete(cells)[:1]:
        kept = RunDirectory(campaign.kept(cell)).config()
        if parse(kept).data != config_of([*cell.words, *campaign.words]).data:
            text = render_mixing.text_of(kept)
            sys.exit(f"the cells of {campaign.kind} that are kept have another text: take theirs, {text}")


def cost(campaign: MixingCampaign, cells: Sequence[MixingCell]) -> tuple[int, float]:
    """FLOPs of these cells, and their seconds on one core from micro-steps that are timed here."""
    torch.set_num_threads(1)

    @cache  # operators have the same cost
    def of_layers(layers: int, optim: str, parametrization: str) -> tuple[int, float]:
        cell = next(c for c in cells if (c.optim, c.parametrization) == (optim, parametrization))
        one_step = (f"model.layers={layers}", f"schedule.layers=[{layers}]", "schedule.ends=[1]", "budget.steps=1")
        return plan_of([*cell.words, *campaign.words, *one_step]).flops, timed(cell.optim)(layers)

    @cache
    def timed(optim: str) -> Callable[[int], float]:
        cell = next(c for c in cells if c.optim == optim)
        config = config_of([*reference(cell, DEEP).words, *campaign.words])
        return seconds_by_depth(config, choose(config.run), make_task(config))

    costs = [
        (steps * flops, steps * seconds)
        for cell in cells
        for layers, steps in cell.stages
        for flops, seconds in [of_layers(layers, cell.optim, cell.parametrization)]
    ]
    return sum(flops for flops, _ in costs), _EVALUATIONS * sum(seconds for _, seconds in costs)


if __name__ == "__main__":
    main(sys.argv[1:])
