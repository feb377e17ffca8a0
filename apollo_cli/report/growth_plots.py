"""Pictures of growth: its effect on the loss, the sampled depths, and the probabilities of depths."""

import math
import re
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from apollo_cli import files
from apollo_cli.growth.samplers import LVPS
from apollo_cli.report.comparison import Comparison, Method, evaluation_point
from apollo_cli.report.groups import settings
from apollo_cli.report.runs import ROWS_AROUND, ModelSize, Row, Run, model_size
from apollo_cli.report.style import COLOURS, SMALL, WIDTH, EndLabel, Look, Picture, ink, label_ends, looks_of

Growth = tuple[ModelSize, ModelSize]  # before and after

_MAX_PANELS = 4
_MOST_NUMBERS = 16  # beside each other
_MOST_DEPTHS = 128  # a plan is untrusted
_STRENGTHS = (0, 1, 2, 3, 4)  # k of LVPS


def draw_growth(comparison: Comparison) -> Iterator[Picture]:
    """Each picture that the runs have data for."""
    methods, by_label = comparison.methods, looks_of(comparison)
    growths = sorted({growth for method in methods for growth in _growths(method)})[-_MAX_PANELS:]
    if growths:
        caption = (
            "what each growth does: validation loss just before (hollow) and after (filled), training loss and "
            "gradient norm around it; means over seeds."
        )
        yield Picture("growth", caption, _around_growths(methods, growths, by_label))
    runs = [outcome.run for method in methods for outcome in method.outcomes]
    counted = ((run, layers) for run in runs for layers, counts in run.depth_counts.items() if counts)
    stages = sorted({layers for run, layers in counted if layers not in (0, run.target_layers)})
    if stages:
        caption = "the sampled depths: percent of the micro-steps of a stage that run each depth; means over seeds."
        yield Picture("depths", caption, _sampled_depths(methods, stages[:_MAX_PANELS], by_label))
    if strengths := _by_strength(methods):
        caption = (
            "low-value-prioritised sampling: the final validation loss by the strength k, all else equal; mean and "
            "95 % interval over seeds."
        )
        yield Picture("strengths", caption, _over_strengths(comparison, strengths, by_label))
    runs = [run for run in runs if run.config.get("sampler.kind") == "lvps" and not run.is_scratch]
    runs = [run for run in runs if _lvps_constants(run)]
    runs = [run for run in runs if run.target_layers == runs[0].target_layers]  # the picture is of one depth
    stages = sorted({n for run in runs for n in run.config["schedule.layers"] if 0 < n < run.target_layers})
    if stages:
        caption = "low-value-prioritised sampling: the probability of each depth, for several strengths k."
        yield Picture("lvps", caption, _probabilities(runs[0], stages[:_MAX_PANELS]))


def _around_growths(methods: Sequence[Method], growths: Sequence[Growth], by_label: dict[str, Look]) -> Figure:
    """A row a growth: the names with the validation losses beside it, the training loss, the gradient norm."""
    members = [[method for method in methods if growth in _growths(method)] for growth in growths]
    heights = [max(2.2, 0.9 + 0.27 * len(growing)) for growing in members]
    figure, grid = _panels(heights, 3, width_ratios=(1.1, 1, 1))
    for row, growth, growing in zip(grid, growths, members, strict=True):
        jump, loss, norm = row
        for place, method in enumerate(growing):
            look = by_label[method.label]
            _draw_jump(jump, method, growth, look, place)
            _draw_column(loss, method, growth, look, "train/loss")
            _draw_column(norm, method, growth, look, "train/grad_norm")
        jump.set_title(_growth_title(growth), weight="bold")
        jump.set_yticks(range(len(growing)), [by_label[method.label].label for method in growing], fontsize=SMALL)
        for text, method in zip(jump.get_yticklabels(), growing, strict=True):
            text.set_color(ink(by_label[method.label].colour))
        jump.set_ylim(len(growing) - 0.4, -0.6)
        jump.margins(x=0.15)
        low, high = jump.get_xlim()
        if high - low < 0.02:  # a jump that is hardly one would fill the panel
            low, high = (low + high) / 2 - 0.01, (low + high) / 2 + 0.01
            jump.xaxis.set_major_locator(MaxNLocator(3))
        jump.set_xlim(low, high + 0.3 * (high - low))  # room for the numbers
        loss.set_title("training loss (nats)")
        norm.set_title("gradient norm")
        norm.set_yscale("log")
        low, high = norm.get_ylim()
        norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if high < 20 * low else (1, 3)))
        norm.yaxis.set_major_formatter("{x:g}")
        norm.yaxis.set_minor_locator(NullLocator())
        for axes in (loss, norm):
            axes.axvline(0, color="0.35", linestyle="--", linewidth=1)
            axes.xaxis.set_major_locator(MaxNLocator(4))
    names = ("validation loss (nats),\n○ before, ● after", *["steps since the growth"] * 2)
    for axes, name in zip(grid[-1], names, strict=True):
        axes.set_xlabel(name)
    return figure


def _panels(heights: Sequence[float], columns: int, **more: Any) -> tuple[Figure, Any]:
    """A figure and its panels, [row, column], rows of these inches."""
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    return figure, figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights, **more)


def _draw_jump(axes: Axes, method: Method, growth: Growth, look: Look, place: int) -> None:
    """The validation loss on both sides of a growth, and the difference as a number."""
    found = [_losses_beside(outcome.run, growth) for outcome in method.outcomes]
    sides = [pair for pair in found if pair]
    if not sides:
        return
    before, after = (fmean(pair[i] for pair in sides) for i in (0, 1))
    axes.plot([before, after], [place, place], color=look.colour, linewidth=1.5)
    axes.plot([before], [place], look.marker, color=look.colour, markerfacecolor="white")
    axes.plot([after], [place], look.marker, color=look.colour)
    beside: dict[str, Any] = {"textcoords": "offset points", "xytext": (9, 0), "va": "center", "fontsize": SMALL}
    difference = round(after - before, 3) + 0.0  # no -0.000
    axes.annotate(f"{difference:+.3f}", (max(before, after), place), color=ink(look.colour), **beside)


def _draw_column(axes: Axes, method: Method, growth: Growth, look: Look, column: str) -> None:
    """The mean over seeds of a training column around a growth, each seed beside its own growth."""
    found = [_values_around(outcome.run, growth, column) for outcome in method.outcomes]
    seeds = [sides for sides in found if any(sides)]
    for side in (0, 1):
        nearest_first = zip(*(sides[side] for sides in seeds), strict=False)
        points = sorted(tuple(map(fmean, zip(*of_seeds, strict=True))) for of_seeds in nearest_first)
        steps, means = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, means, linewidth=1.6, markersize=3.5, **look.of_line)


def _values_around(run: Run, growth: Growth, column: str) -> tuple[list[tuple[int, float]], ...]:
    """Before and after a growth: steps since it and values of a column, the nearest first."""
    step = next((row["step"] for row in run.evaluations if _growth(row) == growth), None)
    if step is None:
        return [], []
    rows = [row for row in run.rows if row.get(column) is not None]
    before, after = ([(r["step"] - step, r[column]) for r in rows if model_size(r) == size] for size in growth)
    return before[: -ROWS_AROUND - 1 : -1], after[:ROWS_AROUND]


def _losses_beside(run: Run, growth: Growth) -> tuple[float, float] | None:
    """The validation loss just before and after; None without this growth or a finite loss."""
    losses = {model_size(row): evaluation_point(row).loss for row in run.evaluations if _growth(row) == growth}
    before, after = (losses.get(side, math.inf) for side in growth)
    return (before, after) if math.isfinite(before) and math.isfinite(after) else None


def _growth(row: Row) -> Growth | None:
    """The growth that a row is directly before or after; only runs that grow in width record the width."""
    if "growth/from" not in row or "growth/to" not in row:
        return None
    width = model_size(row)[1]
    before = (row["growth/from"], row.get("growth/width_from") or width)
    return before, (row["growth/to"], row.get("growth/width_to") or width)


def _growth_title(growth: Growth) -> str:
    (layers, width), (more, wider) = growth
    deeper = f"{layers} to {more} layers" if layers != more or width == wider else ""
    return ", ".join(filter(None, (deeper, f"{width:g} to {wider:g} of the width" if width != wider else "")))


def _growths(method: Method) -> set[Growth]:
    rows = (row for outcome in method.outcomes for row in outcome.run.evaluations)
    return {growth for row in rows if (growth := _growth(row))}


def _sampled_depths(methods: Sequence[Method], stages: Sequence[int], by_label: dict[str, Look]) -> Figure:
    """A row a stage: a table of methods and depths, with the percent of the micro-steps as number and shade."""
    found = {layers: {method.label: _depth_shares(method, layers) for method in methods} for layers in stages}
    found = {layers: {label: shares for label, shares in of.items() if shares} for layers, of in found.items()}
    figure, grid = _panels([0.9 + 0.27 * len(of) for of in found.values()], 1)
    for (axes,), (layers, of) in zip(grid, found.items(), strict=True):
        low = min(depth for shares in of.values() for depth in shares)
        high = max(outcome.run.target_layers for m in methods if m.label in of for outcome in m.outcomes)
        depths = range(low, min(high, low + _MOST_DEPTHS - 1) + 1)
        cells = [[100 * shares.get(depth, 0.0) for depth in depths] for shares in of.values()]
        axes.pcolormesh(cells, cmap="Greys", vmin=0, vmax=150, edgecolors="white", linewidth=1)
        for y, of_method in enumerate(cells):
            for x, percent in enumerate(of_method):
                if percent and len(depths) <= _MOST_NUMBERS:
                    shown = f"{percent:.0f}" if percent >= 0.5 else "<1"
                    axes.text(x + 0.5, y + 0.5, shown, ha="center", va="center", fontsize=SMALL)
        axes.set_title(files.counted(layers, "stored layer"), weight="bold")
        step = math.ceil(len(depths) / _MOST_NUMBERS)
        axes.set_xticks([x + 0.5 for x in range(0, len(depths), step)], list(map(str, depths[::step])))
        axes.set_yticks([y + 0.5 for y in range(len(of))], [by_label[label].label for label in of], fontsize=SMALL)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    grid[-1, 0].set_xlabel("depth (layers run); the numbers are percent of the micro-steps")
    return figure


def _depth_shares(method: Method, layers: int) -> dict[int, float]:
    """Share of the micro-steps at each depth in the stage of so many stored layers."""
    runs = [outcome.run for outcome in method.outcomes if outcome.run.target_layers != layers]
    counted = [run.depth_counts[layers] for run in runs if run.depth_counts.get(layers)]
    found = [{depth: n / sum(counts.values()) for depth, n in counts.items()} for counts in counted]
    depths = {depth for shares in found for depth in shares}
    return {depth: fmean(shares.get(depth, 0.0) for shares in found) for depth in depths}


def _lvps_constants(run: Run) -> dict[str, float] | None:
    """Constants of the run's sampler; None if they, untrusted, are not valid."""
    found = {key: run.config.get(f"sampler.{key}", getattr(LVPS, key)) for key in ("lower", "overshoot")}
    is_valid = all(type(value) in (int, float) and 0 < value <= 100 for value in found.values())
    return found if is_valid and found["lower"] <= 1 else None


def _by_strength(methods: Sequence[Method]) -> list[dict[float, Method]]:
    """Methods that differ in the strength k of LVPS alone, by k."""
    found: dict[str, dict[float, Method]] = {}
    for method in methods:
        own = settings(method.outcomes[0].run)
        k = own.pop("sampler.k", None)
        is_strength = own.get("sampler.kind") == "lvps" and type(k) in (int, float) and math.isfinite(k)
        if is_strength and method.final and math.isfinite(method.final.mean):
            found.setdefault(repr(own), {})[k] = method
    return [dict(sorted(by_k.items())) for by_k in found.values() if len(by_k) > 1]


def _over_strengths(
    comparison: Comparison, strengths: Sequence[dict[float, Method]], by_label: dict[str, Look]
) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes, ends = figure.add_subplot(), []
    for by_k in strengths:
        look = by_label[next(reversed(by_k.values())).label]
        finals = [method.final for method in by_k.values() if method.final]
        means, halves = [final.mean for final in finals], [final.half or 0.0 for final in finals]
        axes.errorbar(list(by_k), means, yerr=halves, color=look.colour, capsize=4, fmt="none", linewidth=1)
        axes.plot(list(by_k), means, **look.of_line)
        if len(strengths) > 1:
            name = re.sub(r" k=\S+", "", look.label)
            ends.append(EndLabel(name, max(by_k), means[-1], look.colour))
    axes.xaxis.set_major_locator(FixedLocator(sorted({k for by_k in strengths for k in by_k})))
    if comparison.target:
        axes.axhline(comparison.target.loss, color="0.35", linestyle="--", linewidth=1)
        text = f"target {comparison.target.loss:.3f}"
        ends.append(EndLabel(text, axes.get_xlim()[1], comparison.target.loss, "0.35"))
    label_ends(axes, ends)
    axes.set_xlabel("k: how strongly shallow depths are preferred")
    axes.set_ylabel("final validation loss (nats)")
    return figure


def _probabilities(run: Run, stages: Sequence[int]) -> Figure:
    figure, grid = _panels([4.0], len(stages), sharey=True)
    for axes, layers in zip(grid[0], stages, strict=True):
        ends = []
        for k, colour, marker in zip(_STRENGTHS, COLOURS, "osD^v", strict=False):
            shares = LVPS(k=k, **(_lvps_constants(run) or {})).probabilities(layers, run.target_layers)
            depths, percents = sorted(shares), [100 * shares[depth] for depth in sorted(shares)]
            axes.plot(depths, percents, color=colour, marker=marker, label=f"k = {k}")
            ends.append(EndLabel(f"k = {k}", depths[-1], percents[-1], colour))
        axes.set_title(f"N = {layers} of L = {run.target_layers}")
        axes.set_xlabel("depth (layers run)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_yscale("log")
    grid[0, 0].yaxis.set_major_formatter("{x:g}")
    grid[0, 0].yaxis.set_minor_locator(NullLocator())
    grid[0, 0].set_ylabel("probability (%)")
    label_ends(grid[0, -1], ends)
    return figure
