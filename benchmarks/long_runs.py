"""The long runs: 12,000 steps of natural text, where twelve layers may be worth their FLOPs.

`python -m benchmarks.long_runs bert|gpt FILE...` trains the missing cells, as many at once as torch takes threads
(OMP_NUM_THREADS), each on one core; a stopped one continues. What is complete is kept in benchmarks/results and
reported in benchmarks/LONG.md, however it ends.
"""

import sys
from collections.abc import Sequence

import torch

from benchmarks import render_long
from benchmarks.campaign import Campaign, clock, text_words
from benchmarks.long_cells import NAME, RATES, LongCell, long_cells
from benchmarks.run_reproduction import seconds


def main(words: Sequence[str]) -> None:
    """Trains the missing cells of a model."""
    if len(words) < 2 or words[0] not in RATES:
        sys.exit(f"python -m benchmarks.long_runs MODEL FILE...: MODEL is one of {', '.join(RATES)}")
    kind, *text = words
    campaign = Campaign(NAME, text_words(text), kind=kind, thinned=True)
    run(campaign, long_cells(kind), " ".join(["python -m benchmarks.long_runs", *words]))


def run(campaign: Campaign, cells: Sequence[LongCell], command: str) -> None:
    """Prints the cost of the missing cells, trains them and writes the report.

    Args:
        campaign: of one kind of model.
        cells: all that are wanted, in this order.
        command: continues when it was stopped.
    """
    missing, at_once = campaign.missing(cells), torch.get_num_threads()
    print(f"{len(cells)} cells of {campaign.kind}, {len(missing)} to train, {at_once} at once", flush=True)
    if missing:
        print(f"about {clock(seconds(campaign, missing) / at_once)}; complete cells are kept", flush=True)
    try:
        campaign.run_all(missing, lambda cell, _: campaign.train(cell, 1), at_once, command)
    finally:
        render_long.write(campaign.kind or "", cells)
        campaign.save()


if __name__ == "__main__":
    main(sys.argv[1:])
