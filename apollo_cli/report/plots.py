"""Pictures of a comparison: validation loss against FLOPs and seconds."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apollo_cli.report import savings
from apollo_cli.report.comparison import Comparison, Method, evaluation_point
from apollo_cli.report.frontier import frontier_of
from apollo_cli.report.growth_plots import draw_growth
from apollo_cli.report.runs import model_size
from apollo_cli.report.savings import Curve
from apollo_cli.report.style import SETTINGS, Look, Picture, axis_unit, looks
from apollo_cli.report.tables import method_cells

_MAX_METHODS = 16  # in one picture
_START = 0.15  # share of the baseline's cost in which losses are too high to be shown
_AXIS_NAMES = {"flops": "FLOPs", "seconds": "time"}


def draw_comparison(comparison: Comparison) -> Iterator[Picture]:
    """Each picture that the runs have data for; to be drawn (`png_of`) before the next one is taken."""
    title, some = comparison.family.title, ""
    if len(comparison.methods) > _MAX_METHODS:
        some = f" Shown are {_MAX_METHODS} of {len(comparison.methods)} methods, those with the best results."
        comparison = replace(comparison, methods=_best(comparison))
    for axis, what in (("flops", "model FLOPs"), ("seconds", "training seconds")):
        if frontier := frontier_of(comparison, axis):
            caption = (
                f"{title}: final validation loss against {what}. The line goes through scratch runs of several "
                "budgets, its band from the lowest to the highest seed; an arrow is what a method saved."
            )
            yield Picture(f"frontier_{axis}", caption, frontier)
    with style.context(SETTINGS):
        if any(method.curve for method in comparison.methods):
            for axis, what in (("flops", "model FLOPs"), ("seconds", "training seconds")):
                caption = (
                    f"{title}: validation loss against {what}. Lines are means over seeds, bands reach from the "
                    "lowest to the highest seed, dotted lines are the loss of fewer layers, another model's."
                    f"{some}"
                )
                yield Picture(f"loss_against_{axis}", caption, _loss(comparison, axis))
        for name, caption, figure in draw_growth(comparison):
            yield Picture(name, f"{title}: {caption}{some}", figure)


def _best(comparison: Comparison) -> tuple[Method, ...]:
    """The baseline and the methods that save most, then those of the lowest loss, in their own order."""

    def merit(method: Method) -> tuple[bool, float, float]:
        saved, final = method.saving("flops"), method.final
        return (not method.is_baseline, -saved.mean if saved else math.inf, final.mean if final else math.inf)

    best = sorted(comparison.methods, key=merit)[:_MAX_METHODS]
    return tuple(method for method in comparison.methods if method in best)


def _loss(comparison: Comparison, axis: str) -> Figure:
    """Curves, and below them one lane a method with its saving."""
    by_label, methods = looks(comparison.methods), comparison.methods
    lanes = [m for m in methods if not m.is_baseline] if comparison.baseline_cost else []
    strip = 0.2 + 0.34 * len(lanes)
    figure = Figure(figsize=(8, 4.6 + (strip if lanes else 0)), layout="constrained")
    grid = figure.add_gridspec(2 if lanes else 1, 1, height_ratios=(4.6, strip) if lanes else None, hspace=0.02)
    axes = figure.add_subplot(grid[0])
    most = max(p.cost.of(axis) for m in methods for o in m.outcomes for p in o.curve) or 1.0
    scale, name = axis_unit(axis, most)
    for method in methods:
        _draw(axes, method, by_label[method.label], axis, scale)
    axes.set_ylim(*_limits(comparison, axis, most))
    axes.set_xlim(0, most / scale * 1.02)
    if comparison.target:
        loss = comparison.target.loss
        axes.axhline(loss, color="0.35", linestyle="--", linewidth=1)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"target {loss:.3f}", (0.005, loss), (0, -4), va="top", fontsize=9, color="0.35", **place)
    axes.set_ylabel("validation loss (nats per prediction)")
    axes.legend(fontsize=10 if len(methods) <= 8 else 8, loc="upper right")
    below = axes
    if lanes:
        below = figure.add_subplot(grid[1], sharex=axes)
        axes.tick_params(labelbottom=False)
        _lanes(axes, below, comparison, axis, scale)
    below.set_xlabel(name)
    return figure


def _draw(axes: Axes, method: Method, look: Look, axis: str, scale: float) -> None:
    """The mean curve with a band, a marker at its end; thin and dotted where fewer layers are stored."""
    if curve := method.curve:
        spent = [p.cost.of(axis) / scale for p in curve]
        if len(method.curves) > 1:
            seeds = savings.aligned(method.curves, with_ends=method.has_ended)
            low, high = ([f(p.loss for p in points) for points in seeds] for f in (min, max))
            axes.fill_between(spent, low, high, color=look.colour, alpha=0.18, linewidth=0)
        axes.plot(spent, [p.loss for p in curve], color=look.colour, linestyle=look.line, linewidth=2)
        axes.plot(spent[-1:], [curve[-1].loss], look.marker, color=look.colour, markersize=7)
    for part in _partial_curves(method):
        spent = [p.cost.of(axis) / scale for p in part]
        axes.plot(spent, [p.loss for p in part], color=look.colour, linestyle=":", linewidth=1)
    axes.plot([], [], label=look.label, **look.of_line)


def _partial_curves(method: Method) -> Iterator[Curve]:
    """The mean curves of the stages that store fewer layers, or narrower ones."""
    runs = [outcome.run for outcome in method.outcomes]
    sizes = {model_size(row) for run in runs for row in run.evaluations if not run.is_whole(row)}
    for stored in sorted(sizes):
        parts = [
            savings.make_curve(evaluation_point(row) for row in run.evaluations if model_size(row) == stored)
            for run in runs
        ]
        yield savings.mean_curve([part for part in parts if part], with_ends=method.has_ended)


def _limits(comparison: Comparison, axis: str, most: float) -> tuple[float, float]:
    """From below the lowest loss to the baseline's after its start: the fall from ln V would squash the rest.

    The ends of all curves are within; without a baseline every method counts.
    """
    reference = comparison.baseline_cost.of(axis) if comparison.baseline_cost else most
    counted = [comparison.baseline] if comparison.baseline else comparison.methods
    points = [p for method in counted for p in method.curve if p.cost.of(axis) >= _START * reference]
    lowest = [min(method.curve, key=lambda p: p.loss) for method in comparison.methods if method.curve]
    ends = [method.curve[-1] for method in comparison.methods if method.curve]
    losses = [p.loss for p in (*points, *lowest, *ends) if math.isfinite(p.loss)]
    losses += [comparison.target.loss] if comparison.target else []
    margin = 0.06 * (max(losses, default=0) - min(losses, default=0)) or 0.1
    return min(losses, default=0) - margin, max(losses, default=0) + margin


def _lanes(axes: Axes, below: Axes, comparison: Comparison, axis: str, scale: float) -> None:
    """An arrow from the baseline's cost of the target to each method's, with the saving."""
    assert comparison.target
    assert comparison.target.cost
    lanes = [method for method in comparison.methods if not method.is_baseline]
    start, loss, bottom = comparison.target.cost.of(axis) / scale, comparison.target.loss, axes.get_ylim()[0]
    dotted: dict[str, Any] = {"linestyle": ":", "linewidth": 1}
    axes.plot([start, start], [bottom, loss], color="black", **dotted)
    below.axvline(start, color="black", **dotted)
    below.set_ylim(len(lanes) - 0.4, -0.75)
    below.set_yticks([])
    below.grid(visible=False)
    below.spines["left"].set_visible(False)
    for lane, method in enumerate(lanes):
        look = looks(comparison.methods)[method.label]
        cost, saved = method.cost(axis), method.saving(axis)
        if cost is None or saved is None:
            _annotate_lane(below, start, lane, f"{look.label}: {method_cells(comparison, method).costs[axis]}")
            continue
        end = cost.mean / scale
        axes.plot([end], [loss], "o", color=look.colour, markersize=5, zorder=5)
        axes.plot([end, end], [bottom, loss], color=look.colour, **dotted)
        below.plot([end, end], [-0.75, lane], color=look.colour, **dotted)
        arrow = {"arrowstyle": "-|>", "color": look.colour, "lw": 1.8}
        below.annotate("", (end, lane), (start, lane), arrowprops=arrow)
        if cost.half is not None:
            below.errorbar(end, lane, xerr=cost.half / scale, color=look.colour, capsize=3, linewidth=1)
        half = "" if saved.half is None else f" ± {100 * saved.half:.1f}"
        text = f"{-100 * saved.mean:+.1f}{half}% {_AXIS_NAMES[axis]}".replace("-", "\N{MINUS SIGN}")
        _annotate_lane(below, start, lane, f"{look.label}: {text}")


def _annotate_lane(below: Axes, start: float, lane: int, text: str) -> None:
    """Text above a lane, on the side of the baseline's cost that has more room."""
    shift, side = (-6, "right") if start > below.get_xlim()[1] / 2 else (6, "left")
    box = {"boxstyle": "square,pad=0.1", "color": "white"}
    beside: dict[str, Any] = {"textcoords": "offset points", "xytext": (shift, 3), "ha": side, "va": "bottom"}
    below.annotate(text, (start, lane), color="0.1", fontsize=10, bbox=box, **beside)
