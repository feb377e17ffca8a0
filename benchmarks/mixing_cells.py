"""The runs of the mixing bench as data: from one shallow checkpoint each operator grows a model and trains it on.

A cell has one factor of the growth (operator, moments, rate of the new layers) that differs from the base point,
and at most one factor of the setting (step of the growth, optimizer, parametrization). Each setting has references:
the shallow and the deep model, trained on at the same constant rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

from benchmarks.cells import ReproductionCell

NAME = "mixing"  # of their corpus
KINDS = ("bert", "gpt", "llama")
RATES = {"bert": "1e-3", "gpt": "2e-3", "llama": "2e-3"}  # scratch's of 3,000 steps x sqrt(3,000 / 12,000)
SHALLOW, DEEP = "shallow", "deep"

OPERATORS: dict[str, tuple[str, ...]] = {  # the most telling first
    "interpolate": ("expander=interpolate",),
    "stack": ("expander=stack",),
    "net2net": ("expander=net2net",),
    "split": ("expander=split", "expander.exponent=1"),
    "boundary": ("expander=boundary",),
    "two_hops": ("expander=boundary",),
    "split_root": ("expander=split", "expander.exponent=0.5"),
    "fresh_0": ("expander=fresh", "expander.output_scale=0"),
    "fresh_0.1": ("expander=fresh", "expander.output_scale=0.1"),
    "fresh_1": ("expander=fresh", "expander.output_scale=1"),
    "two_hops_net2net": ("expander=net2net",),
}
BASE = "interpolate"
MOMENTS = ("keep", "map", "reset")  # beside the base's, new
# of new layers: factor at first, and steps in which it becomes 1; below 0.1 it is a warmup of theirs
NEW_RATES = ((2.0, 250), (4.0, 250), (0.01, 250), (0.5, 250), (1.3, 250), (0.01, 100))
# the best operator with what closes the gap of the base point soonest, or with the rate that does so for the other
# model: the operators are judged at one rate first
PAIRS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "bert": (("split", {"moments": "map"}), ("split", {"lr_scale": 0.5}), ("split", {"lr_scale": 2.0})),
    "gpt": (("boundary", {"lr_scale": 2.0}), ("split", {"lr_scale": 2.0})),
    "llama": (),
}
ELSEWHERE = ("interpolate", "net2net", "split", "boundary", "two_hops")  # operators in the other settings


@dataclass(frozen=True)
class Lengths:
    """Layers and steps of the bench; tests have smaller ones.

    Attributes:
        source: layers of the shallow model.
        middle: layers between two hops.
        target: layers of the deep model.
        ages: steps of the source at which it grows, in all settings.
        age: that of the base point.
        warmup: steps of the references' warmup, as in a scratch run of 3,000 steps.
        lead: steps of a cell before it grows, so that the growth is one within a run: `expander.lr_scale` is for
            these, and the loss is measured on both sides.
        steps: after the growth.
        hop: steps between two hops.
        every: steps between evaluations; all others are multiples of it.
        marks: steps after the growth for which the gap is reported.
    """

    source: int = 3
    middle: int = 6
    target: int = 12
    ages: tuple[int, ...] = (1000, 3000, 9000)
    age: int = 3000
    warmup: int = 300
    lead: int = 125
    steps: int = 1500
    hop: int = 375
    every: int = 125
    marks: tuple[int, ...] = (250, 500, 1000, 1500)


@dataclass(frozen=True)
class MixingCell(ReproductionCell):
    """A run that grows by `method`, one of OPERATORS; or a part of a reference, SHALLOW or DEEP.

    References are trained in parts, each from the end of the one before, so that the first ages are there soon. The
    part of an age ends as many steps after it as the cells that grow there.

    Attributes:
        moments: of the optimizer at growth.
        lr_scale: factor of the rate of new layers at first.
        lr_steps: in which it becomes 1.
        age: steps at the growth.
        optim: preset of the optimizer.
        parametrization: of the model.
        lengths: of the bench.
        more: overrides that say from which run it begins.
    """

    moments: str = "new"
    lr_scale: float = 1.0
    lr_steps: int = 250
    age: int = Lengths.age
    optim: str = "adamw"
    parametrization: str = "standard"
    lengths: Lengths = Lengths()
    more: tuple[str, ...] = ()

    @property
    def factors(self) -> dict[str, object]:
        """The factors, but the operator, in which the cell differs from the base point."""
        usual = {field.name: field.default for field in fields(MixingCell)} | {"age": self.lengths.age}
        names = ("moments", "lr_scale", "lr_steps", "age", "optim", "parametrization")
        return {name: getattr(self, name) for name in names if getattr(self, name) != usual[name]}

    @property
    def label(self) -> str:
        """What the cell is, for tables."""
        return ", ".join([self.method, *(f"{name}={value}" for name, value in self.factors.items())])

    @property
    def name(self) -> str:
        """Folder name, which begins with the kind of model."""
        return "_".join([self.kind, self.method, *(f"{name}-{value}" for name, value in self.factors.items())])

    @property
    def is_reference(self) -> bool:
        return self.method in (SHALLOW, DEEP)

    @property
    def is_usual(self) -> bool:
        """Whether it differs from the base point in nothing but the operator and the setting."""
        return not self.factors.keys() & {"moments", "lr_scale", "lr_steps"}

    @property
    def setting(self) -> "Setting":
        return Setting(self.age, self.optim, self.parametrization)

    @property
    def first_step(self) -> int:
        """Steps that were trained before this run."""
        if not self.is_reference:
            return self.age - self.lengths.lead
        earlier = [age for age in self.lengths.ages if age < self.age]
        return earlier[-1] + self.lengths.steps if earlier else 0

    @property
    def source(self) -> "MixingCell | None":
        """The run from which this one begins: the shallow reference, or the part before; None at step 0."""
        if not self.is_reference:
            return reference(self, SHALLOW)
        earlier = [age for age in self.lengths.ages if age < self.age]
        return replace(self, age=earlier[-1]) if earlier else None

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """Stored layers and steps of each stage."""
        lengths = self.lengths
        if self.is_reference:
            layers = lengths.source if self.method == SHALLOW else lengths.target
            return ((layers, self.age + lengths.steps - self.first_step),)
        if not self.method.startswith("two_hops"):
            return ((lengths.source, lengths.lead), (lengths.target, lengths.steps))
        hops = ((lengths.middle, lengths.hop), (lengths.target, lengths.steps - lengths.hop))
        return ((lengths.source, lengths.lead), *hops)

    @property
    def last_growth(self) -> int:
        """Steps of the run at the last growth, counted from the first."""
        return sum(steps for _, steps in self.stages[1:-1])

    @property
    def words(self) -> tuple[str, ...]:
        """Overrides of `apollo-train`."""
        layers, steps = zip(*self.stages, strict=True)
        total = sum(steps)
        ends = ",".join(repr(end / total) for end in accumulate(steps))
        warmup = 0 if self.first_step else self.lengths.warmup / total
        # the shallow reference keeps the checkpoint with which cells begin
        saved = self.age - self.lengths.lead - self.first_step if self.method == SHALLOW else total
        completep = (
            f"model.parametrization={self.parametrization}",
            "model.base_hidden=${model.hidden}",
            f"model.base_layers={self.lengths.source}",
        )
        return (
            "experiment=_depth_pays",
            f"name={self.name}",
            f"model={self.kind}",
            f"model.layers={layers[-1]}",
            f"schedule.layers=[{','.join(map(str, layers))}]",
            f"schedule.ends=[{ends}]",
            "sampler=shallow",
            *(() if self.is_reference else self._growth_words()),
            *(() if self.parametrization == "standard" else completep),
            f"optim={self.optim}",
            "optim.schedule=constant",
            f"optim.warmup={warmup!r}",
            f"optim.lr={self.rate}",
            f"budget.steps={total}",
            f"seed={self.seed}",
            f"eval.every={self.lengths.every}",
            f"checkpoint.every={saved}",
            "checkpoint.keep=10",
            "precision=bf16",  # half as fast again as fp32 on one core
            *self.more,
        )

    def _growth_words(self) -> tuple[str, ...]:
        return (
            *OPERATORS[self.method],
            f"expander.moments={self.moments}",
            f"expander.lr_scale={self.lr_scale}",
            f"expander.lr_steps={self.lr_steps}",
        )


@dataclass(frozen=True)
class Setting:
    """What cells share that are compared with the same references."""

    age: int
    optim: str
    parametrization: str

    def __str__(self) -> str:
        more = [name for name in (self.optim, self.parametrization) if name not in ("adamw", "standard")]
        return ", ".join([f"from step {self.age:,}", *more])


def reference(cell: MixingCell, method: str) -> MixingCell:
    """The shallow or the deep reference of a cell's setting."""
    own = {name: getattr(cell, name) for name in ("age", "optim", "parametrization", "lengths")}
    return MixingCell(cell.kind, method, cell.rate, cell.seed, **own)


def chain(cell: MixingCell) -> list[MixingCell]:
    """The parts of a reference up to this one."""
    return [*(chain(cell.source) if cell.source else ()), cell]


def growing(kind: str, lengths: Lengths) -> list[MixingCell]:
    """All cells that grow; those of the base point's setting first."""
    base = MixingCell(kind, BASE, RATES[kind], 0, age=lengths.age, lengths=lengths)
    # post-norm BERT has nothing to scale
    settings = [] if kind == "bert" else [replace(base, parametrization="completep")]
    settings += [replace(base, age=age) for age in lengths.ages if age != base.age]
    settings.append(replace(base, optim="muon"))
    return [
        base,
        *(replace(base, lr_scale=scale, lr_steps=steps) for scale, steps in NEW_RATES),
        *(replace(base, moments=moments) for moments in MOMENTS),
        *(replace(base, method=operator) for operator in OPERATORS if operator != BASE),
        *(replace(base, method=operator, **factors) for operator, factors in PAIRS[kind]),
        *(replace(cell, method=operator) for cell in settings for operator in ELSEWHERE),
    ]


def mixing_cells(kind: str, lengths: Lengths = Lengths()) -> list[MixingCell]:
    """All cells of a model in the order in which they are wanted, each setting after its references."""
    found: list[MixingCell] = []
    for cell in growing(kind, lengths):
        found += [*chain(reference(cell, SHALLOW)), *chain(reference(cell, DEEP)), cell]
    return list(dict.fromkeys(found))


def by_setting(cells: Sequence[MixingCell]) -> dict[Setting, list[MixingCell]]:
    """The cells that grow in each setting."""
    found: dict[Setting, list[MixingCell]] = {}
    for cell in cells:
        if not cell.is_reference:
            found.setdefault(cell.setting, []).append(cell)
    return found
