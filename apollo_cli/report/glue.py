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
    notes: tuple[str, ...]


def compare_glue(comparison: Comparison) -> GlueComparison | None:
    """The scores of a family; None where no run has any."""
    members = {
        method.label: [outcome.run for outcome in method.outcomes if outcome.run.glue.scores]
        for method in comparison.methods
    }
    runs = [run for of_method in members.values() for run in of_method]
    if not runs:
        return None
    tasks = tuple(name for name in TASKS if any(name in run.glue.scores for run in runs))
    averaged = tuple(name for name in tasks if name != "wnli" and all(name in run.glue.scores for run in runs))
    scores: dict[str, dict[str, Interval | None]] = {}
    for label, of_method in members.items():
        if of_method:
            scores[label] = {
                name: interval_of_all([run.glue.scores.get(name) for run in of_method]) for name in tasks
            }
            if averaged:
                averages = [fmean(run.glue.scores[name] for name in averaged) for run in of_method]
                scores[label][AVERAGE] = interval(averages)
    return GlueComparison(tasks, averaged, scores, tuple(_notes(members, tasks, averaged)))


def glue_table(comparison: Comparison, glue: GlueComparison) -> ReportTable:
    """Final loss, FLOPs and GLUE scores of the methods that have some."""
    titles = {name: TASKS[name].title for name in glue.tasks} | ({AVERAGE: AVERAGE} if glue.averaged else {})
    rows = []
    for method in comparison.methods:
        if scores := glue.scores.get(method.label):
            cells = [score.format(1, 100) if (score := scores[name]) else "-" for name in titles]
            rows.append([method.label, method_cells(comparison, method).final, format_flops(method), *cells])
    return ReportTable(["method", "final loss (nats)", "FLOPs", *titles.values()], rows)


def _notes(members: Mapping[str, Sequence[Run]], tasks: Sequence[str], averaged: Sequence[str]) -> Iterator[str]:
    yield GLUE_NOTE
    if averaged:
        yield f"The average is that of {', '.join(TASKS[name].title for name in averaged)}."
    if "wnli" in tasks:
        yield "WNLI is in no average: its development rows contradict its training rows."
    runs = [run for of_method in members.values() for run in of_method]
    if any(len({run.glue.recipes[name] for run in runs if name in run.glue.recipes}) > 1 for name in tasks):
        yield "Not all were fine-tuned by the same recipe on the same rows: see glue/results.json of the runs."
    for label, of_method in members.items():
        found = [run for run in of_method if run.glue.loss is not None and run.evaluations]
        loss = [run.glue.loss for run in found if run.glue.loss is not None]
        of_runs = [run.evaluations[-1]["eval/loss"] for run in found]
        if found and fmean(loss) != fmean(of_runs):
            yield (
                f"The GLUE scores of '{label}' belong to other weights than its runs: their validation loss is "
                f"{fmean(loss):.4f}, not {fmean(of_runs):.4f}."
            )
