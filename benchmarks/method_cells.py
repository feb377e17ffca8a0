"""The runs of every growth method on the same work, as data.

All have the text, model, batch and evaluation of the reproduction and the FLOPs of its scratch runs; the FLOPs of a
source model count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.config.schema import flat
from benchmarks.cells import SEEDS, TUNED, ReproductionCell
from benchmarks.configs import plan_of

NAME = "methods"  # of their corpus
FROM_SOURCE = ("bert2bert", "ligo", "lemon")
GROWN = (
    "gstack",
    "stackbert",
    "mslt",
    "midas",
    "lidas",
    "one_layer",
    "late_zero_init",
    "raptr",
    "msg",
    "net2net_depth",
)
METHODS = ("scratch", "apollo", *GROWN, *FROM_SOURCE)
# half of the depth and of the width, heads as large, half of scratch's steps: a twelfth of its FLOPs
SOURCE = ("model.layers=6", "model.hidden=32", "model.heads=1", "model.ffn=128")
SOURCE_STEPS = 1500
_COMMON = "_depth_pays"


@dataclass(frozen=True)
class MethodCell(ReproductionCell):
    """A run of a method by its preset at the size of the reproduction.

    Attributes:
        more: overrides of the budget and the source.
    """

    more: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """Overrides of `apollo-train`."""
        preset = "scratch" if self.method == "source" else self.method
        experiment = f"{preset}_{self.kind}" if preset in ("scratch", "apollo") else preset
        source = dict(word.split("=") for word in SOURCE) if self.method == "source" else {}
        common = shared(experiment) | source
        return (
            f"experiment={experiment}",
            "size=nano",
            f"name={self.method}",
            f"model={self.kind}",
            *(f"{key}={'null' if value is None else value}" for key, value in common.items()),
            f"optim.lr={self.rate}",
            f"seed={self.seed}",
            "precision=fp32",  # on a GPU too: cells of several machines are compared
            *self.more,
        )


def shared(experiment: str) -> dict[str, Any]:
    """Values that all methods share, without the budget and those that this preset sets itself.

    Every method has the same shape of the learning rate, so that methods are compared and not schedules.
    """
    common, own = _values(_COMMON), _values(experiment)
    decided = own.keys() - {"optim.schedule", "optim.knots"}
    return {key: value for key, value in common.items() if key not in decided and not key.startswith("budget.")}


def method_cells(kind: str, methods: Sequence[str] = METHODS) -> list[MethodCell]:
    """Methods with every seed at the rate that was chosen for scratch."""
    return [MethodCell(kind, method, TUNED[kind, "scratch"], seed) for seed in SEEDS for method in methods]


def source_of(cell: MethodCell) -> MethodCell:
    """The smaller model that a cell starts from: one for each seed."""
    more = (f"budget.steps={SOURCE_STEPS}",)
    return MethodCell(cell.kind, "source", cell.rate, cell.seed, more=more)


def with_budget(cell: MethodCell, source: Path) -> MethodCell:
    """The cell with as many FLOPs as scratch, those of its source included.

    Args:
        cell: of a method.
        source: run directory of the smaller model.
    """
    if cell.method == "scratch":
        return _with(cell, f"budget.steps={scratch_steps()}")
    budget = flops(cell.kind, "scratch", scratch_steps())
    if cell.method not in FROM_SOURCE:
        return _with(cell, "budget.steps=null", f"budget.flops={budget}")
    budget -= flops(cell.kind, "source", SOURCE_STEPS)
    return _with(cell, f"init_from.path={source}", "budget.steps=null", f"budget.flops={budget}")


@cache
def flops(kind: str, method: str, steps: int) -> int:
    """FLOPs of so many steps of a run that does not grow."""
    return plan_of([*MethodCell(kind, method, TUNED[kind, "scratch"], 0).words, f"budget.steps={steps}"]).flops


def scratch_steps() -> int:
    return int(_values(_COMMON)["budget.steps"])


def _with(cell: MethodCell, *more: str) -> MethodCell:
    return MethodCell(cell.kind, cell.method, cell.rate, cell.seed, more=more)


@cache
def _values(experiment: str) -> dict[str, Any]:
    text = (conf_folder() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    return flat({key: value for key, value in yaml.safe_load(text).items() if key not in ("defaults", "name")})
