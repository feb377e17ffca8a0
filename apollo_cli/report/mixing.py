"""How fast new layers become worth their FLOPs: the gap to a model that had them from the first step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

from apollo_cli.report.comparison import Comparison, Method, evaluation_point
from apollo_cli.report.runs import Run
from apollo_cli.report.tables import ReportTable

LossByStep = Mapping[int, float]

MIXING_NOTE = (
    "Open is the share of the gap between a shallow and a deep scratch run of the same steps in which the grown "
    "model is, at equal steps: 100 % where the shallow one stands, 0 % where the deep one does. tc is the time "
    "constant of its closing, by least squares on the logarithm."
)
_SHARES = (0.25, 0.5, 1.0)  # of the steps after the growth


@dataclass(frozen=True)
class GrowthMixing:
    """How a method mixed after a growth."""

    label: str  # of the method
    before: int  # layers before the growth, those of the shallow reference
    after: int  # layers after it, those of the deep reference
    nats: float  # the gap between the references at the first step of `gap`
    gap: dict[int, float]  # share of it that is open, by steps since the growth


def open_gap(grown: LossByStep, shallow: LossByStep, deep: LossByStep) -> dict[int, float]:
    """(grown - deep) / (shallow - deep), at each step that all three have and where the deep one is ahead."""
    common = [step for step in sorted(grown) if step in shallow and step in deep and shallow[step] > deep[step]]
    return {step: (grown[step] - deep[step]) / (shallow[step] - deep[step]) for step in common}


def time_constant(gap: Mapping[int, float], first: int) -> float | None:
    """tc of a exp(-step / tc), by least squares on the logarithm of the gap from step `first` on.

    None if fewer than two values are above 0, if the last one is not, or if they do not fall.
    """
    points = [(step, share) for step, share in sorted(gap.items()) if step >= first]
    positive = [(step, math.log(share)) for step, share in points if share > 0]
    if len(positive) < 2 or points[-1][1] <= 0:
        return None
    slope = linear_regression(*zip(*positive, strict=True)).slope
    return -1 / slope if slope < 0 else None


def mixings(comparison: Comparison) -> Iterator[GrowthMixing]:
    """Each growth of each method for which there are scratch runs of its layers before and after, of its steps."""
    references = [method for method in comparison.methods if method.outcomes[0].run.is_scratch]
    for method in comparison.methods:
        runs = [outcome.run for outcome in method.outcomes]
        grown = {(row["step"], row["growth/from"], row["layers"]) for row in runs[0].evaluations if _is_after(row)}
        for step, before, after in sorted(grown):
            shallow, deep = (_reference(references, runs[0], layers) for layers in (before, after))
            if shallow and deep:
                losses = _losses(runs, after)
                gap = open_gap(losses, shallow, deep)
                since = {at - step: share for at, share in gap.items() if at >= step}
                if len(since) > 1:
                    at = step + min(since)
                    yield GrowthMixing(method.label, before, after, shallow[at] - deep[at], since)


def mixing_table(found: Sequence[GrowthMixing]) -> ReportTable:
    """The gap at each growth, and how much of it is open later."""
    rows = []
    for mixing in found:
        first, *later = mixing.gap
        late = f" ({first:,})" if first else ""  # steps after the growth, where the deep one was not ahead before
        marks = [min((abs(step - share * later[-1]), step) for step in later)[1] for share in _SHARES]
        constant = time_constant(mixing.gap, first)
        rows.append(
            [
                f"{mixing.label}: {mixing.before} to {mixing.after}",
                f"{mixing.nats:.3f}{late}",
                f"{mixing.gap[first]:.0%}{late}",
                *(f"{mixing.gap[mark]:.0%} ({mark:,})" for mark in marks),
                f"{constant:,.0f}" if constant else "-",
            ]
        )
    head = ["growth (layers)", "gap (nats)", "open at once", *["open (after steps)"] * len(_SHARES), "tc (steps)"]
    return ReportTable(head, rows)


def _is_after(row: Mapping[str, float]) -> bool:
    """Whether the row is the evaluation just after a growth in depth."""
    return "growth/from" in row and row["layers"] == row.get("growth/to") != row["growth/from"]


def _reference(references: Sequence[Method], grown: Run, layers: int) -> LossByStep | None:
    """Losses of the scratch runs of so many layers that equal the grown run in width and steps; the best rate's."""
    end = grown.evaluations[-1]["step"]
    found = []
    for method in references:
        run = method.outcomes[0].run
        is_as_long = bool(run.evaluations) and run.evaluations[-1]["step"] == end
        if run.blocks == grown.blocks and run.target_layers == layers and is_as_long:
            found.append(_losses([outcome.run for outcome in method.outcomes], layers))
    found = [losses for losses in found if losses]
    return min(found, key=lambda losses: losses[max(losses)], default=None)


def _losses(runs: Sequence[Run], layers: int) -> dict[int, float]:
    """The mean loss of these runs with so many layers, at each step that all have."""
    by_step = []
    for run in runs:
        points = [evaluation_point(row) for row in run.evaluations if row["layers"] == layers]
        by_step.append({point.step: point.loss for point in points if math.isfinite(point.loss)})
    return {step: fmean(of[step] for of in by_step) for step in sorted(set.intersection(*map(set, by_step)))}
