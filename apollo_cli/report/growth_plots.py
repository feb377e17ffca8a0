"""Pictures of growth: its effect on the loss, the sampled depths, and the probabilities of depths."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from apollo_cli.growth.samplers import LVPS
from apollo_cli.report.comparison import Comparison, Method
from apollo_cli.report.runs import ROWS_AROUND, ModelSize, Row, Run, model_size
from apollo_cli.report.style import COLOURS, Look, Picture, looks

Growth = tuple[ModelSize, ModelSize]  # before and after

_MAX_PANELS = 4  # beside each other
_MAX_NUMBERS = 6  # beside the jumps of one growth
_STRENGTHS = (0, 1, 2, 3, 4)  # k of LVPS


def draw_growth(comparison: Comparison) -> Iterator[Picture]:
    """Each picture that the runs have data for."""
    methods, by_label = comparison.methods, looks(comparison.methods)
    growths = sorted({growth for method in methods for growth in _growths(method)})[-_MAX_PANELS:]
    if growths:
        caption = (
            "what each growth does: validation loss just before (hollow) and after (filled), training loss and "
            "gradient norm around it; means over seeds."
        )
        yield Picture("growth", caption, _around_growths(methods, growths, by_label))
    runs = [outcome.run for method in methods for outcome in method.outcomes]
    stages = sorted({layers for run in runs for layers in run.depth_counts if layers not in (0, run.target_layers)})
    if stages:
        caption = "the sampled depths: share of the micro-steps of a stage that run each depth; means over seeds."
        yield Picture("depths", caption, _sampled_depths(methods, stages[:_MAX_PANELS], by_label))
    runs = [run for run in runs if run.config.get("sampler.kind") == "lvps" and not run.is_scratch]
    runs = [run for run in runs if _lvps_constants(run)]
    stages = sorted({n for run in runs for n in run.config["schedule.layers"] if 0 < n < run.target_layers})
    if stages:
        caption = "low-value-prioritised sampling: the probability of each depth, for several strengths k."
        yield Picture("lvps", caption, _probabilities(runs[0], stages[:_MAX_PANELS]))


def _around_growths(methods: Sequence[Method], growths: Sequence[Growth], by_label: dict[str, Look]) -> Figure:
    figure, grid = _panels(3, len(growths), 8)
    for column, growth in enumerate(growths):
        jump, loss, norm = grid[:, column]
        jump.set_title(_growth_title(growth))
        growing = [method for method in methods if growth in _growths(method)]
        for place, method in enumerate(growing):
            look = by_label[method.label]
            _draw_jump(jump, method, growth, look, place, with_number=len(growing) <= _MAX_NUMBERS)
            _draw_column(loss, method, growth, look, "train/loss")
            _draw_column(norm, method, growth, look, "train/grad_norm")
        jump.set_xticks([])
        jump.set_xlim(-0.6, len(growing) - 0.4)
        jump.margins(y=0.25)
        norm.set_yscale("log")
        low, high = norm.get_ylim()
        norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if high < 20 * low else (1, 3)))
        norm.yaxis.set_major_formatter("{x:g}")
        norm.yaxis.set_minor_locator(NullLocator())
        for axes in (loss, norm):
            axes.axvline(0, color="0.35", linestyle="--", linewidth=1)
        norm.set_xlabel("steps since the growth")
    _same_span(grid[0])
    names = ("validation loss (nats)\nbefore ○, after ●", "training loss (nats)", "gradient norm")
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name)
    _common_legend(figure, [by_label[method.label] for method in methods if _growths(method)])
    return figure


def _panels(rows: int, columns: int, height: float, **more: Any) -> tuple[Figure, Any]:
    """A figure and its panels, [row, column]."""
    size = (max(8.0, 3.2 * columns + 1), height)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _same_span(panels: Sequence[Axes]) -> None:
    """Gives the panels y-axes of equal length, so that equal jumps look equal."""
    limits = [axes.get_ylim() for axes in panels]
    half = max(high - low for low, high in limits) / 2
    for axes, (low, high) in zip(panels, limits, strict=True):
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)


def _common_legend(figure: Figure, entries: Sequence[Look]) -> None:
    lines = [Line2D([], [], label=look.label, **look.of_line) for look in entries]
    columns = max(1, min(6, 80 // (6 + max((len(look.label) for look in entries), default=1))))
    figure.legend(handles=lines, loc="outside upper center", ncols=columns, fontsize=10)


def _draw_jump(axes: Axes, method: Method, growth: Growth, look: Look, place: int, *, with_number: bool) -> None:
    """The validation loss on both sides of a growth, and the difference as a number."""
    found = [_losses_beside(outcome.run, growth) for outcome in method.outcomes]
    sides = [pair for pair in found if pair]
    if not sides:
        return
    before, after = (fmean(pair[i] for pair in sides) for i in (0, 1))
    axes.plot([place, place], [before, after], color=look.colour, linewidth=1.5)
    axes.plot([place], [before], look.marker, color=look.colour, markerfacecolor="white", markersize=8)
    axes.plot([place], [after], look.marker, color=look.colour, markersize=8)
    if with_number:
        above: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 8), "ha": "center", "fontsize": 8}
        axes.annotate(f"{after - before:+.3f}", (place, max(before, after)), color=look.colour, **above)


def _draw_column(axes: Axes, method: Method, growth: Growth, look: Look, column: str) -> None:
    """The mean over seeds of a training column around a growth, each seed beside its own growth."""
    found = [_values_around(outcome.run, growth, column) for outcome in method.outcomes]
    seeds = [sides for sides in found if any(sides)]
    for side in (0, 1):
        nearest_first = zip(*(sides[side] for sides in seeds), strict=False)
        points = sorted(tuple(map(fmean, zip(*of_seeds, strict=True))) for of_seeds in nearest_first)
        steps, means = zip(*points, strict=True) if points else ((), ())
        axes.plot(steps, means, linewidth=1.6, markersize=3, **look.of_line)


def _values_around(run: Run, growth: Growth, column: str) -> tuple[list[tuple[int, float]], ...]:
    """Before and after a growth: steps since it and values of a column, the nearest first."""
    step = next((row["step"] for row in run.evaluations if _growth(row) == growth), None)
    if step is None:
        return [], []
    sides = [
        [
            (row["step"] - step, row[column])
            for row in run.rows
            if row.get(column) is not None and model_size(row) == size
        ]
        for size in growth
    ]
    return sides[0][: -ROWS_AROUND - 1 : -1], sides[1][:ROWS_AROUND]


def _losses_beside(run: Run, growth: Growth) -> tuple[float, float] | None:
    """The validation loss just before and after; None without this growth or a finite loss."""
    rows = {model_size(row): row["eval/loss"] for row in run.evaluations if _growth(row) == growth}
    before, after = (rows.get(side) for side in growth)
    if before is None or after is None or not math.isfinite(before) or not math.isfinite(after):
        return None
    return before, after


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
    panels = {}
    for layers in stages:
        found = [(by_label[method.label], _depth_shares(method, layers)) for method in methods]
        title = f"{layers} stored layer{'s' if layers > 1 else ''}"
        panels[title] = [(look, shares) for look, shares in found if shares]
    return _depth_figure(panels, "micro-steps of the stage (%)", markersize=6, alpha=0.85)


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


def _probabilities(run: Run, stages: Sequence[int]) -> Figure:
    panels: dict[str, list[tuple[Look, dict[int, float]]]] = {}
    for layers in stages:
        lines = panels.setdefault(f"N = {layers} of L = {run.target_layers}", [])
        for k, colour, marker in zip(_STRENGTHS, COLOURS, "osD^v", strict=False):
            sampler = LVPS(k=k, **(_lvps_constants(run) or {}))
            lines.append((Look(f"k = {k}", colour, "-", marker), sampler.probabilities(layers, run.target_layers)))
    return _depth_figure(panels, "probability (%)", markersize=5)


def _depth_figure(panels: dict[str, list[tuple[Look, dict[int, float]]]], name: str, **style: float) -> Figure:
    """One panel a title: shares, called `name`, by depth."""
    figure, grid = _panels(1, len(panels), 4.2, sharey=True)
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        for look, shares in lines:
            depths = sorted(shares)
            axes.plot(depths, [100 * shares[depth] for depth in depths], **look.of_line, **style)
        axes.set_title(title)
        axes.set_xlabel("depth (layers run)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_ylabel(name)
    grid[0, 0].set_ylim(bottom=0)
    _common_legend(figure, list(dict.fromkeys(look for lines in panels.values() for look, _ in lines)))
    return figure
