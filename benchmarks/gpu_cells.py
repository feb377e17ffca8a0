"""The runs of the reproduction on one GPU as data; they are kept apart from the CPU's.

Scratch takes a number of steps, 30,000 as its preset says; every other method keeps its share of them.
"""

from functools import cache

from benchmarks.cells import SEARCH_PATH, ReproductionCell
from benchmarks.configs import config_of

NAME = "gpu"  # of their corpus
METHODS = ("scratch", "stackbert", "apollo", "apollo_late", "late_zero_init")
RATE = "1e-3"  # scratch's usual one at this width; no other was tried
SHORT = 0.56  # of scratch's steps, in a run of its own: as many FLOPs as late_zero_init


@cache
def preset_steps(method: str) -> int:
    steps = config_of([SEARCH_PATH, f"experiment=repro_gpu_{method}"]).budget.steps
    assert steps
    return steps


def gpu_cells(kind: str, steps: int) -> list[ReproductionCell]:
    """Cells of a model, longest first; `steps` are scratch's."""

    def cell(method: str, share: float = 1) -> ReproductionCell:
        of_method = round(share * steps * preset_steps(method) / preset_steps("scratch"))
        return ReproductionCell(kind, f"gpu_{method}", RATE, 0, steps=of_method)

    return [*(cell(method) for method in METHODS), cell("scratch", SHORT)]
