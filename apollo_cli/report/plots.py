"""Pictures of a comparison: validation loss against FLOPs and seconds."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apollo_cli.intervals import Interval
from apollo_cli.report import savings
from apollo_cli.report.comparison import Comparison, Method, evaluation_point
from apollo_cli.report.frontier import frontier_of
from apollo_cli.report.growth_plots import draw_growth
from apollo_cli.report.runs import model_size
from apollo_cli.report.savings import Curve
from apollo_cli.report.style import (
    SETTINGS,
    SMALL,
    WIDTH,
    EndLabel,
    Look,
    Picture,
    axis_unit,
    ink,
    label_ends,
    label_height,
    looks_of,
    saved_text,
)

_MAX_METHODS = 16  # in one picture
_START = 0.25  # share of the baseline's cost in which losses are too high to be shown
_TEXT_SHARE = 0.33  # of the picture's width, for the text of a saving
_AXIS_NAMES = {"flops": "FLOPs", "seconds": "time"}


def draw_comparison(comparison: Comparison) -> Iterator[Picture]:
    """Each picture that the runs have data for."""
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
                    "lowest to the highest seed, dotted lines are the loss of fewer layers, another model's. An "
                    "arrow is the largest saving, a number what a method saves if all its seeds reach the target."
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
    """Curves to their ends, the target, and where it is reached; an arrow is the largest saving."""
    by_label, methods = looks_of(comparison), comparison.methods
    saved = {m.label: saving for m in methods if (saving := m.saving(axis)) and math.isfinite(saving.mean)}
    texts = {
        m.label: f"{by_label[m.label].label} {saved_text(saved[m.label]) if m.label in saved else ''}".strip()
        for m in methods
        if m.curve
    }
    figure = Figure(figsize=(WIDTH, max(5.2, label_height(texts.values()) + 1)), layout="constrained")
    axes = figure.add_subplot()
    most = max(p.cost.of(axis) for m in methods for o in m.outcomes for p in o.curve) or 1.0
    scale, name = axis_unit(axis, most)
    for method in methods:
        _draw(axes, method, by_label[method.label], axis, scale)
    axes.set_ylim(*_limits(comparison, axis, most))
    axes.set_xlim(0, most / scale * 1.02)
    if comparison.target:
        _draw_target(axes, comparison, saved, by_label, axis, scale)
    axes.set_xlabel(name)
    axes.set_ylabel("validation loss (nats per prediction)")
    top, labels = axes.get_ylim()[1], []
    for method in (method for method in methods if method.curve):
        end, text = method.curve[-1], texts[method.label]
        text += f" \N{UPWARDS ARROW} {end.loss:.2f}" if end.loss > top else ""
        labels.append(EndLabel(text, end.cost.of(axis) / scale, end.loss, by_label[method.label].colour))
    label_ends(axes, labels)
    return figure


def _draw_target(
    axes: Axes,
    comparison: Comparison,
    saved: dict[str, Interval],
    by_label: dict[str, Look],
    axis: str,
    scale: float,
) -> None:
    """The target loss, the mean cost of each method that reaches it, and the largest saving as an arrow."""
    assert comparison.target
    loss = comparison.target.loss
    axes.axhline(loss, color="0.35", linestyle="--", linewidth=1)
    place: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": SMALL}
    axes.annotate(f"target {loss:.3f}", (0, loss), (4, 3), color="0.35", **place | {"va": "bottom"})
    costs = {method.label: cost for method in comparison.methods if (cost := method.cost(axis))}
    for label in saved:
        axes.plot([costs[label].mean / scale], [loss], "o", color=by_label[label].colour, zorder=5)
    certain = [label for label in saved if not saved[label].includes_zero]
    best = max(certain, key=lambda label: saved[label].mean, default=None)
    if best is None or saved[best].mean <= 0 or comparison.target.cost is None:
        return
    colour, start, end = by_label[best].colour, comparison.target.cost.of(axis) / scale, costs[best].mean / scale
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2.5, "shrinkA": 0, "shrinkB": 4}
    axes.annotate("", (end, loss), (start, loss), arrowprops=arrow, zorder=4)
    half = (costs[best].half or 0.0) / scale
    axes.errorbar(end, loss, xerr=half or None, color=colour, capsize=4, linewidth=1, zorder=4)
    place["ha"] = "right"  # the curve comes from above, so that there is room on the left below the target
    at, text = max(end - half, _TEXT_SHARE * axes.get_xlim()[1]), f"{saved_text(saved[best])} {_AXIS_NAMES[axis]}"
    axes.annotate(text, (at, loss), (-6, -5), color=ink(colour), weight="bold", **place)


def _draw(axes: Axes, method: Method, look: Look, axis: str, scale: float) -> None:
    """The mean curve with a band, a marker at its end; thin and dotted where fewer layers are stored."""
    if curve := method.curve:
        spent = [p.cost.of(axis) / scale for p in curve]
        if len(method.curves) > 1:
            seeds = savings.aligned(method.curves, with_ends=method.has_ended)
            low, high = ([f(p.loss for p in points) for points in seeds] for f in (min, max))
            axes.fill_between(spent, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=1)
        axes.plot(spent, [p.loss for p in curve], markevery=[-1], **look.of_line)
    for part in _partial_curves(method):
        spent = [p.cost.of(axis) / scale for p in part]
        label = f"{look.label}, fewer layers"
        axes.plot(spent, [p.loss for p in part], color=look.colour, linestyle=":", linewidth=1, label=label)


def _partial_curves(method: Method) -> Iterator[Curve]:
    """The mean curves of the stages that store fewer layers, or narrower ones, and of gated models."""
    runs = [outcome.run for outcome in method.outcomes]
    sizes = {model_size(row) for run in runs for row in run.evaluations if not run.is_whole(row)}
    for stored in sorted(sizes):
        parts = []
        for run in runs:
            rows = [row for row in run.evaluations if model_size(row) == stored and not run.is_whole(row)]
            parts.append(savings.make_curve(map(evaluation_point, rows)))
        yield savings.mean_curve([part for part in parts if part], with_ends=method.has_ended)


def _limits(comparison: Comparison, axis: str, most: float) -> tuple[float, float]:
    """From below the lowest loss to the baseline's after its start: the fall from ln V would squash the rest.

    Without a baseline every method counts, and the ends of all are within.
    """
    reference = comparison.baseline_cost.of(axis) if comparison.baseline_cost else most
    counted = [comparison.baseline] if comparison.baseline else comparison.methods
    points = [p for method in counted for p in method.curve if p.cost.of(axis) >= _START * reference]
    lowest = min((p for method in comparison.methods for p in method.curve), key=lambda p: p.loss, default=None)
    ends = [method.curve[-1] for method in counted if method.curve]
    losses = [p.loss for p in (*points, *ends, *([lowest] if lowest else [])) if math.isfinite(p.loss)]
    losses += [comparison.target.loss] if comparison.target else []
    margin = 0.06 * (max(losses, default=0) - min(losses, default=0)) or 0.1
    return min(losses, default=0) - 2 * margin, max(losses, default=0) + margin  # below is room for a text
