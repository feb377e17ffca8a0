"""GLUE in a comparison: what `apollo-glue` left in the run directories."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from apollo_cli.glue.tasks import TASKS
from apollo_cli.intervals import Interval, interval
from apollo_cli.report.comparison import Comparison, Method

AVERAGE = "average"
ABOUT = (
    "GLUE: development scores x 100 (mean of a task's metrics), of each run the mean over fine-tuning seeds at its "
    "best learning rate, which the same rows chose; ± over pretraining seeds."
)


@dataclass(frozen=True)
class GlueTable:
    """The scores of the methods of a family.

    Attributes:
        tasks: those that a run has, in the order of GLUE.
        averaged: those that all runs with scores have, without WNLI; the average is over these.
        scores: of each method with scores, by task and under AVERAGE; None where a run of it lacks one.
        alike: whether each task was fine-tuned by one recipe.
        retrained: the methods whose scores are of other weights: their mean loss, and that of its runs.
    """

    tasks: tuple[str, ...]
    averaged: tuple[str, ...]
    scores: dict[str, dict[str, Interval | None]]
    alike: bool
    retrained: dict[str, tuple[float, float]]

    @property
    def head(self) -> list[str]:
        """The names of the columns."""
        return [TASKS[name].title for name in self.tasks] + ([AVERAGE] if self.averaged else [])

    def cells(self, method: Method) -> list[str]:
        """Those of a method."""
        names = [*self.tasks, *([AVERAGE] if self.averaged else [])]
        return [_hundredfold(self.scores.get(method.label, {}).get(name)) for name in names]

    @property
    def notes(self) -> list[str]:
        """What a reader should know."""
        found = [ABOUT]
        if self.averaged:
            found.append(f"The average is that of {', '.join(TASKS[name].title for name in self.averaged)}.")
        if "wnli" in self.tasks:
            found.append("WNLI is in no average: its development rows contradict its training rows.")
        if not self.alike:
            found.append(
                "Not all were fine-tuned by the same recipe on the same rows: see glue/results.json of the runs."
            )
        for label, (loss, of_runs) in self.retrained.items():
            found.append(
                f"The GLUE scores of '{label}' are of other weights than its runs: their validation loss is "
                f"{loss:.4f}, not {of_runs:.4f}."
            )
        return found


def glue_table(comparison: Comparison) -> GlueTable | None:
    """The scores of a family; None where no run has any."""
    runs = [outcome.run for method in comparison.methods for outcome in method.outcomes if outcome.run.glue.scores]
    if not runs:
        return None
    tasks = tuple(name for name in TASKS if any(name in run.glue.scores for run in runs))
    shared = tuple(name for name in tasks if name != "wnli" and all(name in run.glue.scores for run in runs))
    scores = {}
    for method in comparison.methods:
        of_runs = [outcome.run.glue.scores for outcome in method.outcomes if outcome.run.glue.scores]
        if of_runs:
            of_task = {name: _over([scores.get(name) for scores in of_runs]) for name in tasks}
            averages = [fmean(scores[name] for name in shared) for scores in of_runs] if shared else []
            scores[method.label] = of_task | ({AVERAGE: interval(averages)} if averages else {})
    recipes = [{run.glue.recipes[name] for run in runs if name in run.glue.recipes} for name in tasks]
    alike = all(len(of_task) == 1 for of_task in recipes)
    pairs = {method.label: _losses(method) for method in comparison.methods}
    retrained = {label: pair for label, pair in pairs.items() if pair and pair[0] != pair[1]}
    return GlueTable(tasks, shared, scores, alike, retrained)


def _losses(method: Method) -> tuple[float, float] | None:
    """The mean loss of what was fine-tuned, and that of the runs; None where it is not said."""
    pairs = [
        (run.glue.loss, run.evaluations[-1]["eval/loss"])
        for run in (outcome.run for outcome in method.outcomes)
        if run.glue.loss is not None and run.evaluations
    ]
    return (fmean(mine for mine, _ in pairs), fmean(its for _, its in pairs)) if pairs else None


def _over(scores: Sequence[float | None]) -> Interval | None:
    known = [score for score in scores if score is not None]
    return interval(known) if len(known) == len(scores) else None


def _hundredfold(score: Interval | None) -> str:
    if score is None:
        return "-"
    return f"{100 * score.mean:.1f}" + ("" if score.half is None else f" ± {100 * score.half:.1f}")
