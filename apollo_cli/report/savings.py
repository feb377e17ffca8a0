"""Savings at equal loss: curves, where they reach a target, ratios of costs.

    saving = 1 - cost / baseline's cost        speedup = baseline's cost / cost - 1

Papers mix the two; a saving of 45 % is a speedup of 82 %.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np


@dataclass(frozen=True)
class Cost:
    """Model FLOPs and training seconds up to a point."""

    flops: float
    seconds: float

    def of(self, axis: str) -> float:
        return self.flops if axis == "flops" else self.seconds


@dataclass(frozen=True)
class Point:
    """An evaluation: the step, the cost up to it, the loss in nats per prediction."""

    step: int
    cost: Cost
    loss: float


Curve = tuple[Point, ...]  # in the order of FLOPs


def make_curve(points: Iterable[Point]) -> Curve:
    """The points in the order of FLOPs; of several at one step the last one counts."""
    return tuple(sorted({point.step: point for point in points}.values(), key=lambda p: (p.cost.flops, p.step)))


def aligned(curves: Sequence[Curve], *, with_ends: bool = True) -> list[tuple[Point, ...]]:
    """The points at each step that all curves have, one a curve; and all first points, and all last ones.

    Runs of equal FLOPs grow, and so begin and end the curves of their stages, at different steps. `with_ends` is
    false for runs that are under way, whose last points are not at a common place.
    """
    by_step = [{point.step: point for point in curve} for curve in curves]
    shared = sorted(set.intersection(*map(set, by_step))) if by_step else []
    found = [tuple(points[step] for points in by_step) for step in shared]
    first, last = (tuple(curve[end] for curve in curves) for end in (0, -1))
    if len({point.step for point in first}) > 1:
        found.insert(0, first)
    if with_ends and len({point.step for point in last}) > 1:
        found.append(last)
    return found


def mean_curve(curves: Sequence[Curve], *, with_ends: bool = True) -> Curve:
    """The mean over runs of cost and loss at their aligned points."""
    return tuple(
        Point(
            round(fmean(p.step for p in points)),
            Cost(fmean(p.cost.flops for p in points), fmean(p.cost.seconds for p in points)),
            fmean(p.loss for p in points),
        )
        for points in aligned(curves, with_ends=with_ends)
    )


def crossing(curve: Curve, target: float, *, for_good: bool = False) -> Cost | None:
    """Where the loss is first at or below it, linear between two evaluations; None if it never is.

    `for_good`: from where on it stays there until the end. Nothing is extrapolated: where the first evaluation is
    below the target, its cost is the result.
    """
    reached = [i for i, point in enumerate(curve) if point.loss <= target]
    if for_good:
        above = [i for i, point in enumerate(curve) if not point.loss <= target]
        reached = list(range(above[-1] + 1 if above else 0, len(curve)))
    if not reached:
        return None
    here, before = curve[reached[0]], curve[max(0, reached[0] - 1)]
    if here is before or here.loss == target or not math.isfinite(before.loss):
        return here.cost
    share = (before.loss - target) / (before.loss - here.loss)
    return Cost(
        before.cost.flops + share * (here.cost.flops - before.cost.flops),
        before.cost.seconds + share * (here.cost.seconds - before.cost.seconds),
    )


def loss_at(curve: Curve, flops: float) -> float | None:
    """The loss after so many FLOPs, linear between two evaluations; None before the first and after the last."""
    if not curve or not curve[0].cost.flops <= flops <= curve[-1].cost.flops:
        return None
    return float(np.interp(flops, [point.cost.flops for point in curve], [point.loss for point in curve]))


def lowest_within(curve: Curve, flops: float) -> float:
    """The lowest loss for at most so many FLOPs, linear between two evaluations; infinite before the first."""
    at_end = loss_at(curve, flops)
    return min(
        [p.loss for p in curve if p.cost.flops <= flops] + ([] if at_end is None else [at_end]), default=math.inf
    )


def scratch_cost(rungs: Curve, loss: float, axis: str) -> float | None:
    """FLOPs or seconds of a scratch run that ends at this loss; None beyond the budgets of `rungs`.

    Linear in the logarithm of the cost between two budgets: against the cost itself the loss is convex, so that a
    straight line would lie above it and favour the method.
    """
    costs = [p.cost.of(axis) for p in rungs]
    if not rungs or min(costs) <= 0 or not rungs[-1].loss <= loss <= rungs[0].loss:
        return None
    logs = [replace(p, cost=Cost(math.log(cost), 0.0)) for p, cost in zip(rungs, costs, strict=True)]
    cost = crossing(tuple(logs), loss)
    return math.exp(cost.flops) if cost else None


def saving(cost: float, baseline: float) -> float:
    return 1 - cost / baseline


def speedup(cost: float, baseline: float) -> float:
    return baseline / cost - 1 if cost else math.inf
