"""What a method saves at equal loss: curves, where they reach a target, intervals. Pure numbers.

    saving = 1 - cost / baseline's cost        speedup = baseline's cost / cost - 1

Papers mix the two; a saving of 45 % is a speedup of 82 %.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Cost:
    """What was spent up to a point: model FLOPs and training seconds."""

    flops: float
    seconds: float

    def of(self, axis: str) -> float:
        """`flops` or `seconds`."""
        return self.flops if axis == "flops" else self.seconds


@dataclass(frozen=True)
class Point:
    """An evaluation of the whole model: the step, what was spent until then, the loss in nats per prediction."""

    step: int
    cost: Cost
    loss: float


Curve = tuple[Point, ...]  # in the order of FLOPs


def curve(points: Iterable[Point]) -> Curve:
    """The points in the order of FLOPs; of several at one step the last one counts."""
    return tuple(sorted({point.step: point for point in points}.values(), key=lambda p: (p.cost.flops, p.step)))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over runs of cost and loss, at the steps that all of them have."""
    by_step = [{point.step: point for point in each} for each in curves]
    shared = set.intersection(*map(set, by_step)) if by_step else set()
    return curve(_mean_point([points[step] for points in by_step]) for step in shared)


def crossing(line: Curve, target: float) -> Cost | None:
    """Where the loss is first at or below the target, linear between two evaluations; None if it never is.

    Nothing is extrapolated: the first evaluation counts as it is, whatever was before it.
    """
    first = next((i for i, point in enumerate(line) if point.loss <= target), None)
    return None if first is None else _between(line, first, target)


def crossing_for_good(line: Curve, target: float) -> Cost | None:
    """Where the loss comes to the target and stays at or below it until the end; None if it is above it there."""
    above = [i for i, point in enumerate(line) if not point.loss <= target]
    first = above[-1] + 1 if above else 0
    return None if first == len(line) else _between(line, first, target)


def loss_at(line: Curve, flops: float) -> float | None:
    """The loss after so many FLOPs, linear between two evaluations; None before the first and after the last."""
    spent = [point.cost.flops for point in line]
    i = bisect_left(spent, flops)
    if i == len(line) or (i == 0 and spent[0] != flops):
        return None
    if spent[i] == flops:
        return line[i].loss
    share = (flops - spent[i - 1]) / (spent[i] - spent[i - 1])
    return line[i - 1].loss + share * (line[i].loss - line[i - 1].loss)


def saving(cost: float, baseline: float) -> float:
    """1 - cost / baseline, for a baseline that costs something."""
    return 1 - cost / baseline


def speedup(cost: float, baseline: float) -> float:
    """Baseline / cost - 1; infinite for what costs nothing."""
    return baseline / cost - 1 if cost else math.inf


def _between(line: Curve, i: int, target: float) -> Cost:
    """Where the target lies on the way to point i, which is at or below it; the point before is above it."""
    here = line[i]
    if i == 0 or here.loss == target or not math.isfinite(line[i - 1].loss):
        return here.cost
    before = line[i - 1]
    share = (before.loss - target) / (before.loss - here.loss)
    return Cost(
        before.cost.flops + share * (here.cost.flops - before.cost.flops),
        before.cost.seconds + share * (here.cost.seconds - before.cost.seconds),
    )


def _mean_point(points: Sequence[Point]) -> Point:
    flops, seconds = (fmean(point.cost.of(axis) for point in points) for axis in ("flops", "seconds"))
    return Point(points[0].step, Cost(flops, seconds), fmean(point.loss for point in points))
