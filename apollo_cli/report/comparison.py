"""The comparison of a family: the baseline, the target, and what each method takes to get there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from apollo_cli.errors import DataError
from apollo_cli.intervals import Interval, interval
from apollo_cli.report import savings
from apollo_cli.report.groups import Family, Group
from apollo_cli.report.runs import Run
from apollo_cli.report.savings import Cost, Curve, Point

AXES = ("flops", "seconds")


@dataclass(frozen=True)
class Question:
    """What is asked of all families.

    Attributes:
        baseline: a label, or a folder with the baseline's runs; None for the only scratch group.
        target_loss: None for the baseline's final loss.
        at_flops: where losses are to be compared at an equal budget, too.
    """

    baseline: str | None = None
    target_loss: float | None = None
    at_flops: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What one run reached.

    Attributes:
        run: it.
        curve: evaluations of the whole model.
        final: its last one; None while there is none.
        cost: where it first reaches the target; None if it does not.
        cost_for_good: from where on it stays there; None if it does not.
        at_flops: its loss at the budget that was asked for.
    """

    run: Run
    curve: Curve
    final: float | None
    cost: Cost | None
    cost_for_good: Cost | None
    at_flops: float | None

    @property
    def source(self) -> Cost:
        """What the model took that it began from; it is counted in the curve and the costs."""
        return Cost(self.run.source_flops or 0, self.run.source_seconds)


@dataclass(frozen=True)
class Target:
    """The loss that all are to reach; `interval` is that of the baseline's seeds, None where it was typed."""

    loss: float
    interval: Interval | None


@dataclass(frozen=True)
class Method:
    """A group, measured.

    Attributes:
        label: of the group.
        outcomes: of its runs, one a seed.
        is_baseline: whether it is what the others are measured by.
        baseline_cost: of the target; None where there is none to measure by.
        moved: mean saving in FLOPs with the target at the lower and the upper end of its interval; None for an end
            that is not reached by all.
    """

    label: str
    outcomes: tuple[Outcome, ...]
    is_baseline: bool
    baseline_cost: Cost | None
    moved: tuple[float | None, float | None] | None

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Those that have an end: of completed runs, or of all where none is."""
        return _ended([outcome.run for outcome in self.outcomes])

    @cached_property
    def curve(self) -> Curve:
        """The mean over the seeds whose curves have an end."""
        return savings.mean_curve(self.curves)

    @property
    def has_ended(self) -> bool:
        """Whether a run of it is completed."""
        return any(outcome.run.status == "completed" for outcome in self.outcomes)

    @property
    def reached(self) -> int:
        """How many runs reach the target."""
        return sum(outcome.cost is not None for outcome in self.outcomes)

    @property
    def final(self) -> Interval | None:
        """The final loss of completed runs; the last one of all where none is completed."""
        return _interval([line[-1].loss for line in self.curves])

    @property
    def at_flops(self) -> Interval | None:
        """The loss at the asked budget; None where a run has none there."""
        return _interval([outcome.at_flops for outcome in self.outcomes])

    def cost(self, axis: str) -> Interval | None:
        """FLOPs or seconds to the target; None unless all runs reach it. The baseline's is its mean curve's."""
        if self.is_baseline and self.baseline_cost:
            return Interval(self.baseline_cost.of(axis), None, len(self.outcomes))
        return _interval([outcome.cost.of(axis) if outcome.cost else None for outcome in self.outcomes])

    def saving(self, axis: str) -> Interval | None:
        """1 - cost / baseline's cost, run by run; None for the baseline and without a mean cost."""
        return self._against(savings.saving, axis)

    def speedup(self, axis: str) -> Interval | None:
        """Baseline's cost / cost - 1, run by run; None as for the saving."""
        return self._against(savings.speedup, axis)

    def saving_without_source(self, axis: str) -> Interval | None:
        """The saving if what the models took that these runs began from is not counted, as some papers do."""
        if self.is_baseline or self.baseline_cost is None:
            return None
        own = [o.cost.of(axis) - o.source.of(axis) if o.cost else None for o in self.outcomes]
        baseline = self.baseline_cost.of(axis)
        return _interval([None if cost is None else savings.saving(cost, baseline) for cost in own])

    def _against(self, ratio: Callable[[float, float], float], axis: str) -> Interval | None:
        if self.is_baseline or self.baseline_cost is None:
            return None
        baseline = self.baseline_cost.of(axis)
        return _interval([ratio(o.cost.of(axis), baseline) if o.cost else None for o in self.outcomes])


@dataclass(frozen=True)
class Comparison:
    """A family, compared.

    Attributes:
        family: it.
        question: what was asked.
        candidates: the groups that may be the baseline; exactly one is.
        target: None where there is no baseline and none was typed.
        baseline_cost: of the target; None where there is nothing to measure by.
        methods: the baseline first.
    """

    family: Family
    question: Question
    candidates: tuple[Group, ...]
    target: Target | None
    baseline_cost: Cost | None
    methods: tuple[Method, ...]

    @property
    def baseline(self) -> Method | None:
        """What the others are measured by."""
        return next((method for method in self.methods if method.is_baseline), None)

    @property
    def reference(self) -> tuple[Curve, ...]:
        """The baseline's curves that have an end."""
        return self.baseline.curves if self.baseline else ()


def compare(families: Sequence[Family], question: Question) -> list[Comparison]:
    """Every family by itself.

    Raises:
        DataError: the baseline that was asked for is in none of them, or is not one group.
    """
    chosen, problems = [], []
    for family in families:
        groups = _baselines(family, question.baseline)
        chosen.append(groups)
        if question.baseline and len(groups) > 1:
            labels = ", ".join(group.label for group in groups)
            problems.append(f"--baseline {question.baseline} means several methods: {labels}; type one of them")
    if question.baseline and not any(chosen):
        labels = ", ".join(group.label for family in families for group in family.groups)
        asked = f"--baseline {question.baseline}"
        problems.append(f"{asked} is none of the methods, no words of one, and no folder of runs: {labels}")
    if problems:
        raise DataError("\n".join(problems))
    return [_compare(family, groups, question) for family, groups in zip(families, chosen, strict=True)]


def whole_model(run: Run) -> Curve:
    """The evaluations of the whole model; the loss of fewer layers or units is another model's.

    At a growth the row after it counts. A loss that is not finite is above every target.
    """
    rows = [row for row in run.evaluations if run.is_whole(row)]
    return savings.curve(point(row) for row in rows)


def point(row: dict[str, float]) -> Point:
    """An evaluation row on a curve."""
    loss = row["eval/loss"]
    finite = loss is not None and math.isfinite(loss)
    return Point(int(row["step"]), Cost(row["flops"], row["train_seconds"]), loss if finite else math.inf)


def _baselines(family: Family, asked: str | None) -> list[Group]:
    """The groups that are asked for as the baseline, or all that train from scratch.

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
    reference = _ended(baseline.runs) if baseline else ()
    target = _target(question, reference)
    cost = _baseline_cost(reference, target)
    groups = sorted(family.groups, key=lambda group: group is not baseline)
    methods = tuple(_method(group, target, cost, question, is_baseline=group is baseline) for group in groups)
    return Comparison(family, question, tuple(candidates), target, cost, methods)


def _ended(runs: Sequence[Run]) -> tuple[Curve, ...]:
    """The curves that have an end: of completed runs, or of all where none is."""
    measured = [(run, line) for run in runs if (line := whole_model(run))]
    completed = [line for run, line in measured if run.status == "completed"]
    return tuple(completed or [line for _, line in measured])


def _interval(values: Sequence[float | None]) -> Interval | None:
    """None unless every run has a value."""
    known = [value for value in values if value is not None]
    return interval(known) if known and len(known) == len(values) else None


def _target(question: Question, reference: Sequence[Curve]) -> Target | None:
    if question.target_loss is not None:
        return Target(question.target_loss, None)
    if not reference:
        return None
    finals = interval([line[-1].loss for line in reference])
    return Target(finals.mean, finals) if math.isfinite(finals.mean) else None


def _baseline_cost(reference: Sequence[Curve], target: Target | None) -> Cost | None:
    """What the baseline's mean curve takes to the target: its end, unless it was there before.

    Where seeds end at different steps, as under a budget in seconds, the mean of their ends stands for the end.
    """
    if not reference or target is None:
        return None
    cost = savings.crossing(savings.mean_curve(reference), target.loss)
    if cost is None and target.interval:
        ends = [line[-1].cost for line in reference]
        cost = Cost(fmean(end.flops for end in ends), fmean(end.seconds for end in ends))
    return cost if cost and cost.flops and cost.seconds else None


def _method(
    group: Group, target: Target | None, cost: Cost | None, question: Question, *, is_baseline: bool
) -> Method:
    outcomes = []
    for run in group.runs:
        line = whole_model(run)
        outcomes.append(
            Outcome(
                run=run,
                curve=line,
                final=line[-1].loss if line else None,
                cost=savings.crossing(line, target.loss) if target else None,
                cost_for_good=savings.crossing_for_good(line, target.loss) if target else None,
                at_flops=None if question.at_flops is None else savings.loss_at(line, question.at_flops),
            )
        )
    moved = None if is_baseline else _moved([outcome.curve for outcome in outcomes], target, cost)
    return Method(group.label, tuple(outcomes), is_baseline, cost, moved)


def _moved(
    curves: Sequence[Curve], target: Target | None, cost: Cost | None
) -> tuple[float | None, float | None] | None:
    """The mean saving at both ends of the target's interval, at the baseline's cost; None where there is none."""
    if cost is None or target is None or target.interval is None or target.interval.ends is None:
        return None

    def saved(loss: float) -> float | None:
        costs = [savings.crossing(line, loss) for line in curves]
        found = [savings.saving(each.flops, cost.flops) for each in costs if each]
        return fmean(found) if found and len(found) == len(costs) else None

    low, high = map(saved, target.interval.ends)
    return low, high
