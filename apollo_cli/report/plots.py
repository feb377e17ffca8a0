"""Pictures of runs: validation loss against what was spent."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from apollo_cli.intervals import Interval
from apollo_cli.report import growth_plots, savings
from apollo_cli.report.comparison import Comparison, Method, point
from apollo_cli.report.runs import size
from apollo_cli.report.savings import Curve
from apollo_cli.report.style import SETTINGS, Look, legend, looks, png, unit
from apollo_cli.report.words import cells

_MOST_METHODS = 16  # in one picture; more nobody tells apart
_TRIVIAL = 0.15  # the share of the baseline's cost in which losses are too high to be shown
_NAMES = {"flops": "FLOPs", "seconds": "time"}


def pictures(comparison: Comparison) -> Iterator[tuple[str, str, bytes]]:
    """A name, a caption and a PNG of each picture that the runs have something for."""
    title, some = comparison.family.title, ""
    if len(comparison.methods) > _MOST_METHODS:
        some = f" Shown are {_MOST_METHODS} of {len(comparison.methods)} methods, those with the best results."
        comparison = replace(comparison, methods=_best(comparison))
    with plt.rc_context(SETTINGS):
        if any(method.curve for method in comparison.methods):
            for axis, what in (("flops", "model FLOPs"), ("seconds", "training seconds")):
                caption = (
                    f"{title}: validation loss against {what}. Lines are means over seeds, bands reach from the "
                    "lowest to the highest seed, dotted lines are the loss of fewer layers, another model's."
                    f"{some}"
                )
                yield f"loss_against_{axis}", caption, _loss(comparison, axis)
        for name, caption, data in growth_plots.pictures(comparison):
            yield name, f"{title}: {caption}{some}", data


def _best(comparison: Comparison) -> tuple[Method, ...]:
    """The baseline and those that save most, then those of the lowest loss, in their own order."""

    def merit(method: Method) -> tuple[bool, float, float]:
        saved, final = method.saving("flops"), method.final
        return (not method.is_baseline, -saved.mean if saved else math.inf, final.mean if final else math.inf)

    best = sorted(comparison.methods, key=merit)[:_MOST_METHODS]
    return tuple(method for method in comparison.methods if method in best)


def _loss(comparison: Comparison, axis: str) -> bytes:
    """Curves above, below them one lane a method with what it saves."""
    by_label, methods = looks(comparison.methods), comparison.methods
    lanes = [m for m in methods if not m.is_baseline] if comparison.baseline_cost else []
    strip = 0.2 + 0.34 * len(lanes)
    figure = plt.figure(figsize=(8, 4.6 + (strip if lanes else 0)), layout="constrained")
    grid = figure.add_gridspec(2 if lanes else 1, 1, height_ratios=(4.6, strip) if lanes else None, hspace=0.02)
    axes = figure.add_subplot(grid[0])
    most = max(p.cost.of(axis) for m in methods for o in m.outcomes for p in o.curve) or 1.0
    scale, name = unit(axis, most)
    for method in methods:
        _draw(axes, method, by_label[method.label], axis, scale)
    axes.set_ylim(*_limits(comparison, axis, most))
    axes.set_xlim(0, most / scale * 1.02)
    if comparison.target:
        axes.axhline(comparison.target.loss, color="0.35", linestyle="--", linewidth=1)
        axes.annotate(
            f"target {comparison.target.loss:.3f}",
            (0.005, comparison.target.loss),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(0, -4),
            va="top",
            fontsize=9,
            color="0.35",
        )
    axes.set_ylabel("validation loss (nats per prediction)")
    legend(axes, len(methods), loc="upper right")
    below = axes
    if lanes:
        below = figure.add_subplot(grid[1], sharex=axes)
        axes.tick_params(labelbottom=False)
        _lanes(axes, below, comparison, lanes, by_label, axis, scale)
    below.set_xlabel(name)
    return png(figure)


def _draw(axes: Axes, method: Method, look: Look, axis: str, scale: float) -> None:
    """The mean curve with a band, a marker at its end; thin and dotted where fewer layers are stored."""
    line = method.curve
    if line:
        by_seed = [{p.step: p.loss for p in each} for each in method.curves]
        spent = [p.cost.of(axis) / scale for p in line]
        if len(by_seed) > 1:
            low, high = ([f(losses[p.step] for losses in by_seed) for p in line] for f in (min, max))
            axes.fill_between(spent, low, high, color=look.colour, alpha=0.18, linewidth=0)
        axes.plot(spent, [p.loss for p in line], color=look.colour, linestyle=look.line, linewidth=2)
        axes.plot(spent[-1:], [line[-1].loss], look.marker, color=look.colour, markersize=7)
    for part in _shallow(method):
        spent = [p.cost.of(axis) / scale for p in part]
        axes.plot(spent, [p.loss for p in part], color=look.colour, linestyle=":", linewidth=1)
    axes.plot([], [], color=look.colour, linestyle=look.line, marker=look.marker, label=look.label)


def _shallow(method: Method) -> Iterator[Curve]:
    """The mean curves of the stages that store fewer layers, or narrower ones."""
    runs = [outcome.run for outcome in method.outcomes]
    sizes = {size(row) for run in runs for row in run.evaluations if not run.is_whole(row)}
    for stored in sorted(sizes):
        parts = [savings.curve(point(row) for row in run.evaluations if size(row) == stored) for run in runs]
        yield savings.mean_curve([part for part in parts if part])


def _limits(comparison: Comparison, axis: str, most: float) -> tuple[float, float]:
    """From below the lowest loss to the baseline's after its first part: the fall from ln V would squash the rest.

    All ends are within; without a baseline every method counts.
    """
    reference = comparison.baseline_cost.of(axis) if comparison.baseline_cost else most
    telling = [comparison.baseline] if comparison.baseline else comparison.methods
    points = [p for method in telling for p in method.curve if p.cost.of(axis) >= _TRIVIAL * reference]
    lowest = [min(method.curve, key=lambda p: p.loss) for method in comparison.methods if method.curve]
    ends = [method.curve[-1] for method in comparison.methods if method.curve]
    losses = [p.loss for p in (*points, *lowest, *ends) if math.isfinite(p.loss)]
    losses += [comparison.target.loss] if comparison.target else []
    margin = 0.06 * (max(losses, default=0) - min(losses, default=0)) or 0.1
    return min(losses, default=0) - margin, max(losses, default=0) + margin


def _lanes(
    axes: Axes,
    below: Axes,
    comparison: Comparison,
    lanes: Sequence[Method],
    by_label: dict[str, Look],
    axis: str,
    scale: float,
) -> None:
    """An arrow from the baseline's cost of the target to each method's, with what that saves."""
    assert comparison.baseline_cost
    assert comparison.target
    start = comparison.baseline_cost.of(axis) / scale
    bottom = axes.get_ylim()[0]
    axes.plot([start, start], [bottom, comparison.target.loss], color="black", linestyle=":", linewidth=1)
    below.axvline(start, color="black", linestyle=":", linewidth=1)
    below.set_ylim(len(lanes) - 0.4, -0.75)
    below.set_yticks([])
    below.grid(visible=False)
    below.spines["left"].set_visible(False)
    for lane, method in enumerate(lanes):
        look = by_label[method.label]
        cost, saved = method.cost(axis), method.saving(axis)
        if cost is None or saved is None:
            text = cells(comparison, method).costs[axis]
            _beside(below, start, lane, f"{look.label}: {text}")
            continue
        end = cost.mean / scale
        axes.plot([end], [comparison.target.loss], "o", color=look.colour, markersize=5, zorder=5)
        axes.plot([end, end], [bottom, comparison.target.loss], color=look.colour, linestyle=":", linewidth=1)
        below.plot([end, end], [-0.75, lane], color=look.colour, linestyle=":", linewidth=1)
        below.annotate(
            "", (end, lane), (start, lane), arrowprops={"arrowstyle": "-|>", "color": look.colour, "lw": 1.8}
        )
        if cost.half is not None:
            below.errorbar(end, lane, xerr=cost.half / scale, color=look.colour, capsize=3, linewidth=1)
        _beside(below, start, lane, f"{look.label}: {_saved(saved, axis)}")


def _beside(below: Axes, start: float, lane: int, text: str) -> None:
    """Text above a lane that ends, or where there is more room begins, at the baseline's cost."""
    to_the_left = start > below.get_xlim()[1] / 2
    below.annotate(
        text,
        (start, lane),
        textcoords="offset points",
        xytext=(-6 if to_the_left else 6, 3),
        ha="right" if to_the_left else "left",
        va="bottom",
        color="0.1",
        fontsize=10,
        bbox={"boxstyle": "square,pad=0.1", "color": "white"},
    )


def _saved(saved: Interval, axis: str) -> str:
    """`-45.2 ± 3.1% FLOPs`."""
    half = "" if saved.half is None else f" ± {100 * saved.half:.1f}"
    return f"{-100 * saved.mean:+.1f}{half}% {_NAMES[axis]}".replace("-", "\N{MINUS SIGN}")
