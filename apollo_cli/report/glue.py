"""GLUE in a comparison: the scores that `apollo-glue` left in the run directories."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from apollo_cli.glue.tasks import TASKS
from apollo_cli.intervals import Interval, interval, interval_of_all
from apollo_cli.report.comparison import Comparison
from apollo_cli.report.runs import Run
from apollo_cli.report.tables import ReportTable, format_flops, method_cells

AVERAGE = "average"
FREQUENT = "always the frequent label"
GLUE_NOTE = (
    "GLUE: development scores x 100 (mean of a task's metrics), of each run the mean over fine-tuning seeds at its "
    "best learning rate, which the same rows chose; ± over pretraining seeds."
)


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
    scores = {
        label: _with_average([run.glue.scores for run in of_method], tasks, averaged)
        for label, of_method in members.items()
    }
    known = {n: task.frequent for glue in found for n, task in glue.tasks.items() if task.frequent is not None}
    frequent = _with_average([known], tasks, averaged) if known else {}
    return GlueComparison(tasks, averaged, scores, frequent, tuple(_notes(members, tasks, averaged)))


def glue_table(comparison: Comparison, glue: GlueComparison) -> ReportTable:
    """Final loss, FLOPs and GLUE scores of the methods that have some, below the frequent label's scores."""
    titles = {name: TASKS[name].title for name in glue.tasks} | ({AVERAGE: AVERAGE} if glue.averaged else {})
    lines = [(FREQUENT, "-", "-", glue.frequent)] if glue.frequent else []
    for method in comparison.methods:
        if scores := glue.scores.get(method.label):
            lines.append((method.label, method_cells(comparison, method).final, format_flops(method), scores))
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
        whole = all(name in each for each in found for name in averaged)
        scores[AVERAGE] = interval([fmean(each[n] for n in averaged) for each in found]) if whole else None
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
