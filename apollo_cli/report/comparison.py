"""Comparison of the methods of a family: the baseline, the target loss, and what each method needs to reach it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apollo_cli.errors import DataError
from apollo_cli.intervals import Interval, interval_of_all
from apollo_cli.report import savings
from apollo_cli.report.groups import Family, Group
from apollo_cli.report.groups import families as families_of
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
class Target:
    """A loss to reach, and what it costs the baseline; no cost where it is not reached, or at once."""

    loss: float
    interval: Interval | None = None  # over the baseline's seeds; None where the loss was typed
    cost: Cost | None = None
    cost_for_good: Cost | None = None  # from where on the baseline stays at the loss; None if it does not


@dataclass(frozen=True)
class Outcome:
    """What one run reached; None where there is no such evaluation."""

    run: Run
    curve: Curve  # of the whole model
    target: Target | None  # of the baseline's run of the same seed if the method is paired, else of all its runs
    cost: Cost | None  # where the loss first reaches the target
    cost_for_good: Cost | None  # from where on the loss stays at the target
    at_flops: float | None  # loss at the budget of the question

    @property
    def saving_for_good(self) -> float | None:
        """The saving in FLOPs, counted from where both stay at the target; None where one does not."""
        if self.cost_for_good is None or self.target is None or self.target.cost_for_good is None:
            return None
        return savings.saving(self.cost_for_good.flops, self.target.cost_for_good.flops)

    @property
    def source(self) -> Cost:
        """Cost of the model that the run was initialized from; curve and costs include it."""
        return Cost(self.run.source_flops or 0, self.run.source_seconds)

    def ratio(self, of: Callable[[float, float], float], axis: str, *, with_source: bool = True) -> float | None:
        """`of` this run's cost and the baseline's, FLOPs or seconds; None where one is missing."""
        if self.cost is None or self.target is None or self.target.cost is None:
            return None
        source = 0 if with_source else self.source.of(axis)
        return of(self.cost.of(axis) - source, self.target.cost.of(axis))


@dataclass(frozen=True)
class Method:
    """A group with its results."""

    label: str
    outcomes: tuple[Outcome, ...]  # one a seed
    is_baseline: bool = False
    is_paired: bool = False  # each run is measured against the baseline's run of its seed

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Curves of the completed runs, or of all where none is completed."""
        return tuple(_final_curves([outcome.run for outcome in self.outcomes]).values())

    @cached_property
    def curve(self) -> Curve:
        return savings.mean_curve(self.curves, with_ends=self.has_ended)

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
        target = self.outcomes[0].target
        if self.is_baseline and target and target.cost:
            return Interval(target.cost.of(axis), None, len(self.outcomes))
        return interval_of_all([outcome.cost.of(axis) if outcome.cost else None for outcome in self.outcomes])

    def saving(self, axis: str, *, with_source: bool = True) -> Interval | None:
        """1 - cost / baseline's cost, run by run; None for the baseline and unless all runs reach the target.

        Without the cost of the runs' source models it is what some papers report.
        """
        return self._ratio(savings.saving, axis, with_source=with_source)

    def speedup(self, axis: str) -> Interval | None:
        """Baseline's cost / cost - 1, run by run; None as for the saving."""
        return self._ratio(savings.speedup, axis)

    def _ratio(self, of: Callable[[float, float], float], axis: str, **more: bool) -> Interval | None:
        if self.is_baseline:
            return None
        return interval_of_all([outcome.ratio(of, axis, **more) for outcome in self.outcomes])


@dataclass(frozen=True)
class Comparison:
    """A family's results; without a baseline or a typed loss there is no target."""

    family: Family
    question: Question
    candidates: tuple[Group, ...]  # that may be the baseline; it is known if there is exactly one
    target: Target | None
    methods: tuple[Method, ...]  # the baseline first

    @property
    def baseline(self) -> Method | None:
        return next((method for method in self.methods if method.is_baseline), None)

    @property
    def baseline_cost(self) -> Cost | None:
        return self.target.cost if self.target else None


def compare(families: Sequence[Family], question: Question) -> list[Comparison]:
    """One comparison a family; a DataError if the baseline is in none of them, or several groups of one."""
    asked = question.baseline
    candidates = [_baseline_candidates(family, asked) for family in families]
    ambiguous = next((groups for groups in candidates if len(groups) > 1), []) if asked else []
    groups = ambiguous or [group for family in families for group in family.groups]
    labels = ", ".join(group.label for group in groups)
    if ambiguous:
        raise DataError(f"--baseline {asked} means several methods: {labels}; type one of them")
    if asked and not any(candidates):
        raise DataError(
            f"--baseline {asked} is none of the methods, no words of one, and no folder of runs: {labels}"
        )
    return [_compare(family, groups, question) for family, groups in zip(families, candidates, strict=True)]


def compare_runs(
    runs: Sequence[Run], left_out: Sequence[str], question: Question
) -> tuple[list[Comparison], list[str]]:
    """Comparisons and warnings, which end with the notes `left_out`; a DataError without runs, or as `compare`."""
    if not runs:
        raise DataError("\n".join([*left_out, "no run is left to compare"]))
    found, warnings = families_of(runs)
    return compare(found, question), [*warnings, *left_out]


def whole_model(run: Run) -> Curve:
    """The evaluations of the whole model: the loss of fewer layers or units, or with gates, is another model's.

    Of the two rows at a growth the one after it counts. A loss that is not finite is above every target.
    """
    return savings.make_curve(evaluation_point(row) for row in run.evaluations if run.is_whole(row))


def evaluation_point(row: dict[str, float]) -> Point:
    loss = row["eval/loss"]
    finite = loss is not None and math.isfinite(loss)
    return Point(int(row["step"]), Cost(row["flops"], row["train_seconds"]), loss if finite else math.inf)


def _baseline_candidates(family: Family, asked: str | None) -> list[Group]:
    """The groups that `asked` means, or all that train from scratch.

    Of several from scratch those count that are as deep as what grows.
    """
    groups = family.groups
    if asked is None:
        grown = {group.runs[0].target_layers for group in groups if not group.runs[0].is_scratch}
        bases = [group for group in groups if group.runs[0].is_scratch]
        return [group for group in bases if group.runs[0].target_layers in grown] or bases
    if named := [group for group in groups if group.label == asked]:
        return named
    folder = Path(asked).resolve()
    inside = [g for g in groups if any(Path(run.place).resolve().is_relative_to(folder) for run in g.runs)]
    return inside or [group for group in groups if set(asked.split()) <= set(group.label.split())]


def _compare(family: Family, candidates: Sequence[Group], question: Question) -> Comparison:
    baseline = candidates[0] if len(candidates) == 1 else None
    reference = _final_curves(baseline.runs) if baseline else {}
    asked = question.target_loss
    if asked is None and baseline:
        asked = _target_of_budget(baseline, list(reference.values()))
    target = _target(asked, list(reference.values()))
    by_seed = {seed: _target(asked, [curve]) for seed, curve in reference.items()}
    methods = [_method(group, target, by_seed, question, is_baseline=group is baseline) for group in family.groups]
    methods.sort(key=lambda method: not method.is_baseline)
    return Comparison(family, question, tuple(candidates), target, tuple(methods))


def _final_curves(runs: Sequence[Run]) -> dict[str, Curve]:
    """By seed, curves of the completed runs, or of all where none is completed."""
    curves = [(run, curve) for run in runs if (curve := whole_model(run))]
    completed = [(run, curve) for run, curve in curves if run.status == "completed"]
    return {str(run.seed): curve for run, curve in completed or curves}


def _target_of_budget(baseline: Group, reference: Sequence[Curve]) -> float | None:
    """The `budget.target_loss` that all runs of the baseline have reached; None without one.

    They end at the first evaluation below it, each at another loss, which none of the methods was asked for.
    """
    loss = baseline.runs[0].config.get("budget.target_loss")
    if not isinstance(loss, int | float) or isinstance(loss, bool) or not reference:
        return None
    return float(loss) if all(curve[-1].loss <= loss < math.inf for curve in reference) else None


def _target(asked: float | None, reference: Sequence[Curve]) -> Target | None:
    """The loss that is asked for, or the mean final loss of these curves, and its cost on their mean curve.

    Where they end at different steps, as under a budget in seconds, the mean of their ends is the end.
    """
    finals = None if asked else interval_of_all([curve[-1].loss for curve in reference])
    loss = asked or (finals.mean if finals else math.inf)
    if not math.isfinite(loss):
        return None
    mean = savings.mean_curve(reference)
    cost = savings.crossing(mean, loss)
    if cost is None or not cost.flops or not cost.seconds:
        return Target(loss, finals)
    return Target(loss, finals, cost, savings.crossing(mean, loss, for_good=True))


def _method(
    group: Group,
    target: Target | None,
    by_seed: Mapping[str, Target | None],
    question: Question,
    *,
    is_baseline: bool,
) -> Method:
    """The results of a group.

    It is paired where it has the seeds of the baseline and each run reaches the target of its seed.
    """
    if not is_baseline and {str(run.seed) for run in group.runs} == set(by_seed):
        paired = tuple(_outcome(run, by_seed[str(run.seed)], question) for run in group.runs)
        if all(outcome.ratio(savings.saving, "flops") is not None for outcome in paired):
            return Method(group.label, paired, is_paired=True)
    return Method(group.label, tuple(_outcome(run, target, question) for run in group.runs), is_baseline)


def _outcome(run: Run, target: Target | None, question: Question) -> Outcome:
    curve = whole_model(run)
    return Outcome(
        run=run,
        curve=curve,
        target=target,
        cost=savings.crossing(curve, target.loss) if target else None,
        cost_for_good=savings.crossing(curve, target.loss, for_good=True) if target else None,
        at_flops=None if question.at_flops is None else savings.loss_at(curve, question.at_flops),
    )
