"""GLUE in a comparison: what `apollo-glue` left in the run directories."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from apollo_cli.glue.tasks import TASKS
from apollo_cli.report.comparison import Comparison, Method
from apollo_cli.report.runs import Run
from apollo_cli.report.savings import Interval, interval

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
        retrained: the methods whose scores are of weights with another loss than the run has, trained anew.
    """

    tasks: tuple[str, ...]
    averaged: tuple[str, ...]
    scores: dict[str, dict[str, Interval | None]]
    alike: bool
    retrained: tuple[str, ...]

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
            found.append("Not all were fine-tuned by the same recipe: see glue/results.json of the runs.")
        if self.retrained:
            names = ", ".join(map(repr, self.retrained))
            found.append(f"The GLUE scores of {names} are of weights with another validation loss than their runs.")
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
    retrained = [m.label for m in comparison.methods if any(_is_retrained(outcome.run) for outcome in m.outcomes)]
    return GlueTable(tasks, shared, scores, alike, tuple(retrained))


def _is_retrained(run: Run) -> bool:
    losses = [row["eval/loss"] for row in run.evaluations]
    return run.glue.loss is not None and run.glue.loss not in losses[-1:]


def _over(scores: Sequence[float | None]) -> Interval | None:
    known = [score for score in scores if score is not None]
    return interval(known) if len(known) == len(scores) else None


def _hundredfold(score: Interval | None) -> str:
    if score is None:
        return "-"
    return f"{100 * score.mean:.1f}" + ("" if score.half is None else f" ± {100 * score.half:.1f}")
