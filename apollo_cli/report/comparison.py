"""Comparison of the methods of a family: the baseline, the target loss, and what each method needs to reach it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apollo_cli.errors import DataError
from apollo_cli.intervals import Interval, interval_of_all
from apollo_cli.report import savings
from apollo_cli.report.groups import Family, Group
from apollo_cli.report.runs import Run
from apollo_cli.report.savings import Cost, Curve, Point

AXES = ("flops", "seconds")


@dataclass(frozen=True)
class Question:
    """What is asked of every family."""

    baseline: str | None = None  # a label, words of one, or a folder of runs; None for the only scratch group
    target_loss: float | None = None  # None for the baseline's final loss
    at_flops: float | None = None  # a budget at which the losses are compared too


@dataclass(frozen=True)
class Outcome:
    """What one run reached; None where there is no such evaluation."""

    run: Run
    curve: Curve  # of the whole model
    final: float | None  # loss
    cost: Cost | None  # where the loss first reaches the target
    cost_for_good: Cost | None  # from where on the loss stays at the target
    at_flops: float | None  # loss at the budget of the question

    @property
    def source(self) -> Cost:
        """Cost of the model that the run was initialized from; curve and costs include it."""
        return Cost(self.run.source_flops or 0, self.run.source_seconds)


@dataclass(frozen=True)
class Target:
    """The target loss; `interval` is over the baseline's seeds, None where the target was typed."""

    loss: float
    interval: Interval | None


@dataclass(frozen=True)
class Method:
    """A group with its results."""

    label: str
    outcomes: tuple[Outcome, ...]  # one a seed
    is_baseline: bool
    baseline_cost: Cost | None  # of the target
    moved: tuple[float | None, float | None] | None  # saving in FLOPs with the target at the ends of its interval

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Curves of the completed runs, or of all where none is completed."""
        return _final_curves([outcome.run for outcome in self.outcomes])

    @cached_property
    def curve(self) -> Curve:
        """The mean of `curves`."""
        return savings.mean_curve(self.curves)

    @property
    def has_ended(self) -> bool:
        return any(outcome.run.status == "completed" for outcome in self.outcomes)

    @property
    def reached(self) -> int:
        """The number of runs that reach the target."""
        return sum(outcome.cost is not None for outcome in self.outcomes)

    @property
    def final(self) -> Interval | None:
        """The final loss of completed runs; the last one of all where none is completed."""
        return interval_of_all([curve[-1].loss for curve in self.curves])

    @property
    def at_flops(self) -> Interval | None:
        """The loss at the budget of the question; None where a run has none there."""
        return interval_of_all([outcome.at_flops for outcome in self.outcomes])

    def cost(self, axis: str) -> Interval | None:
        """FLOPs or seconds to the target; None unless all runs reach it. The baseline's is its mean curve's."""
        if self.is_baseline and self.baseline_cost:
            return Interval(self.baseline_cost.of(axis), None, len(self.outcomes))
        return interval_of_all([outcome.cost.of(axis) if outcome.cost else None for outcome in self.outcomes])

    def saving(self, axis: str) -> Interval | None:
        """1 - cost / baseline's cost, run by run; None for the baseline and without a mean cost."""
        return self._ratio(savings.saving, axis)

    def speedup(self, axis: str) -> Interval | None:
        """Baseline's cost / cost - 1, run by run; None as for the saving."""
        return self._ratio(savings.speedup, axis)

    def saving_without_source(self, axis: str) -> Interval | None:
        """The saving where the cost of the runs' source models is not counted, as in some papers."""
        return self._ratio(savings.saving, axis, with_source=False)

    def _ratio(
        self, ratio: Callable[[float, float], float], axis: str, *, with_source: bool = True
    ) -> Interval | None:
        if self.is_baseline or self.baseline_cost is None:
            return None
        baseline = self.baseline_cost.of(axis)
        return interval_of_all(
            [
                ratio(o.cost.of(axis) - (0 if with_source else o.source.of(axis)), baseline) if o.cost else None
                for o in self.outcomes
            ]
        )


@dataclass(frozen=True)
class Comparison:
    """A family's results; without a baseline or a typed target there is no target, and then no baseline_cost."""

    family: Family
    question: Question
    candidates: tuple[Group, ...]  # that may be the baseline; it is known if there is exactly one
    target: Target | None
    baseline_cost: Cost | None  # of the target
    methods: tuple[Method, ...]  # the baseline first

    @property
    def baseline(self) -> Method | None:
        return next((method for method in self.methods if method.is_baseline), None)

    @property
    def reference(self) -> tuple[Curve, ...]:
        """The baseline's curves; none without a baseline."""
        return self.baseline.curves if self.baseline else ()


def compare(families: Sequence[Family], question: Question) -> list[Comparison]:
    """One comparison a family.

    Raises:
        DataError: the baseline of the question is in no family, or is several groups of one.
    """
    candidates = [_baseline_candidates(family, question.baseline) for family in families]
    asked, problems = f"--baseline {question.baseline}", []
    if question.baseline and not any(candidates):
        labels = ", ".join(group.label for family in families for group in family.groups)
        problems.append(f"{asked} is none of the methods, no words of one, and no folder of runs: {labels}")
    for groups in candidates:
        if question.baseline and len(groups) > 1:
            labels = ", ".join(group.label for group in groups)
            problems.append(f"{asked} means several methods: {labels}; type one of them")
    if problems:
        raise DataError("\n".join(problems))
    return [_compare(family, groups, question) for family, groups in zip(families, candidates, strict=True)]


def whole_model(run: Run) -> Curve:
    """The evaluations of the whole model: the loss of fewer layers or units is that of another model.

    Of the two rows at a growth the one after it counts. A loss that is not finite is above every target.
    """
    return savings.make_curve(evaluation_point(row) for row in run.evaluations if run.is_whole(row))


def evaluation_point(row: dict[str, float]) -> Point:
    """An evaluation row as a point of a curve."""
    loss = row["eval/loss"]
    finite = loss is not None and math.isfinite(loss)
    return Point(int(row["step"]), Cost(row["flops"], row["train_seconds"]), loss if finite else math.inf)


def _baseline_candidates(family: Family, asked: str | None) -> list[Group]:
    """The groups that `asked` means, or all that train from scratch.

    Of several from scratch those count that are as deep as what grows.
    """
    groups = family.groups
    if asked is None:
        grown = {group.runs[0].target_layers for group in groups if not group.is_scratch}
        bases = [group for group in groups if group.is_scratch]
        return [group for group in bases if group.runs[0].target_layers in grown] or bases
    if named := [group for group in groups if group.label == asked]:
        return named
    folder = Path(asked).resolve()
    inside = [g for g in groups if any(Path(run.place).resolve().is_relative_to(folder) for run in g.runs)]
    return inside or [group for group in groups if set(asked.split()) <= set(group.label.split())]


def _compare(family: Family, candidates: Sequence[Group], question: Question) -> Comparison:
    baseline = candidates[0] if len(candidates) == 1 else None
    reference = _final_curves(baseline.runs) if baseline else ()
    target = _target(question, reference)
    cost = _baseline_cost(reference, target)
    groups = sorted(family.groups, key=lambda group: group is not baseline)
    methods = tuple(_method(group, target, cost, question, is_baseline=group is baseline) for group in groups)
    return Comparison(family, question, tuple(candidates), target, cost, methods)


def _final_curves(runs: Sequence[Run]) -> tuple[Curve, ...]:
    """Curves of the completed runs, or of all where none is completed."""
    curves = [(run, curve) for run in runs if (curve := whole_model(run))]
    completed = [curve for run, curve in curves if run.status == "completed"]
    return tuple(completed or [curve for _, curve in curves])


def _target(question: Question, reference: Sequence[Curve]) -> Target | None:
    if question.target_loss is not None:
        return Target(question.target_loss, None)
    finals = interval_of_all([curve[-1].loss for curve in reference])
    return Target(finals.mean, finals) if finals and math.isfinite(finals.mean) else None


def _baseline_cost(reference: Sequence[Curve], target: Target | None) -> Cost | None:
    """Cost of the target on the baseline's mean curve: its end, unless the loss was reached before.

    Where seeds end at different steps, as under a budget in seconds, the mean of their ends stands for the end.
    """
    if not reference or target is None:
        return None
    cost = savings.crossing(savings.mean_curve(reference), target.loss)
    if cost is None and target.interval:
        cost = savings.mean_cost([curve[-1].cost for curve in reference])
    return cost if cost and cost.flops and cost.seconds else None


def _method(
    group: Group, target: Target | None, cost: Cost | None, question: Question, *, is_baseline: bool
) -> Method:
    outcomes = []
    for run in group.runs:
        curve = whole_model(run)
        outcomes.append(
            Outcome(
                run=run,
                curve=curve,
                final=curve[-1].loss if curve else None,
                cost=savings.crossing(curve, target.loss) if target else None,
                cost_for_good=savings.crossing_for_good(curve, target.loss) if target else None,
                at_flops=None if question.at_flops is None else savings.loss_at(curve, question.at_flops),
            )
        )
    moved = None
    if not is_baseline and cost and target and target.interval and target.interval.ends:
        low, high = target.interval.ends
        curves = [outcome.curve for outcome in outcomes]
        moved = (_mean_saving(curves, low, cost), _mean_saving(curves, high, cost))
    return Method(group.label, tuple(outcomes), is_baseline, cost, moved)


def _mean_saving(curves: Sequence[Curve], loss: float, baseline_cost: Cost) -> float | None:
    """The mean saving in FLOPs at a target loss; None unless all curves reach it."""
    costs = [savings.crossing(curve, loss) for curve in curves]
    saved = interval_of_all([savings.saving(cost.flops, baseline_cost.flops) if cost else None for cost in costs])
    return saved.mean if saved else None
