"""Stages: how many layers are stored in which span of steps."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf
from typing import Literal

Trained = Literal["all", "new"]
When = Literal["ends", "plateau"]
_SMALLEST_SHARE = 1e-9  # of all steps: a run has no more than a plan counts
_MOST_TRIED = 10_000  # numbers of steps, to name the smallest that a schedule allows


@dataclass(frozen=True)
class Stage:
    """A span of steps, `first_step` <= step < `end_step`, with one number of stored layers and one width.

    The lowest `frozen` layers run forward only; `width` is the share of the target's hidden, heads and ffn.
    """

    layers: int
    first_step: int
    end_step: int
    frozen: int = 0
    width: float = 1.0

    @property
    def steps(self) -> int:
        return self.end_step - self.first_step


def layers_of(entry: object, target: int) -> object:
    """The number of layers for an entry like L, L/4 or 3L/4, where L is `target`; any other entry unchanged.

    Rounded half up, at least 1.
    """
    if not isinstance(entry, str) or not (part := re.fullmatch(r"([1-9]\d{0,3})?L(?:/([1-9]\d{0,3}))?", entry)):
        return entry
    times, parts = int(part[1] or 1), int(part[2] or 1)
    return max(1, (2 * times * target + parts) // (2 * parts))


def schedule_problems(
    layers: Sequence[int],
    ends: Sequence[float],
    trained: Sequence[Trained] | None = None,
    widths: Sequence[float] | None = None,
) -> list[str]:
    """Messages about invalid stages: `layers` stored until the cumulative shares `ends` of all steps."""
    found, stages = [], len(layers) or 1
    if not layers:
        found.append("schedule.layers is empty: give the stored layers of each stage, for example [1,3,6,12]")
    elif layers[0] < 0 or layers[-1] < 1 or any(b < a for a, b in pairwise(layers)):
        found.append(
            f"schedule.layers={list(layers)}: must be 0 or more, end at 1 or more, and never fall, stage by stage"
        )
    if len(ends) != len(layers):
        found.append(
            f"schedule.ends has {len(ends)} values and schedule.layers {len(layers)}: give one for each stage"
        )
    if trained is not None and len(trained) != len(layers):
        found.append(
            f"schedule.trained has {len(trained)} values and schedule.layers {len(layers)}: give one for each "
            "stage, or null to train all layers"
        )
    elif trained is not None:
        for stage, (before, n, which) in enumerate(zip((0, *layers), layers, trained, strict=False), 1):
            if which == "new" and n == before:
                found.append(f"schedule.trained={list(trained)}: stage {stage} adds no layer; make it all there")
            elif which == "new" and stage > 1 and not before:
                found.append(
                    f"schedule.trained={list(trained)}: before stage {stage} there is no layer; make it all there"
                )
    if widths is not None and len(widths) != len(layers):
        found.append(
            f"schedule.widths has {len(widths)} values and schedule.layers {len(layers)}: give one for each "
            "stage, or null for the whole width"
        )
    elif widths is not None and not _rise_to_one(widths):
        found.append(
            f"schedule.widths={list(widths)}: these are shares of the model's width, above 0; they must never fall "
            f"and end at 1; for example [{','.join(['0.5'] * (len(widths) - 1) + ['1'])}]"
        )
    if not ends or ends[-1] != 1 or ends[0] <= 0 or any(b <= a for a, b in pairwise(ends)):
        found.append(
            f"schedule.ends={list(ends)}: these are cumulative shares of all steps and must rise to 1; for example "
            f"[{','.join(f'{stage / stages:.3g}' for stage in range(1, stages + 1))}]"
        )
    elif (least := min(end - start for start, end in pairwise((0.0, *ends)))) < _SMALLEST_SHARE:
        found.append(
            f"schedule.ends={list(ends)}: a stage has {least:.3g} of all steps, and no run is long enough for it; "
            f"give each {_SMALLEST_SHARE:g} or more"
        )
    return found


def _rise_to_one(widths: Sequence[float]) -> bool:
    return bool(widths) and widths[0] > 0 and widths[-1] == 1 and all(a <= b for a, b in pairwise(widths))


def is_on_plateau(losses: Sequence[float], window: int, threshold: float) -> bool:
    """Whether none of the last `window` losses was lower than the best one before by more than a share `threshold`.

    As PyTorch's ReduceLROnPlateau with a relative threshold finds it: the first loss is the best one; a loss that
    is low enough becomes the best one.
    """
    best, stale = inf, 0
    for loss in losses:
        best, stale = (loss, 0) if loss < best * (1 - threshold) else (best, stale + 1)
    return stale >= window


def min_steps(ends: Sequence[float], ended: Sequence[int] = ()) -> int:
    """The number of steps from which on every stage has at least one.

    `ended` are the steps at which the first stages have ended, whatever `ends` says of them.
    """
    share = min(end - start for start, end in pairwise((0.0, *ends)))
    shortest = ceil(1 / share - 1e-9)  # 1 - 0.8 is a little less than 0.2 in floats
    if not _all_have_a_step(shortest, ends):  # its ends are a little less than halves
        shortest += 1
    return max(shortest, ceil((ended[-1] + 1) / ends[len(ended)])) if ended else shortest


def shorter_steps(ends: Sequence[float]) -> Iterator[int]:
    """Numbers of steps below `min_steps` at which every stage has a step as well, the largest first.

    Of a schedule with a very short stage not all are tried.
    """
    enough = min_steps(ends)
    numbers = range(enough - 1, max(0, enough - 1 - _MOST_TRIED), -1)
    return (steps for steps in numbers if _all_have_a_step(steps, ends))


def _boundaries(steps: int, ends: Sequence[float], ended: Sequence[int] = ()) -> list[int]:
    """The first step of each stage, and the number of steps."""
    return [0, *ended, *(int(end * steps + 0.5) for end in ends[len(ended) :])]


def _all_have_a_step(steps: int, ends: Sequence[float]) -> bool:
    return all(first < end for first, end in pairwise(_boundaries(steps, ends)))


def _fewest_steps(more_than: int, ends: Sequence[float]) -> str:
    """The smallest number of steps above this one with which no stage is empty, or one that is large enough."""
    enough = min_steps(ends)
    tried = range(more_than + 1, min(enough, more_than + _MOST_TRIED) + 1)
    least = next((steps for steps in tried if _all_have_a_step(steps, ends)), None)
    return (
        f"{enough} is a number of steps that" if least is None else f"{least} is the smallest number of steps that"
    )


@dataclass(frozen=True)
class Schedule:
    """The stages of a run, in order, without gaps; `extended_from` has the lengths before each extension."""

    stages: tuple[Stage, ...]
    extended_from: tuple[int, ...] = ()

    @classmethod
    def over(
        cls,
        steps: int,
        layers: Sequence[int],
        ends: Sequence[float],
        trained: Sequence[Trained] | None = None,
        widths: Sequence[float] | None = None,
        ended: Sequence[int] = (),
    ) -> "Schedule":
        """Stages of `layers` that end at the cumulative shares `ends` of `steps`, rounded to whole steps.

        Where `trained` is `new`, only the layers that the stage adds train. Without `widths`, all stages have the
        whole width. The first stages have ended at the steps `ended`, if any are given. A ValueError if the stages
        are not valid, or one of them would have no step.
        """
        if found := schedule_problems(layers, ends, trained, widths):
            raise ValueError("; ".join(found))
        if len(ended) >= len(layers):
            raise ValueError(f"{len(ended)} of {len(layers)} stages have ended: the last one ends with the run")
        boundaries = _boundaries(steps, ends, ended)
        for stage, (first, end) in enumerate(pairwise(boundaries), 1):
            if end <= first:
                raise ValueError(
                    f"stage {stage} of {len(layers)} ({layers[stage - 1]} layers) would have no step in a "
                    f"run of {steps}: {_fewest_steps(steps, ends)} these schedule.ends allow"
                )
        whole = ("all",) * len(layers)
        frozen = [old if which == "new" else 0 for old, which in zip((0, *layers), trained or whole, strict=False)]
        shares = widths or (1.0,) * len(layers)
        return cls(tuple(map(Stage, layers, boundaries, boundaries[1:], frozen, shares)))

    def extended(self, steps: int) -> "Schedule":
        """The same stages, the last of which goes on until `steps`; a ValueError if that is no later than now."""
        if steps <= self.steps:
            raise ValueError(f"the run is planned with {self.steps} steps, and it becomes no shorter: type more")
        *before, last = self.stages
        return Schedule((*before, replace(last, end_step=steps)), (*self.extended_from, self.steps))

    @property
    def before_extension(self) -> "Schedule":
        *earlier, end = self.extended_from
        *before, last = self.stages
        return Schedule((*before, replace(last, end_step=end)), tuple(earlier))

    @property
    def steps(self) -> int:
        return self.stages[-1].end_step

    @property
    def first_planned(self) -> int:
        """The steps before any extension, of which warmup, gates and the ends of stages are shares."""
        return (*self.extended_from, self.steps)[0]

    @property
    def growth_steps(self) -> tuple[int, ...]:
        """The steps before which layers or width grow."""
        return tuple(b.first_step for a, b in pairwise(self.stages) if (a.layers, a.width) != (b.layers, b.width))

    @property
    def grows_in_width(self) -> bool:
        return self.stages[0].width != self.stages[-1].width

    def index(self, step: int) -> int:
        """The index of the stage of `step`; the end of the run belongs to the last stage."""
        return bisect_right([stage.first_step for stage in self.stages[1:]], step)

    def ended(self, step: int) -> tuple[int, ...]:
        """The ends of the stages that are over at `step`."""
        return tuple(stage.end_step for stage in self.stages[: self.index(step)])

    def at(self, step: int) -> Stage:
        return self.stages[self.index(step)]

    def number(self, step: int, layers: int, width: float = 1.0) -> int:
        """The stage, counted from 1, of a model of this size at `step`: just before a growth, the one that ends."""
        reached = self.stages[: self.index(step) + 1]
        sizes = [(stage.layers, stage.width) for stage in reached]
        return max((i for i, size in enumerate(sizes, 1) if size == (layers, width)), default=1)
