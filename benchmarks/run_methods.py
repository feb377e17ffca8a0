"""`make methods`: every growth method on the same work; a stopped campaign is continued.

`python -m benchmarks.run_methods METHOD...` trains some of them, all by default. Cells run in parallel,
perhaps on several machines, so their seconds are not comparable: at the end a twentieth of every method is timed
in turns, which needs an idle machine.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from apollo_cli import files
from benchmarks import interleaved, render_methods
from benchmarks.campaign import Campaign
from benchmarks.cells import KINDS, SEEDS
from benchmarks.configs import plan_of
from benchmarks.method_cells import FROM_SOURCE, METHODS, NAME, MethodCell, method_cells, source_of, with_budget

MAP = {"ligo": ("expander.steps=5",)}  # of 100, where a twentieth is timed


@dataclass(frozen=True)
class MethodsCampaign(Campaign):
    """Runs that have the FLOPs of scratch's, those of their source included."""

    thinned: bool = True

    def budgeted(self, cell: MethodCell) -> MethodCell:
        return with_budget(cell, self.run_directory(source_of(cell)))


def main(methods: Sequence[str]) -> None:
    """Trains the missing cells, sources first, and writes the report."""
    if unknown := [method for method in methods if method not in METHODS]:
        sys.exit(f"{', '.join(unknown)}: no such method; they are {', '.join(METHODS)}")
    campaign = MethodsCampaign(NAME)
    wanted = [cell for kind in KINDS for cell in method_cells(kind, methods or METHODS)]
    missing = [campaign.budgeted(cell) for cell in campaign.missing(wanted)]
    sources = list(dict.fromkeys(source_of(cell) for cell in missing if cell.method in FROM_SOURCE))
    at_once = os.cpu_count() or 1
    print(f"{len(wanted)} cells, {len(missing)} to train, {len(sources)} sources, {at_once} at once", flush=True)
    campaign.run_all(sources, campaign.trained, at_once, "make methods")
    campaign.run_all(missing, campaign.train, at_once, "make methods")
    for kind in KINDS:
        _time(campaign, kind, methods or METHODS)
    render_methods.write(campaign)
    campaign.save()


def _time(campaign: MethodsCampaign, kind: str, methods: Sequence[str]) -> None:
    """Measures the paces that are not known; trains a source that one of them needs."""
    known = render_methods.known_paces(campaign, kind)
    new = [method for method in methods if method not in known]
    if not new:
        return
    if not set(FROM_SOURCE).isdisjoint(new):
        campaign.trained(source_of(method_cells(kind, new)[0]), os.cpu_count() or 1)
    print(f"timing {len(new)} methods of {kind} in turns: keep the machine idle", flush=True)
    files.write_json(render_methods.pace_file(campaign, kind), known | paces(campaign, kind, new))


def paces(campaign: MethodsCampaign, kind: str, methods: Sequence[str]) -> dict[str, float]:
    """Seconds of a FLOP of each method and of a source, as a share of scratch's, measured in turns.

    Each runs all its stages in a twentieth of its steps, and learns its map in a twentieth of its own.
    """
    timed = [
        cell for cell in method_cells(kind, list(dict.fromkeys(["scratch", *methods]))) if cell.seed == SEEDS[0]
    ]
    cells = [source_of(timed[0]), *(campaign.budgeted(cell) for cell in timed)]
    words = {cell.method: [*cell.words, *MAP.get(cell.method, ()), "tracking=local"] for cell in cells}
    steps = {method: plan_of(overrides).steps // interleaved.THINNED for method, overrides in words.items()}
    spent = interleaved.run_in_turns(words, steps)
    pace = {method: cost["train_seconds"] / cost["flops"] for method, cost in spent.items()}
    return {method: seconds / pace["scratch"] for method, seconds in pace.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
