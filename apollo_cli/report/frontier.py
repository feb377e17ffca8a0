"""The picture of savings at equal final loss: complete runs of every method beside scratch runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from apollo_cli.intervals import interval
from apollo_cli.report import savings
from apollo_cli.report.comparison import Comparison, Outcome
from apollo_cli.report.savings import Curve, Point
from apollo_cli.report.style import COLOURS, SETTINGS, axis_unit, looks

_MARGIN = 0.08  # of the losses of scratch, above and below them
_APART = 0.06  # of the height, between two labels
_BESIDE = 1.3  # the factor of the costs of two points whose labels could overlap
_ROOM = 1.7  # the factor of the costs left of the cheapest run, for its label
_MARKERS = "osD^vP"


@dataclass(frozen=True)
class Ended:
    """The complete runs of a method.

    Attributes:
        label: of the method.
        ends: the last evaluation of each run, one a seed.
        saved: the share that each saved beside a scratch run of its final loss; None beyond the budgets of scratch.
    """

    label: str
    ends: tuple[Point, ...]
    saved: tuple[float | None, ...]


def frontier_of(comparison: Comparison, axis: str) -> Figure | None:
    """The picture of a comparison; None without complete scratch runs of several budgets and a method beside.

    Budgets are compared that every seed has; scratch runs are of the depth that the methods grow to.
    """
    grown = list(_labelled(comparison))
    depths = {outcome.run.target_layers for _, outcome in grown}
    ladders: dict[Any, dict[int, Point]] = {}
    for outcome in _complete(comparison, is_scratch=True):
        best, end = ladders.setdefault(outcome.run.seed, {}), outcome.curve[-1]
        if depths != {outcome.run.target_layers}:  # another model
            continue
        if end.step not in best or end.loss < best[end.step].loss:  # of several rates
            best[end.step] = end
    several = {seed: best for seed, best in ladders.items() if len(best) > 1}
    shared = set.intersection(*(set(best) for best in several.values())) if several else set()
    curves = {seed: savings.make_curve(best[step] for step in shared) for seed, best in several.items()}
    by_label: dict[str, list[Outcome]] = {}
    for label, outcome in grown:
        if outcome.run.seed in curves:
            by_label.setdefault(label, []).append(outcome)
    if len(shared) < 2 or not by_label:
        return None
    methods = []
    for label, outcomes in by_label.items():
        ends = [outcome.curve[-1] for outcome in outcomes]
        costs = [
            savings.scratch_cost(curves[o.run.seed], end.loss, axis) for o, end in zip(outcomes, ends, strict=True)
        ]
        saved = [c and savings.saving(end.cost.of(axis), c) for c, end in zip(costs, ends, strict=True)]
        methods.append(Ended(label, tuple(ends), tuple(saved)))
    return draw_frontier(list(curves.values()), methods, axis)


def _complete(comparison: Comparison, *, is_scratch: bool) -> Iterator[Outcome]:
    for method in comparison.methods:
        for outcome in method.outcomes:
            is_asked = outcome.run.is_scratch == is_scratch and outcome.run.status == "completed"
            if is_asked and outcome.curve:
                yield outcome


def _labelled(comparison: Comparison) -> Iterator[tuple[str, Outcome]]:
    """The complete runs of methods that grow, with their short labels."""
    of_methods = looks(comparison.methods)
    for method in comparison.methods:
        one = replace(comparison, methods=(method,))
        yield from ((of_methods[method.label].label, outcome) for outcome in _complete(one, is_scratch=False))


def draw_frontier(scratch: Sequence[Curve], methods: Sequence[Ended], axis: str) -> Figure:
    """Final losses against cost: a line through complete scratch runs, a point and an arrow to it for each method.

    Args:
        scratch: for each seed the last evaluations of scratch runs, each laid out for its own budget.
        methods: those whose mean loss is far above scratch's are named, not drawn.
        axis: flops or seconds.
    """
    with style.context(SETTINGS):
        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axes = figure.add_subplot()
        rungs = savings.aligned(scratch, with_ends=False)
        line = savings.mean_curve(scratch, with_ends=False)
        most = max(p.cost.of(axis) for p in (*line, *(p for m in methods for p in m.ends)))
        scale, name = axis_unit(axis, most)
        spent = [p.cost.of(axis) / scale for p in line]
        low, high = ([f(p.loss for p in rung) for rung in rungs] for f in (min, max))
        axes.fill_between(spent, low, high, color="black", alpha=0.12, linewidth=0)
        axes.plot(spent, [p.loss for p in line], "-X", color="black", linewidth=2, markersize=7)
        lowest = min(p.loss for p in (*line, *(p for m in methods for p in m.ends)))
        margin = _MARGIN * (line[0].loss - lowest)
        axes.set_ylim(lowest - margin, line[0].loss + 1.5 * margin)
        cheapest = min(p.cost.of(axis) for p in (*line, *(p for m in methods for p in m.ends))) / scale
        axes.annotate(
            "scratch, each run with its own budget",
            (spent[0], line[0].loss),
            (10, 4),
            textcoords="offset points",
            fontsize=10,
            weight="bold",
        )
        _draw_methods(axes, line, methods, axis, scale)
        axes.set_xscale("log", base=2)
        axes.set_xlim(cheapest / _ROOM, 1.05 * most / scale)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel("final validation loss (nats per prediction)")
    return figure


def _draw_methods(axes: Axes, line: Curve, methods: Sequence[Ended], axis: str, scale: float) -> None:
    """Each method's mean with the range of its seeds, its name, and an arrow to the scratch run of equal loss."""
    bottom, top = axes.get_ylim()
    above: list[str] = []
    placed: list[tuple[float, float]] = []  # cost and height of labels
    for method in sorted(methods, key=_mean_loss, reverse=True):
        loss, cost = _mean_loss(method), sum(p.cost.of(axis) for p in method.ends) / len(method.ends) / scale
        if loss > top:
            above.append(method.label)
            continue
        number = methods.index(method)
        colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
        spread = [[loss - min(p.loss for p in method.ends)], [max(p.loss for p in method.ends) - loss]]
        axes.errorbar([cost], [loss], yerr=spread, color=colour, fmt=marker, capsize=3, linewidth=1, markersize=8)
        near = [height for at, height in placed if 1 / _BESIDE < at / cost < _BESIDE]
        place = min([loss, *(height - _APART * (top - bottom) for height in near)])  # below them there is room
        placed.append((cost, place))
        text, is_dearer = method.label, False
        saved = [share for share in method.saved if share is not None]
        if len(saved) == len(method.saved) and (at := savings.crossing(line, loss)):
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 6, "shrinkB": 0}
            axes.annotate("", (at.of(axis) / scale, loss), (cost, loss), arrowprops=arrow)
            mean, is_dearer = interval(saved), at.of(axis) / scale < cost
            half = "" if mean.half is None else f" ± {100 * mean.half:.1f}"
            text += f" {-100 * mean.mean:+.1f}{half} %".replace("-", "\N{MINUS SIGN}")
        axes.annotate(
            text,
            (cost, place),
            (11 if is_dearer else -11, 0),
            textcoords="offset points",
            ha="left" if is_dearer else "right",
            va="center",
            fontsize=10,
            color=colour,
            bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.8},
            zorder=1,
        )
    axes.set_ylim(min([bottom, *(height - _APART * (top - bottom) for _, height in placed)]), top)
    if above:
        axes.annotate(
            f"above this picture: {', '.join(above)}",
            (0.99, 0.98),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=9,
            color="0.35",
        )


def _mean_loss(method: Ended) -> float:
    return sum(p.loss for p in method.ends) / len(method.ends)
