"""A comparison in Weights & Biases: views of the runs, a run and a Report of it, savings in the summaries."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apollo_cli.report.comparison import Comparison
from apollo_cli.report.document import markdown_table
from apollo_cli.report.export import comparison_rows
from apollo_cli.report.notes import comparison_notes, headline
from apollo_cli.report.tables import results_table, target_sentence
from apollo_cli.report.wandb_runs import TIMEOUT, within
from apollo_cli.report.workspace import METHOD, SECTIONS, make_panel, make_view, runs_of
from apollo_cli.tracking.recorder import table

PUBLISH_TIMEOUT = 600  # seconds for the whole of it
TITLE = "What was saved"


def save_views(project: str, name: str, comparisons: Sequence[Comparison]) -> list[str]:
    """Saves a view for each family, and returns their addresses; a DataError if the server does not take it."""
    found = []
    for comparison in comparisons:
        title = name if len(comparisons) == 1 else f"{name}: {comparison.family.title}"
        view = make_view(project, title, fingerprint(comparison))
        found.append(within(TIMEOUT, f"--workspace {name}", partial(_save, view)))
    return found


def _save(view: Any) -> str:
    """Saves a view or a Report of wandb-workspaces; returns its address."""
    return str(view.save().url)


def publish(
    project: str, comparisons: Sequence[Comparison], warnings: Sequence[str], places: Collection[str], folder: Path
) -> str:
    """Publishes a comparison in a project ENTITY/PROJECT; returns the address of the Report.

    `places` are ENTITY/PROJECT/ID of the compared runs that are in W&B, `folder` has the report that was written.
    A DataError if the server refuses it or does not answer.
    """

    def send() -> str:
        import wandb

        page, api = _log_run(project, comparisons, folder), wandb.Api(timeout=TIMEOUT)
        for place, values in savings(comparisons, places).items():
            api.run(place).summary.update(values)
        return _save(make_report(project, comparisons, warnings, page))

    return within(PUBLISH_TIMEOUT, "--publish", send)


def savings(comparisons: Sequence[Comparison], places: Collection[str]) -> dict[str, dict[str, float | None]]:
    """By run, what its summary gets: the saving in FLOPs of its method and the ends of its interval.

    None takes the place of what an earlier comparison wrote; the baseline has none.
    """
    found: dict[str, dict[str, float | None]] = {}
    for comparison in comparisons:
        for method in comparison.methods:
            saved = method.saving("flops")
            low, high = (saved.ends if saved else None) or (None, None)
            values = {"saving/flops": saved.mean if saved else None, "saving/low": low, "saving/high": high}
            found |= {outcome.run.place: values for outcome in method.outcomes if outcome.run.place in places}
    return found


def fingerprint(comparison: Comparison) -> str | None:
    """The fingerprint of a family's data; None where no run has recorded it."""
    runs = (run for group in comparison.family.groups for run in group.runs)
    return next((run.data for run in runs if run.data), None)


def make_report(project: str, comparisons: Sequence[Comparison], warnings: Sequence[str], page: str) -> Any:
    """The Report of wandb-workspaces, not saved yet; `page` is the address of the run with the pictures."""
    from wandb_workspaces.reports import v2

    entity, _, short = project.partition("/")
    blocks = [
        v2.P(text) for text in [*filter(None, map(headline, comparisons)), *map("Warning: {}".format, warnings)]
    ]
    for comparison in comparisons:
        blocks.append(v2.H2(comparison.family.title))
        blocks.append(v2.P(f"{comparison.family.description}. {target_sentence(comparison)}"))
        blocks.append(v2.MarkdownBlock("\n".join(markdown_table(results_table(comparison)))))
        if notes := comparison_notes(comparison):
            blocks.append(v2.UnorderedList(notes))
        of_family = runs_of(fingerprint(comparison))
        runs = v2.Runset(entity=entity, project=short, filters=of_family, groupby=[f"config.{METHOD}"])
        blocks.append(v2.PanelGrid(runsets=[runs], panels=[make_panel(chart) for chart in SECTIONS["Saving"]]))
    link = v2.P(["Table, pictures and report.html: ", v2.Link("the run of this comparison", page)])
    return v2.Report(entity=entity, project=short, title=TITLE, blocks=[*blocks, link])


def _log_run(project: str, comparisons: Sequence[Comparison], folder: Path) -> str:
    """Records a run of job type `compare` with the table, the pictures and report.html; returns its address."""
    import wandb

    entity, _, short = project.partition("/")
    text = (folder / "report.md").read_text(encoding="utf-8")
    pictures = [path for path in sorted(folder.glob("*.png")) if f"]({path.name})" in text]
    shown = {f"pictures/{path.stem}": wandb.Image(str(path)) for path in pictures}
    with TemporaryDirectory() as place:
        settings = wandb.Settings(silent=True, console="off", init_timeout=TIMEOUT, x_disable_stats=True)
        run = wandb.init(
            entity=entity, project=short, job_type="compare", mode="online", dir=place, settings=settings
        )
        report = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
        run.log({"comparison": table(comparison_rows(comparisons)), "report": report, **shown})
        run.summary["headline"] = "\n".join(filter(None, map(headline, comparisons)))
        run.finish()
        return str(run.url)
