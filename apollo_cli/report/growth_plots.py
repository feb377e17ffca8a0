"""Pictures of growth: what it does to the loss, which depths are drawn, and how likely they are."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from apollo_cli.growth.samplers import LVPS
from apollo_cli.report.comparison import Comparison, Method
from apollo_cli.report.runs import Row, Run, Size, size
from apollo_cli.report.style import COLOURS, Look, looks, png

Growth = tuple[Size, Size]  # before and after

_MOST_PANELS = 4  # beside each other
_MOST_NUMBERS = 6  # of jumps beside each other
_ROWS_AROUND = 12  # training rows on either side of a growth
_STRENGTHS = (0, 1, 2, 3, 4)  # k of LVPS
_CONSTANTS = {"lower": LVPS.lower, "overshoot": LVPS.overshoot}


def pictures(comparison: Comparison) -> Iterator[tuple[str, str, bytes]]:
    """A name, a caption and a PNG of each picture that the runs have something for."""
    by_label = looks(comparison.methods)
    growths = sorted({growth for method in comparison.methods for growth in _growths(method)})[-_MOST_PANELS:]
    if growths:
        caption = (
            "what each growth does: validation loss just before (hollow) and after (filled), training loss and "
            "gradient norm around it; means over seeds."
        )
        yield "growth", caption, _around_growths(comparison.methods, growths, by_label)
    stages = _sampled_stages(comparison.methods)
    if stages:
        caption = "the sampled depths: share of the micro-steps of a stage that run each depth; means over seeds."
        yield "depths", caption, _depths(comparison.methods, stages, by_label)
    if found := _lvps(comparison.methods):
        caption = "low-value-prioritised sampling: the probability of each depth, for several strengths k."
        yield "lvps", caption, _probabilities(*found)


def _around_growths(methods: Sequence[Method], growths: Sequence[Growth], by_label: dict[str, Look]) -> bytes:
    figure, grid = _panels(3, len(growths), 8)
    for column, growth in enumerate(growths):
        jump, loss, norm = grid[:, column]
        jump.set_title(_title(growth))
        growing = [method for method in methods if growth in _growths(method)]
        for place, method in enumerate(growing):
            look = by_label[method.label]
            _jump(jump, method, growth, look, place, with_number=len(growing) <= _MOST_NUMBERS)
            _window(loss, method, growth, look, "train/loss")
            _window(norm, method, growth, look, "train/grad_norm")
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
    return png(figure)


def _panels(rows: int, columns: int, height: float, **more: Any) -> tuple[Figure, Any]:
    """A figure and its panels, [row, column]."""
    size = (max(8.0, 3.2 * columns + 1), height)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **more)


def _same_span(panels: Sequence[Axes]) -> None:
    """So that a jump twice as high looks so, wherever the loss is."""
    limits = [axes.get_ylim() for axes in panels]
    half = max(high - low for low, high in limits) / 2
    for axes, (low, high) in zip(panels, limits, strict=True):
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)


def _common_legend(figure: Figure, entries: Sequence[Look]) -> None:
    """Above all panels."""
    lines = [
        plt.Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, label=look.label)
        for look in entries
    ]
    columns = max(1, min(6, 80 // (6 + max((len(look.label) for look in entries), default=1))))
    figure.legend(handles=lines, loc="outside upper center", ncols=columns, fontsize=10)


def _jump(axes: Axes, method: Method, growth: Growth, look: Look, place: int, *, with_number: bool) -> None:
    """The validation loss on both sides, and how much it changed."""
    found = [_sides(outcome.run, growth) for outcome in method.outcomes]
    sides = [pair for pair in found if pair]
    if not sides:
        return
    before, after = (fmean(pair[i] for pair in sides) for i in (0, 1))
    axes.plot([place, place], [before, after], color=look.colour, linewidth=1.5)
    axes.plot([place], [before], look.marker, color=look.colour, markerfacecolor="white", markersize=8)
    axes.plot([place], [after], look.marker, color=look.colour, markersize=8)
    axes.annotate(
        f"{after - before:+.3f}" if with_number else "",
        (place, max(before, after)),
        textcoords="offset points",
        xytext=(0, 8),
        ha="center",
        fontsize=8,
        color=look.colour,
    )


def _window(axes: Axes, method: Method, growth: Growth, look: Look, column: str) -> None:
    """The mean over seeds of a training column around a growth, within the stages on both sides."""
    series = [_around(outcome.run, growth, column) for outcome in method.outcomes]
    shared = sorted(set.intersection(*map(set, series)))
    for side in ([s for s in shared if s <= 0], [s for s in shared if s > 0]):
        means = [fmean(values[step] for values in series) for step in side]
        axes.plot(
            side, means, color=look.colour, linestyle=look.line, linewidth=1.6, marker=look.marker, markersize=3
        )


def _around(run: Run, growth: Growth, column: str) -> dict[int, float]:
    """Values by steps since the growth; a row at the growth's own step is of before."""
    step = next((row["step"] for row in run.rows if _is(row, growth)), None)
    if step is None:
        return {}
    rows = [row for row in run.rows if row.get(column) is not None and size(row) in growth]
    before = [row for row in rows if size(row) == growth[0]][-_ROWS_AROUND:]
    after = [row for row in rows if size(row) == growth[1]][:_ROWS_AROUND]
    return {row["step"] - step: row[column] for row in (*before, *after)}


def _sides(run: Run, growth: Growth) -> tuple[float, float] | None:
    """The validation loss just before and after; None where the run does not grow so."""
    rows = {size(row): row["eval/loss"] for row in run.evaluations if _is(row, growth)}
    values = [rows.get(side) for side in growth]
    before, after = (value if value is not None and math.isfinite(value) else None for value in values)
    return None if before is None or after is None else (before, after)


def _is(row: Row, growth: Growth) -> bool:
    return _growth(row) == growth


def _growth(row: Row) -> Growth | None:
    """That a row is beside; the width stands there where it grows, too."""
    ends = (("growth/from", "growth/width_from"), ("growth/to", "growth/width_to"))
    if any(layers not in row for layers, _ in ends):
        return None
    before, after = ((row[layers], row.get(width) or size(row)[1]) for layers, width in ends)
    return before, after


def _title(growth: Growth) -> str:
    (layers, width), (more, wider) = growth
    deeper = f"{layers} to {more} layers" if layers != more or width == wider else ""
    return ", ".join(filter(None, (deeper, f"{width:g} to {wider:g} of the width" if width != wider else "")))


def _growths(method: Method) -> set[Growth]:
    rows = (row for outcome in method.outcomes for row in outcome.run.evaluations)
    return {growth for row in rows if (growth := _growth(row))}


def _sampled_stages(methods: Sequence[Method]) -> list[int]:
    """Stored layers of the stages in which some method draws the depth, or could."""
    runs = [outcome.run for method in methods for outcome in method.outcomes]
    stages = {layers for run in runs for layers in run.depth_counts if layers != run.target_layers}
    return sorted(stages)[:_MOST_PANELS]


def _depths(methods: Sequence[Method], stages: Sequence[int], by_label: dict[str, Look]) -> bytes:
    figure, grid = _panels(1, len(stages), 4.2, sharey=True)
    shown = []
    for axes, layers in zip(grid[0], stages, strict=True):
        for method in methods:
            shares = _shares(method, layers)
            if not shares:
                continue
            shown.append(by_label[method.label])
            look, depths = shown[-1], sorted(shares)
            axes.plot(
                depths,
                [100 * shares[depth] for depth in depths],
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                markersize=6,
                alpha=0.85,
            )
        axes.set_title(f"{layers} stored layer{'s' if layers > 1 else ''}")
    return _over_depths(figure, grid, "micro-steps of the stage (%)", list(dict.fromkeys(shown)))


def _shares(method: Method, layers: int) -> dict[int, float]:
    """Share of the micro-steps at each depth in the stage of so many stored layers."""
    runs = [outcome.run for outcome in method.outcomes if outcome.run.target_layers != layers]
    counted = [run.depth_counts[layers] for run in runs if run.depth_counts.get(layers)]
    found = [{depth: n / sum(counts.values()) for depth, n in counts.items()} for counts in counted]
    depths = {depth for shares in found for depth in shares}
    return {depth: fmean(shares.get(depth, 0.0) for shares in found) for depth in depths}


def _lvps(methods: Sequence[Method]) -> tuple[Run, list[int]] | None:
    """A run that draws so, and the stored layers of all such runs that leave a choice of depth."""
    runs = [o.run for m in methods for o in m.outcomes if o.run.config.get("sampler.kind") == "lvps"]
    runs = [run for run in runs if not run.is_scratch and _constants(run)]
    stages = {n for run in runs for n in run.config["schedule.layers"] if n < run.target_layers}
    return (runs[0], sorted(stages)[:_MOST_PANELS]) if stages else None


def _constants(run: Run) -> dict[str, float] | None:
    """Those of its sampler; None if they, a stranger's, are none."""
    found = {key: run.config.get(f"sampler.{key}", default) for key, default in _CONSTANTS.items()}
    is_sound = all(type(value) in (int, float) and 0 < value <= 100 for value in found.values())
    return found if is_sound and found["lower"] <= 1 else None


def _probabilities(run: Run, stages: Sequence[int]) -> bytes:
    figure, grid = _panels(1, len(stages), 4.2, sharey=True)
    entries = [
        Look(f"k = {k}", colour, "-", marker)
        for k, colour, marker in zip(_STRENGTHS, COLOURS, "osD^v", strict=False)
    ]
    for axes, layers in zip(grid[0], stages, strict=True):
        for k, look in zip(_STRENGTHS, entries, strict=True):
            likely = LVPS(k=k, **(_constants(run) or {})).probabilities(layers, run.target_layers)
            axes.plot(
                list(likely),
                [100 * p for p in likely.values()],
                color=look.colour,
                marker=look.marker,
                markersize=5,
            )
        axes.set_title(f"N = {layers} of L = {run.target_layers}")
    return _over_depths(figure, grid, "probability (%)", entries)


def _over_depths(figure: Figure, grid: Any, name: str, entries: Sequence[Look]) -> bytes:
    """The file of panels that have the depth below and shares of `name` beside."""
    for axes in grid[0]:
        axes.set_xlabel("depth (layers run)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    grid[0, 0].set_ylabel(name)
    grid[0, 0].set_ylim(bottom=0)
    _common_legend(figure, entries)
    return png(figure)
