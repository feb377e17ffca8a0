"""A view of Weights & Biases for a comparison: sections of charts over the runs of one corpus, grouped by method.

The charts are plain data; the package wandb-workspaces, of the extra `[wandb]`, is needed to save them.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from apollo_cli.errors import DataError
from apollo_cli.tracking.wandb import FACTS

METHOD = "method"  # key of the config
FINGERPRINT = f"{FACTS}.value.data.fingerprint"  # of the corpus, as the server names it
_GPUS = 8  # of a machine that have a line of their own


@dataclass(frozen=True)
class Chart:
    """A chart of a view."""

    title: str
    metrics: tuple[str, ...]  # keys of rows, or of the summary where it is of bars
    x: str = "flops"  # key of the axis; empty for bars, one a method
    log: bool = False  # whether the axes are logarithmic


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Saving": (
        Chart("Validation loss over FLOPs", ("eval/loss",), log=True),
        Chart("Validation loss over seconds", ("eval/loss",), "train_seconds", log=True),
        Chart("Saving in FLOPs at equal loss", ("saving/flops", "saving/low", "saving/high"), ""),
        Chart("Saving in FLOPs at equal steps", ("saving/flops_at_equal_steps",), ""),
    ),
    "Growth": (
        Chart("Layers", ("layers",)),
        Chart("Width", ("width",)),
        Chart("Jump of the validation loss at the last growth", ("growth/last_jump",), ""),
        Chart("Gradient norm", ("train/grad_norm", "train/grad_norm_max")),
    ),
    "Training": (
        Chart("Training loss", ("train/loss",), log=True),
        Chart("Validation loss at full depth", ("eval/loss_full_depth",), log=True),
        Chart("Learning rate", ("train/lr",)),
        Chart("Layers that a step ran", ("train/depth",)),
    ),
    "Speed": (
        Chart("Tokens a second", ("perf/tokens_per_second",)),
        Chart("FLOPs over seconds", ("flops",), "train_seconds"),
        Chart("Peak memory", ("perf/peak_memory_bytes",)),
    ),
    "System": (
        Chart("GPU utilization", tuple(f"system/gpu.{n}.gpu" for n in range(_GPUS)), "_runtime"),
        Chart("GPU memory", tuple(f"system/gpu.{n}.memoryAllocated" for n in range(_GPUS)), "_runtime"),
        Chart("CPU utilization", ("system/cpu",), "_runtime"),
        Chart("Memory of the machine", ("system/memory_percent",), "_runtime"),
    ),
}


def require_workspaces(option: str) -> None:
    """Raises a DataError if the package wandb-workspaces, which this option needs, is not installed."""
    if find_spec("wandb_workspaces") is None:
        raise DataError(f"{option}: needs the package wandb-workspaces; type pip install 'apollo-train[wandb]'")


def make_view(project: str, name: str, fingerprint: str | None) -> Any:
    """The view of a project ENTITY/PROJECT as a Workspace of wandb-workspaces, not saved yet.

    Only the runs of the corpus with the fingerprint are shown, or all where it is None.
    """
    from wandb_workspaces import workspaces

    entity, _, short = project.partition("/")
    return workspaces.Workspace(
        entity=entity,
        project=short,
        name=name,
        sections=[
            workspaces.Section(name=title, panels=[make_panel(chart) for chart in charts], is_open=True)
            for title, charts in SECTIONS.items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis="flops", max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=runs_of(fingerprint), groupby=[workspaces.Config(METHOD)]
        ),
    )


def runs_of(fingerprint: str | None) -> Any:
    """The filter for the runs of a corpus, or for all."""
    from wandb_workspaces.expr import And, Config

    return And(Config(FINGERPRINT) == fingerprint) if fingerprint else ""


def make_panel(chart: Chart) -> Any:
    """The chart as a panel: of each method the mean, and a band from its lowest run to its highest."""
    from wandb_workspaces.reports import v2

    by_method = {"groupby": v2.Config(METHOD), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    if not chart.x:
        return v2.BarPlot(title=chart.title, metrics=[*chart.metrics], **by_method)
    log = {"log_x": True, "log_y": True} if chart.log else {}
    return v2.LinePlot(title=chart.title, x=chart.x, y=[*chart.metrics], **log, **by_method)
