"""The runs of the reproduction as data: methods, learning rates, budgets and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

CONFIGS = Path(__file__).with_name("conf")
SEARCH_PATH = f"hydra.searchpath=['file://{CONFIGS}']"  # as --config-dir benchmarks/conf

KINDS, SEEDS = ("gpt", "bert"), (0, 1, 2)
_LATE = ("apollo_late", "late", "late_lvps", "late_zero_init", "late_zero_init_new")
METHODS = ("scratch", "stackbert", "apollo", *_LATE)
VARIANTS = ("shallow", "uniform", "edge", "full", "stack")  # of apollo_late, at its rate and budget
RATES = {"gpt": ("2e-3", "4e-3", "8e-3"), "bert": ("1e-3", "2e-3", "4e-3")}  # tried with seed 0
TUNED = {(kind, method): RATES[kind][1] for kind in KINDS for method in METHODS}
_THREE_STAGES = ("budget.flops=15e12", "schedule.layers=[3,6,12]", "schedule.ends=[0.6,0.92,1]")
FITTED = {  # overrides of a method for one kind of model
    **{("gpt", method): ("budget.flops=20.3e12",) for method in (*_LATE, *VARIANTS)},
    **{("gpt", method): _THREE_STAGES for method in ("late_zero_init", "late_zero_init_new")},
}
LADDER = {"gpt": (1500, 2000, 2500, None), "bert": (1500, 2000, 2500, None, 3500, 4000)}  # steps from scratch
DEFAULT = "pydocs"  # the corpus on which rates, stages and budgets were chosen
COMPARED = ("scratch", "stackbert", "apollo_late", "late_zero_init")  # on other corpora, with the same settings
RUNGS = ("gpt", (2000, 2500))  # kind and steps of more scratch runs on other corpora
STEADIER = ("bert", "1e-3")  # kind and rate of more scratch runs there: at 2e-3 some stay on the plateau
SHALLOW = (1, 3, 6)  # layers of scratch runs that show whether depth pays
LONGER = ((3, 6000), (6, 4000))  # layers and steps of scratch runs that are shallower and longer


@dataclass(frozen=True)
class ReproductionCell:
    """A run of a method; `layers` and `steps` are set for scratch runs of other depths or lengths.

    `precision` is set where it is not the preset's.
    """

    kind: str
    method: str
    rate: str
    seed: int
    layers: int | None = None
    steps: int | None = None
    precision: str | None = None

    @property
    def name(self) -> str:
        """Folder name, which begins with the kind of model."""
        method = f"{self.method}{self.layers or ''}" + (f"_{self.steps}steps" if self.steps else "")
        method += f"_{self.precision}" if self.precision else ""
        return f"{self.kind}_{method}_lr{self.rate}_seed{self.seed}"

    @property
    def words(self) -> tuple[str, ...]:
        """Overrides of `apollo-train`, without those of the corpus."""
        scratch = (f"model.layers={self.layers}", f"schedule.layers=[{self.layers}]", "schedule.ends=[1]")
        return (
            SEARCH_PATH,
            f"experiment=repro_{self.method}",
            f"model={self.kind}",
            f"optim.lr={self.rate}",
            f"seed={self.seed}",
            *FITTED.get((self.kind, self.method), ()),
            *(scratch if self.layers else ()),
            *([f"budget.steps={self.steps}"] if self.steps else ()),
            *([f"precision={self.precision}"] if self.precision else ()),
        )


def depth_cells(kind: str) -> list[ReproductionCell]:
    """Scratch runs of several depths with equal steps."""
    tuned = TUNED[kind, "scratch"]
    return [ReproductionCell(kind, "scratch", tuned, 0, layers) for layers in (*SHALLOW, None)]


def longer_cells(kind: str) -> list[ReproductionCell]:
    """Scratch runs of fewer layers with about the FLOPs of a growing model."""
    return [ReproductionCell(kind, "scratch", TUNED[kind, "scratch"], 0, layers, steps) for layers, steps in LONGER]


def ladder_cells(kind: str, seed: int) -> list[ReproductionCell]:
    """Scratch runs of several budgets, each with a learning-rate schedule of its own."""
    tuned = TUNED[kind, "scratch"]
    return [ReproductionCell(kind, "scratch", tuned, seed, steps=steps) for steps in LADDER[kind]]


def steadier_cells() -> list[ReproductionCell]:
    """Scratch runs on other corpora at a smaller rate."""
    kind, rate = STEADIER
    return [ReproductionCell(kind, "scratch", rate, seed) for seed in SEEDS]


def other_cells() -> list[ReproductionCell]:
    """Scratch runs on other corpora: of several budgets, and at a smaller rate."""
    kind, steps = RUNGS
    tuned = TUNED[kind, "scratch"]
    rungs = [ReproductionCell(kind, "scratch", tuned, seed, steps=n) for n in steps for seed in SEEDS]
    return [*rungs, *steadier_cells()]


def cosine_cell(kind: str) -> ReproductionCell:
    """Scratch under one cosine, as published."""
    return ReproductionCell(kind, "scratch_cosine", TUNED[kind, "scratch"], 0)


def rate_cells(kind: str) -> list[ReproductionCell]:
    """The compared methods at every learning rate."""
    return [ReproductionCell(kind, method, rate, 0) for method in COMPARED for rate in RATES[kind]]


def variant_cells(kind: str) -> list[ReproductionCell]:
    """apollo_late, and the same with other samplers and expanders."""
    tuned = TUNED[kind, "apollo_late"]
    return [ReproductionCell(kind, method, tuned, 0) for method in ("apollo_late", *VARIANTS)]


def headline_cells(kind: str, methods: Sequence[str] = METHODS) -> list[ReproductionCell]:
    """Methods at their chosen rates with every seed."""
    return [ReproductionCell(kind, method, TUNED[kind, method], seed) for seed in SEEDS for method in methods]


def precision_pairs(kind: str) -> list[tuple[ReproductionCell, ReproductionCell]]:
    """Whole runs from scratch and of a growing model with every seed, in the preset's precision and in bf16."""
    cells = headline_cells(kind, ("scratch", "late_zero_init"))
    return [(cell, replace(cell, precision="bf16")) for cell in cells]


def cells(corpus: str) -> list[ReproductionCell]:
    """All cells of a corpus in the order in which they are trained."""
    wanted = [headline_cells(kind, COMPARED) for kind in KINDS]
    if corpus == DEFAULT:
        ladders = [ladder_cells(kind, seed) for seed in SEEDS for kind in KINDS]
        parts = (depth_cells, longer_cells, headline_cells, variant_cells, rate_cells)
        wanted = [*ladders, *wanted, *(part(kind) for part in parts for kind in KINDS)]
        wanted.append([cosine_cell(kind) for kind in KINDS])
        wanted.append([short for kind in KINDS for _, short in precision_pairs(kind)])
    else:
        wanted.append(other_cells())
    return list(dict.fromkeys(cell for part in wanted for cell in part))
