"""Depth samplers: P(depth | N, L), the number of layers that a forward pass runs.

N layers are stored, L is the target depth, and N <= depth <= L. A sampler is a distribution. Drawing is its inverse
CDF at one uniform number, the same line for all samplers, so two of them see the same random numbers.
"""

import math
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from apollo_cli.errors import NameTakenError
from apollo_cli.growth.layer_maps import LayerMap, layer_map

NO_GATES: Mapping[int, float] = MappingProxyType({})
_TOLERANCE = 1e-6  # of the sum of probabilities
_MOST = 10_000_000  # of any number of layers or stages
Count = Annotated[int, Field(gt=0, le=_MOST)]
Lower = Annotated[float, Field(ge=0.01, le=1)]
Overshoot = Annotated[float, Field(ge=0.01, le=100)]


class ForwardPath(NamedTuple):
    """What one micro-step runs."""

    layers: LayerMap  # the stored layer that each logical layer uses
    frozen: int = 0  # number of lowest logical layers that, with the embeddings, run forward only
    # weight c of a gated stored layer, c layer(h) + (1 - c) h; 1 for layers that are not named
    gates: Mapping[int, float] = NO_GATES


class DepthSampler(ABC):
    """A distribution of the depth for every pair of stored layers N and target depth L.

    Attributes:
        chooses_layers: whether it decides by itself which layers run or train.
    """

    chooses_layers = False

    @abstractmethod
    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        """{depth: P(depth)}, in rising order of depth; the values sum to 1.

        Depths are `layers` to `target`; a sampler that chooses layers may run fewer than are stored.
        """

    def depths(self, u: np.ndarray, layers: int, target: int) -> np.ndarray:
        """The depths (int64) at uniform numbers u in [0, 1): the inverse CDF."""
        distribution = self.probabilities(layers, target)
        cdf = np.cumsum(list(distribution.values()))
        cdf[-1] = 1.0
        return np.array(list(distribution))[np.searchsorted(cdf, u, side="right")]

    def in_stage(self, index: int) -> "DepthSampler":
        """The sampler of a stage, counted from 0."""
        return self

    def layers_run(self, depth: int, layers: int, random: Callable[[], np.random.Generator]) -> LayerMap:
        """The stored layers that a pass of this depth runs; `random` makes the generator of the micro-step."""
        return layer_map("nearest", layers, depth)

    def frozen(self, depth: int) -> int:
        """How many of the lowest logical layers run forward only."""
        return 0

    def probability_problems(self, layers: int, target: int) -> list[str]:
        """Messages about what makes `probabilities` no distribution over depths from `layers` to `target`.

        A sampler that chooses the layers may run fewer than are stored.
        """
        try:
            distribution, lowest = self.probabilities(layers, target), 1 if self.chooses_layers else layers
        except Exception as error:  # of a method of the user's own
            *_, last = traceback.extract_tb(error.__traceback__)
            return [f"{Path(last.filename).name}, line {last.lineno}, raises {type(error).__name__}: {error}"]
        if not isinstance(distribution, dict):
            return [f"its probabilities are {type(distribution).__name__}, not a dict of depths"]
        found = [
            f"P({depth})={f'{p:g}' if isinstance(p, float) else f'{p!s:.20}'} is not a probability"
            f"{'' if isinstance(p, float | int) else f': it is a {type(p).__name__}, make it a float'}"
            for depth, p in distribution.items()
            if not (isinstance(p, float | int) and 0 <= p <= 1 + _TOLERANCE)
        ]
        found += [
            f"depth {depth} is not from {lowest} to {target}"
            if isinstance(depth, int)
            else f"depth {depth!r} is no int"
            for depth in distribution
            if not (isinstance(depth, int) and lowest <= depth <= target)
        ]
        if found:
            return found
        if list(distribution) != sorted(distribution):
            found.append("the depths do not rise")
        if abs(total := math.fsum(distribution.values()) - 1) > _TOLERANCE:
            found.append(f"the probabilities sum to {1 + total:g}, not 1")
        return found

    def stage_problems(self, layers: Sequence[int]) -> list[str]:
        """Messages about keys that do not fit stages of these stored layers."""
        return []


SAMPLERS: dict[str, type[DepthSampler]] = {}


def sampler(kind: str) -> Callable[[type[DepthSampler]], type[DepthSampler]]:
    """Registers a frozen dataclass as sampler=kind; its fields are the keys of conf/sampler/KIND.yaml.

    A NameTakenError if there is one of this name.
    """

    def register(cls: type[DepthSampler]) -> type[DepthSampler]:
        if kind in SAMPLERS:
            there = f"there is a sampler {kind!r} already: {SAMPLERS[kind].__module__}"
            raise NameTakenError(f"sampler={kind}", there)
        SAMPLERS[kind] = cls
        return cls

    return register


def is_scratch(layers: Sequence[int] | None, target: int | None, sampler: str | None, source: str | None) -> bool:
    """Whether a run trains all layers in every step, from random weights.

    `sampler` is its kind; of one that is not installed here it is not known whether it leaves layers out. `source`
    is the path of the model that the run begins with, None for random weights.
    """
    leaves_out = isinstance(sampler, str) and sampler in SAMPLERS and SAMPLERS[sampler].chooses_layers
    return list(layers or ()) == [target] and source is None and not leaves_out


class RatioSampler(DepthSampler):
    """Draws the ratio y = depth / N from a density that is stretched over the range of possible ratios.

    depth = clip(floor(y N), N, L), so with S(y) = P(ratio > y): P(depth >= d) = S(d/N) for N < d <= L, and
    P(depth >= N) = 1. y reaches below 1 and above L/N, which gives both ends mass.
    """

    @abstractmethod
    def survival(self, y: float, ratio: float) -> float:
        """S(y) for y within the support, where `ratio` = L / N."""

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        """P(depth = d) = P(depth >= d) - P(depth >= d + 1); at N = L the only depth is L."""
        deeper = (self.survival(d / layers, target / layers) for d in range(layers + 1, target + 1))
        at_least = [1.0, *deeper, 0.0]
        return {layers + i: at_least[i] - at_least[i + 1] for i in range(target - layers + 1)}


@sampler("lvps")
@dataclass(frozen=True)
class LVPS(RatioSampler):
    """Low-value-prioritized sampling (Apollo, section 3.2): y has density proportional to y^-k.

    k = 2 is the authors' hyperbola, k = 0 is flat, k = 1 log-uniform, a larger k shallower. The support is
    [lower, L/N + overshoot]; 0.6 and 0.4 are the constants of the authors' release.
    """

    k: Annotated[float, Field(ge=0)] = 2.0
    lower: Lower = 0.6
    overshoot: Overshoot = 0.4

    def survival(self, y: float, ratio: float) -> float:
        """S(y) = (b^p - y^p) / (b^p - a^p) on [a, b], p = 1 - k; written so that no large k overflows."""
        b = ratio + self.overshoot
        part, whole, p = math.log(b / y), math.log(b / self.lower), 1.0 - self.k
        if abs(p) * whole < 1e-9:  # the logarithmic limit, k = 1
            return part / whole
        return (y / self.lower) ** p * math.expm1(p * part) / math.expm1(p * whole)


@sampler("edge")
@dataclass(frozen=True)
class Edge(RatioSampler):
    """Mass at both ends: y = c / (1 + exp(20 (x - 1/2))) + lower, x uniform (the authors' ablation)."""

    lower: Lower = 0.6
    overshoot: Overshoot = 0.4
    steepness: Annotated[float, Field(gt=0)] = 20.0

    def survival(self, y: float, ratio: float) -> float:
        """y falls in x, so S(y) = x(y), the inverted sigmoid, clipped to [0, 1]."""
        height = ratio + self.overshoot - self.lower
        x = 0.5 + math.log(height / (y - self.lower) - 1.0) / self.steepness
        return min(max(x, 0.0), 1.0)


@sampler("uniform")
@dataclass(frozen=True)
class Uniform(DepthSampler):
    """All depths from N to L are equally likely."""

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        return dict.fromkeys(range(layers, target + 1), 1.0 / (target - layers + 1))


@sampler("full")
@dataclass(frozen=True)
class Full(DepthSampler):
    """Always the target depth L, over which the stored layers are shared."""

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        return {target: 1.0}


@sampler("shallow")
@dataclass(frozen=True)
class Shallow(DepthSampler):
    """Always the stored depth N: no sampling, as in StackBERT, G_stack and MIDAS."""

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        return {layers: 1.0}


@sampler("subset")
@dataclass(frozen=True)
class Subset(DepthSampler):
    """RaPTr (Panigrahi 2024): a random subset of the stored layers runs, always with the first and the last.

    `sizes` has the number of layers that run in each stage.
    """

    sizes: tuple[Count, ...]
    chooses_layers = True

    def in_stage(self, index: int) -> "Subset":
        return replace(self, sizes=self.sizes[index:])

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        return {self.sizes[0]: 1.0}

    def layers_run(self, depth: int, layers: int, random: Callable[[], np.random.Generator]) -> LayerMap:
        """All subsets of the layers between the first and the last are equally likely; their order stays."""
        if depth == layers:
            return tuple(range(layers))
        inner = random().choice(layers - 2, depth - 2, replace=False) + 1
        return (0, *sorted(inner.tolist()), layers - 1)

    def stage_problems(self, layers: Sequence[int]) -> list[str]:
        if len(self.sizes) != len(layers):
            return [
                f"sampler.sizes has {len(self.sizes)} values and schedule.layers {len(layers)}: give one for each "
                "stage"
            ]
        if any(not min(2, n) <= size <= n for size, n in zip(self.sizes, layers, strict=True)):
            return [
                f"sampler.sizes={list(self.sizes)}: each must be from 2, the first and the last layer, to the "
                f"stored layers of its stage, which are {list(layers)}"
            ]
        return []


@sampler("prefixes")
@dataclass(frozen=True)
class Prefixes(DepthSampler):
    """The first of bert2BERT's two stages (Chen 2022, section 3.4): run lower layers, train only the top of them.

    In the first `stages` the depth is a multiple of `multiple` up to the stored N, all equally likely; the lowest
    layers run, and the highest `trained` of them train. Afterwards all N layers run and train.
    """

    multiple: Count = 3
    trained: Count = 3
    stages: Count = 1
    chooses_layers = True

    def in_stage(self, index: int) -> DepthSampler:
        return self if index < self.stages else Shallow()

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        """The same for each multiple; 1 at N where there is no multiple."""
        depths = list(range(self.multiple, layers + 1, self.multiple)) or [layers]
        return dict.fromkeys(depths, 1 / len(depths))

    def layers_run(self, depth: int, layers: int, random: Callable[[], np.random.Generator]) -> LayerMap:
        return tuple(range(depth))

    def frozen(self, depth: int) -> int:
        return max(0, depth - self.trained)

    def stage_problems(self, layers: Sequence[int]) -> list[str]:
        found = []
        if self.trained < self.multiple:
            found.append(
                f"sampler.trained={self.trained}: with fewer than sampler.multiple={self.multiple} some layers "
                "would never train; make it larger"
            )
        for stored in layers[: self.stages]:
            if stored > self.multiple and (above := stored % self.multiple):
                fits = [str(m) for m in range(1, min(stored, self.trained) + 1) if stored % m == 0]
                found.append(
                    f"sampler.multiple={self.multiple}: the top {above} of {stored} stored layers would never run; "
                    f"type one of {', '.join(fits)}"
                )
        return found
