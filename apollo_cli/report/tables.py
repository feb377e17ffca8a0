"""Numbers and tables of a comparison as text, the same in the terminal and in the report; GLUE's scores."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from apollo_cli.glue.tasks import TASKS
from apollo_cli.intervals import Interval, interval_of_all
from apollo_cli.report.comparison import AXES, Comparison, Method
from apollo_cli.report.groups import differing
from apollo_cli.report.runs import Run

AVERAGE = "average"
FREQUENT = "always the frequent label"
GLUE_NOTE = (
    "GLUE: development scores x 100 (mean of a task's metrics), of each run the mean over fine-tuning seeds at its "
    "best learning rate, which the same rows chose; ± over pretraining seeds."
)


@dataclass(frozen=True)
class ReportTable:
    """A table; the first column has names, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class MethodCells:
    """The results of a method as text; `costs`, `savings` and `speedups` by axis, flops and seconds."""

    runs: str
    final: str
    at_flops: str
    costs: dict[str, str]
    savings: dict[str, str]
    speedups: dict[str, str]


def method_cells(comparison: Comparison, method: Method) -> MethodCells:
    unfinished = Counter(o.run.status for o in method.outcomes if o.run.status != "completed")
    counts = [f"n = {len(method.outcomes)}", *(f"{n} {status}" for status, n in sorted(unfinished.items()))]
    so_far = "" if method.has_ended or not method.final else " so far"
    return MethodCells(
        runs=", ".join(counts),
        final=(format_loss(method.final) if method.final else "not whole yet") + so_far,
        at_flops=format_loss(method.at_flops) if method.at_flops else "not there",
        costs={axis: _cost(method, axis) if comparison.target else "-" for axis in AXES},
        savings={axis: format_ratio(method, method.saving(axis)) for axis in AXES},
        speedups={axis: format_ratio(method, method.speedup(axis)) for axis in AXES},
    )


def results_table(comparison: Comparison) -> ReportTable:
    budget = comparison.question.at_flops
    at_budget = [] if budget is None else [f"loss at {budget:.4g} FLOPs (nats)"]
    costs = ("FLOPs to target", "FLOPs saved", "speedup in FLOPs", "seconds to target", "seconds saved", "speedup")
    rows = []
    for method in comparison.methods:
        cells = method_cells(comparison, method)
        numbers = [part[axis] for axis in AXES for part in (cells.costs, cells.savings, cells.speedups)]
        rows.append([method.label, cells.runs, cells.final, *([cells.at_flops] if at_budget else []), *numbers])
    return ReportTable(["method", "runs", "final validation loss (nats)", *at_budget, *costs], rows)


def settings_table(comparison: Comparison) -> ReportTable | None:
    """The settings in which the methods differ; None if there are none."""
    columns = differing([method.outcomes[0].run for method in comparison.methods])
    values = zip(*(values for _, values in columns), strict=True)
    rows = [[method.label, *own] for method, own in zip(comparison.methods, values, strict=False)]
    return ReportTable(["method", *(key for key, _ in columns)], rows) if columns else None


def target_sentence(comparison: Comparison) -> str:
    """The target loss and where it comes from; empty without a target."""
    if comparison.target is None:
        return ""
    loss, over_seeds = comparison.target.loss, comparison.target.interval
    if over_seeds is None:
        of_budget = comparison.baseline if comparison.question.target_loss is None else None
        origin = f"budget.target_loss of {of_budget.label}" if of_budget else "as typed"
        return f"target: validation loss {loss:.4f} nats, {origin}"
    of = f"the final loss of {comparison.baseline.label}" if comparison.baseline else ""
    return f"target: validation loss {format_loss(over_seeds)} nats, {of}"


def format_loss(loss: Interval) -> str:
    return loss.format(4) if math.isfinite(loss.mean) else "not finite"


def format_ratio(method: Method, ratio: Interval | None) -> str:
    """A saving or speedup of a method in percent."""
    if ratio is None:
        return "baseline" if method.is_baseline else "-"
    return f"{ratio.format(1, 100)}%" if math.isfinite(ratio.mean) else "∞"


def format_number(value: float, half: float | None = None) -> str:
    """`1.206e13`, `(6.61 ± 0.31)e12`, `65.3 ± 1.2`."""
    if not math.isfinite(value):
        return "not finite"
    power = int(f"{value:.3e}".partition("e")[2])  # of the rounded number
    if power < 6:
        digits = max(0, 3 - max(power, 0)) if value else 0
        return Interval(value, half, 0).format(digits)
    scaled = value / 10**power
    return f"{scaled:.3f}e{power}" if half is None else f"({scaled:.2f} ± {half / 10**power:.2f})e{power}"


def _cost(method: Method, axis: str) -> str:
    cost = method.cost(axis)
    if cost is not None:
        return format_number(cost.mean, cost.half)
    if method.reached:
        return f"{method.reached} of {len(method.outcomes)} reach it"
    return "not yet" if any(outcome.run.status == "running" for outcome in method.outcomes) else "not reached"


@dataclass(frozen=True)
class GlueComparison:
    """The GLUE scores of a family."""

    tasks: tuple[str, ...]  # those that a run has, in the order of GLUE
    averaged: tuple[str, ...]  # those that all runs with scores have, without WNLI
    scores: dict[str, dict[str, Interval | None]]  # by method and task or AVERAGE; None where a run lacks the task
    frequent: dict[str, Interval | None]  # the same of FREQUENT; empty where no run has recorded it
    notes: tuple[str, ...]


def compare_glue(comparison: Comparison) -> GlueComparison | None:
    """The scores of a family; None where no run has any."""
    runs = {m.label: [outcome.run for outcome in m.outcomes if outcome.run.glue.tasks] for m in comparison.methods}
    members = {label: of_method for label, of_method in runs.items() if of_method}
    found = [run.glue for of_method in members.values() for run in of_method]
    if not found:
        return None
    tasks = tuple(name for name in TASKS if any(name in glue.tasks for glue in found))
    averaged = tuple(name for name in tasks if name != "wnli" and all(name in glue.tasks for glue in found))
    scores = {}
    for label, of_method in members.items():
        means = [{name: task.mean for name, task in run.glue.tasks.items()} for run in of_method]
        scores[label] = _with_average(means, tasks, averaged)
    known = {n: task.frequent for glue in found for n, task in glue.tasks.items() if task.frequent is not None}
    frequent = _with_average([known], tasks, averaged) if known else {}
    return GlueComparison(tasks, averaged, scores, frequent, tuple(_notes(members, tasks, averaged)))


def glue_table(comparison: Comparison, glue: GlueComparison) -> ReportTable:
    """Final loss, FLOPs and GLUE scores of the methods that have some, below the frequent label's scores."""
    titles = {name: TASKS[name].title for name in glue.tasks} | ({AVERAGE: AVERAGE} if glue.averaged else {})
    lines = [(FREQUENT, "-", "-", glue.frequent)] if glue.frequent else []
    for method in comparison.methods:
        if scores := glue.scores.get(method.label):
            total = interval_of_all([curve[-1].cost.flops for curve in method.curves])
            flops = format_number(total.mean, total.half or None) if total else "-"
            lines.append((method.label, method_cells(comparison, method).final, flops, scores))
    rows = [
        [*cells, *(score.format(1, 100) if (score := scores[name]) else "-" for name in titles)]
        for *cells, scores in lines
    ]
    return ReportTable(["method", "final loss (nats)", "FLOPs", *titles.values()], rows)


def _with_average(
    found: Sequence[Mapping[str, float]], tasks: Sequence[str], averaged: Sequence[str]
) -> dict[str, Interval | None]:
    """Scores of each task and their average over runs; None where a run lacks a task."""
    scores = {name: interval_of_all([each.get(name) for each in found]) for name in tasks}
    if averaged:
        scores[AVERAGE] = interval_of_all(
            [fmean(each[n] for n in averaged) if all(n in each for n in averaged) else None for each in found]
        )
    return scores


def _notes(members: Mapping[str, Sequence[Run]], tasks: Sequence[str], averaged: Sequence[str]) -> Iterator[str]:
    yield GLUE_NOTE
    if averaged:
        yield f"The average is that of {', '.join(TASKS[name].title for name in averaged)}."
    if "wnli" in tasks:
        yield "WNLI is in no average: its development rows contradict its training rows."
    found = [run.glue for of_method in members.values() for run in of_method]
    if any(len({glue.recipe_of(name) for glue in found if name in glue.tasks}) > 1 for name in tasks):
        yield "Not all were fine-tuned by the same recipe on the same rows: see glue/results.json of the runs."
    for label, of_method in members.items():
        ends = [(run.glue.loss, run.evaluations[-1]["eval/loss"]) for run in of_method if run.evaluations]
        measured = [(loss, of_run) for loss, of_run in ends if loss is not None and of_run is not None]
        loss, of_runs = (fmean(side) for side in zip(*measured, strict=True)) if measured else (0.0, 0.0)
        if loss != of_runs:
            yield (
                f"The GLUE scores of '{label}' belong to other weights than its runs: their validation loss is "
                f"{loss:.4f}, not {of_runs:.4f}."
            )
