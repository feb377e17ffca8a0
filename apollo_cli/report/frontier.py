"""The picture of savings at equal final loss: complete runs of every method beside scratch runs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from apollo_cli.intervals import interval
from apollo_cli.report import savings
from apollo_cli.report.comparison import Comparison
from apollo_cli.report.savings import Curve, Point
from apollo_cli.report.style import SETTINGS, WIDTH, EndLabel, Look, axis_unit, label_ends, looks_of, saved_text

_MARGIN = 0.08  # of the losses of scratch, above and below them


@dataclass(frozen=True)
class Ended:
    """The complete runs of a method."""

    look: Look  # with the label of the method
    ends: tuple[Point, ...]  # the last evaluation of each run, one a seed
    saved: tuple[float | None, ...]  # beside a scratch run of its final loss; None beyond the budgets of scratch


def frontier_of(comparison: Comparison, axis: str) -> Figure | None:
    """The picture of a comparison; None without complete scratch runs of several budgets and a method beside.

    Budgets are compared that every seed has; scratch runs are of the depth that the methods grow to.
    """
    of_methods = looks_of(comparison)
    complete = [
        (of_methods[method.label], outcome)
        for method in comparison.methods
        for outcome in method.outcomes
        if outcome.run.status == "completed" and outcome.curve and math.isfinite(outcome.curve[-1].loss)
    ]
    grown = [(look, outcome) for look, outcome in complete if not outcome.run.is_scratch]
    others = [outcome.run for _, outcome in grown]
    ladders: dict[str, dict[int, Point]] = {}
    for _, outcome in complete:
        run = outcome.run
        is_alike = all(run.shape == other.shape for other in others)
        if run.is_scratch and is_alike and any(run.blocks == other.blocks for other in others):
            best, end = ladders.setdefault(str(run.seed), {}), outcome.curve[-1]
            if end.step not in best or end.loss < best[end.step].loss:  # of several rates
                best[end.step] = end
    several = {seed: best for seed, best in ladders.items() if len(best) > 1}
    shared = set.intersection(*(set(best) for best in several.values())) if several else set()
    curves = {seed: savings.make_curve(best[step] for step in shared) for seed, best in several.items()}
    methods = []
    for look in dict.fromkeys(look for look, _ in grown):
        outcomes = [outcome for own, outcome in grown if own == look and str(outcome.run.seed) in curves]
        ends = [outcome.curve[-1] for outcome in outcomes]
        costs = [savings.scratch_cost(curves[str(o.run.seed)], o.curve[-1].loss, axis) for o in outcomes]
        saved = [c and savings.saving(end.cost.of(axis), c) for c, end in zip(costs, ends, strict=True)]
        if ends:
            methods.append(Ended(look, tuple(ends), tuple(saved)))
    return draw_frontier(list(curves.values()), methods, axis) if len(shared) > 1 and methods else None


def draw_frontier(scratch: Sequence[Curve], methods: Sequence[Ended], axis: str) -> Figure:
    """Final losses against cost: a line through complete scratch runs, a point and an arrow to it for each method.

    `scratch` has for each seed the last evaluations of scratch runs, each laid out for its own budget.
    Methods whose mean loss is far above scratch's are named, not drawn.
    """
    with style.context(SETTINGS):
        figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
        axes = figure.add_subplot()
        rungs = savings.aligned(scratch, with_ends=False)
        line = savings.mean_curve(scratch, with_ends=False)
        ends = [*line, *(p for m in methods for p in m.ends)]
        most = max(p.cost.of(axis) for p in ends)
        scale, name = axis_unit(axis, most)
        spent = [p.cost.of(axis) / scale for p in line]
        low, high = ([f(p.loss for p in rung) for rung in rungs] for f in (min, max))
        losses = [p.loss for p in line]
        axes.fill_between(spent, low, high, color="black", alpha=0.12, linewidth=0)
        axes.plot(spent, losses, "-X", color="black", label="scratch")
        lowest = min(p.loss for p in ends)
        margin = _MARGIN * (line[0].loss - lowest)
        axes.set_ylim(lowest - margin, line[0].loss + 1.5 * margin)
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(p.cost.of(axis) for p in ends) / scale / 1.1, 1.1 * most / scale)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel("final validation loss (nats per prediction)")
        labels = _draw_methods(axes, line, methods, axis, scale)
        own = EndLabel("scratch, each run with its own budget", spent[-1], line[-1].loss, "black")
        label_ends(axes, [*labels, own])
    return figure


def _draw_methods(axes: Axes, line: Curve, methods: Sequence[Ended], axis: str, scale: float) -> Iterator[EndLabel]:
    """Each method's mean with the range of its seeds, and an arrow to the scratch run of equal loss; its label."""
    top = axes.get_ylim()[1]
    for method in methods:
        loss, cost = fmean(p.loss for p in method.ends), fmean(p.cost.of(axis) for p in method.ends) / scale
        look, text, end = method.look, method.look.label, cost
        if loss > top:
            yield EndLabel(f"{text} \N{UPWARDS ARROW} {loss:.2f}", cost, loss, look.colour)
            continue
        spread = [[loss - min(p.loss for p in method.ends)], [max(p.loss for p in method.ends) - loss]]
        axes.errorbar([cost], [loss], yerr=spread, color=look.colour, fmt="none", capsize=3, linewidth=1)
        axes.plot([cost], [loss], look.marker, color=look.colour, markersize=9, label=look.label)
        saved = [share for share in method.saved if share is not None]
        if len(saved) == len(method.saved) and (at := savings.scratch_cost(line, loss, axis)):
            arrow = {"arrowstyle": "-|>", "color": look.colour, "lw": 2, "shrinkA": 6, "shrinkB": 0}
            axes.annotate("", (at / scale, loss), (cost, loss), arrowprops=arrow)
            text, end = f"{text} {saved_text(interval(saved))}", max(cost, at / scale)
        yield EndLabel(text, end, loss, look.colour)
