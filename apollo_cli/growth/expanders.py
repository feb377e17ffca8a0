"""Expanders: how N stored layers become the next N, as data, before any tensor exists."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from apollo_cli.growth.layer_maps import inserted, mixing_matrix, take_name


@dataclass(frozen=True)
class Growth:
    """How N stored layers become the next N."""

    matrix: np.ndarray  # (next N, N), rows sum to 1
    # the new layers whose projections into the residual stream start at zero. In a post-norm model their norms and
    # the output norm below them get gain 1 and bias 0; the top one takes over the old gain and bias
    # (`expansion.source_rows`)
    zero_init: tuple[int, ...] = ()
    # what layers add at first, as a share of what the layer they copy or a new layer adds; 1 for the others
    residual_scale: Mapping[int, float] = field(default_factory=dict)
    # the new layers that are no copies and are drawn as a new model's are; their rows only say where
    drawn: tuple[int, ...] = ()
    gated: tuple[int, ...] = ()  # the new layers that run as c layer(h) + (1 - c) h, with c rising from 0 to 1
    gate_duration: float = 0.0  # share of all steps over which c rises
    # the multiplier of all residual branches after the growth over that before
    branch_ratio: float = 1.0

    def projection_factor(self, slot: int) -> float:
        """The factor of a layer's projections into the residual stream.

        A growth that says what its new layers add at first leaves what the old ones add, so the projections of all
        layers that are copied are divided by `branch_ratio`. One that only copies leaves the weights: k copies of
        every layer add 1 / k each by the multiplier.
        """
        scale = self.residual_scale.get(slot, 1.0)
        return scale / self.branch_ratio if self.states_additions and slot not in self.drawn else scale

    @property
    def states_additions(self) -> bool:
        """Whether it says what new layers add at first: nothing, or a share."""
        return bool(self.zero_init or self.residual_scale or self.gated)

    @property
    def new(self) -> tuple[int, ...]:
        """The layers that are not the first copy of an old one."""
        return inserted(self.matrix)


class Expander(ABC):
    """How the stored layers, and the width of a model, grow.

    Attributes:
        needs_smaller_model: whether it is made for growing a model that was trained before, or the width.
        draws_layers: whether new layers are no copies.
    """

    needs_smaller_model = False
    draws_layers = False

    @abstractmethod
    def growth(self, source: int, target: int) -> Growth:
        """From `source` to `target` layers; where a map is learned, what the map starts from."""

    @property
    def width_rule(self) -> str:
        """The rule of `growth.width.WIDTHS` by which a narrower model becomes wider."""
        return "fpi"

    def adds_on_top(self, source: int, target: int) -> bool:
        """Whether the old layers stay the lowest ones, so that the new ones can train alone."""
        matrix = self.growth(source, target).matrix
        return np.array_equal(matrix[:source], np.eye(source))

    def stage_problems(self, layers: Sequence[int], ends: Sequence[float]) -> list[str]:
        """Messages about keys that do not fit stages of these stored layers and cumulative shares of all steps."""
        return []


EXPANDERS: dict[str, type[Expander]] = {}


def expander(kind: str) -> Callable[[type[Expander]], type[Expander]]:
    """Registers a frozen dataclass as expander=kind; its fields are the keys of conf/expander/KIND.yaml.

    A ValueError if the name is taken.
    """

    def register(cls: type[Expander]) -> type[Expander]:
        take_name(kind)
        EXPANDERS[kind] = cls
        return cls

    return register


@dataclass(frozen=True)
class CopyLayers(Expander):
    """A copying map of `layer_maps` by its name; each but `nearest` is an expander without keys."""

    layer_map: str

    def growth(self, source: int, target: int) -> Growth:
        return Growth(mixing_matrix(self.layer_map, source, target))


@expander("interpolate")
@dataclass(frozen=True)
class Interpolate(Expander):
    """New layers between the old ones (Apollo, section 3.3)."""

    mode: Literal["nearest", "linear"]

    def growth(self, source: int, target: int) -> Growth:
        return Growth(mixing_matrix(self.mode, source, target))


@expander("net2net")
@dataclass(frozen=True)
class Net2Net(Expander):
    """New layers add nothing at first (Net2DeeperNet, Chen 2016, arXiv 1511.05641, section 2.4).

    They are copies above their layer whose projections into the residual stream start at zero. The function of the
    stored layers stays exactly what it was; in a post-norm model the norms of the new layers see to that.
    """

    def growth(self, source: int, target: int) -> Growth:
        matrix = mixing_matrix("nearest", source, target)
        return Growth(matrix, zero_init=inserted(matrix))


@expander("split")
@dataclass(frozen=True)
class SplitCopies(Expander):
    """k copies of a layer above each other, each of which adds 1 / k^exponent of what it added.

    k steps of size 1 / k along one field are about one step of size 1 (Chang 2018, arXiv 1710.10348), so the
    function hardly changes, and yet every layer has its features and gradients at once.
    """

    exponent: Annotated[float, Field(ge=0, le=1)]

    def growth(self, source: int, target: int) -> Growth:
        matrix = mixing_matrix("nearest", source, target)
        copies = matrix @ matrix.sum(axis=0)  # of the source of each new layer
        return Growth(matrix, residual_scale=dict(enumerate((copies**-self.exponent).tolist())))


@expander("fresh")
@dataclass(frozen=True)
class Fresh(Expander):
    """New layers, between the old ones, are drawn as a new model's: they have no symmetry to break as copies have.

    Their projections into the residual stream are multiplied by `output_scale`.
    """

    output_scale: Annotated[float, Field(ge=0, le=1)]
    draws_layers = True

    def growth(self, source: int, target: int) -> Growth:
        """From 0 layers all are drawn."""
        matrix = mixing_matrix("nearest", source, target) if source else np.zeros((target, 0))
        new = inserted(matrix)
        if not self.output_scale:
            return Growth(matrix, zero_init=new, drawn=new)
        return Growth(matrix, residual_scale=dict.fromkeys(new, self.output_scale), drawn=new)


@expander("msg")
@dataclass(frozen=True)
class Msg(Expander):
    """Stacking where new layers are gated (MSG, Yao 2024), so that growth changes no model's function.

    A new layer runs as c layer(h) + (1 - c) h, with c from 0 to 1 over `gate_duration` of all steps.
    """

    gate_duration: Annotated[float, Field(gt=0, le=1)]

    def growth(self, source: int, target: int) -> Growth:
        matrix = mixing_matrix("stack", source, target)
        return Growth(matrix, gated=inserted(matrix), gate_duration=self.gate_duration)

    def stage_problems(self, layers: Sequence[int], ends: Sequence[float]) -> list[str]:
        shares = [end - start for start, end in pairwise(ends)]
        grown = [after > before for before, after in pairwise(layers)]
        if not any(grows and share < self.gate_duration for grows, share in zip(grown, shares, strict=True)):
            return []
        return [
            f"expander.gate_duration={self.gate_duration}: a stage that adds layers is shorter, so its gates would "
            "not be fully open at its end; make it smaller or the stage longer"
        ]


@expander("bert2bert")
@dataclass(frozen=True)
class Bert2Bert(Expander):
    """A smaller model is widened by copies of its units, then stacked (bert2BERT, Chen 2022)."""

    width: Literal["fpi", "aki"]
    needs_smaller_model = True

    @property
    def width_rule(self) -> str:
        return self.width

    def growth(self, source: int, target: int) -> Growth:
        return Growth(mixing_matrix("stack", source, target))


@expander("lemon")
@dataclass(frozen=True)
class Lemon(Net2Net):
    """A smaller model is widened without loss, and new layers add nothing at first (LEMON, Wang 2024)."""

    needs_smaller_model = True
    width_rule = "lemon"


@expander("ligo")
@dataclass(frozen=True)
class Ligo(Expander):
    """A map of width and depth that is learned before the new model trains (LiGO, Wang 2023); starts as a stack."""

    steps: Annotated[int, Field(gt=0)]  # updates of the map
    lr: Annotated[float, Field(gt=0)]  # their constant learning rate
    needs_smaller_model = True

    def growth(self, source: int, target: int) -> Growth:
        return Growth(mixing_matrix("stack", source, target))

    def adds_on_top(self, source: int, target: int) -> bool:
        return False  # its map mixes all layers
