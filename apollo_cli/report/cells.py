"""The numbers of a comparison as people read them; table, Markdown and HTML show the same."""

import math
from collections import Counter
from dataclasses import dataclass

from apollo_cli.report.comparison import AXES, Comparison, Method
from apollo_cli.report.savings import Interval

UNITS = {"flops": "FLOPs", "seconds": "s"}
METHOD_OF_INTERVALS = "± is the half width of the 95 % Student-t interval over seeds; n = 1 has none."
WAY_OF_CROSSING = (
    "The cost of the target is where the loss of the whole model is first at or below it, linear between two "
    "evaluations, never extrapolated. Saving = 1 - cost / baseline's cost; speedup = baseline's cost / cost - 1."
)


@dataclass(frozen=True)
class Cells:
    """One method. `costs`, `savings` and `speedups` are by axis, flops and seconds."""

    method: str
    runs: str
    final: str
    at_flops: str
    costs: dict[str, str]
    savings: dict[str, str]
    speedups: dict[str, str]


def cells(comparison: Comparison, method: Method) -> Cells:
    """The cells of a method."""
    return Cells(
        method=method.label,
        runs=_runs(method),
        final=_loss(method.final, "not whole yet"),
        at_flops=_loss(method.at_flops, "not there"),
        costs={axis: _cost(method, axis) if comparison.target else "-" for axis in AXES},
        savings={axis: _ratio(method, method.saving(axis)) for axis in AXES},
        speedups={axis: _ratio(method, method.speedup(axis)) for axis in AXES},
    )


def target(comparison: Comparison) -> str:
    """The target in words; empty where there is none."""
    if comparison.target is None:
        return ""
    loss, interval = comparison.target.loss, comparison.target.interval
    if interval is None:
        return f"target: validation loss {loss:.4f} nats, as typed"
    of = f"the final loss of {comparison.baseline.label}" if comparison.baseline else ""
    return f"target: validation loss {_loss(interval, '')} nats, {of}"


def headline(comparison: Comparison) -> str:
    """The best method in one sentence; empty where nothing is saved or measured."""
    known = [(saving.mean, method) for method in comparison.methods if (saving := method.saving("flops"))]
    if not known or comparison.target is None:
        return ""
    _, best = max(known, key=lambda pair: pair[0])
    of = cells(comparison, best)
    return (
        f"{comparison.family.title}: {best.label} saves {of.savings['flops']} of the FLOPs and "
        f"{of.savings['seconds']} of the seconds of {comparison.baseline.label if comparison.baseline else ''} "
        f"at validation loss {comparison.target.loss:.4f} ({of.runs})"
    )


def number(value: float, half: float | None = None) -> str:
    """`1.206e13`, `(6.61 ± 0.31)e12`, `65.3 ± 1.2`."""
    if not math.isfinite(value):
        return "not finite"
    power = math.floor(math.log10(abs(value))) if value else 0
    if power < 6:
        digits = max(0, 3 - max(power, 0)) if value else 0
        return f"{value:.{digits}f}" if half is None else f"{value:.{digits}f} ± {half:.{digits}f}"
    scaled = value / 10**power
    return f"{scaled:.3f}e{power}" if half is None else f"({scaled:.2f} ± {half / 10**power:.2f})e{power}"


def _runs(method: Method) -> str:
    unfinished = Counter(o.run.status for o in method.outcomes if o.run.status != "completed")
    return ", ".join(
        [f"n = {len(method.outcomes)}", *(f"{n} {status}" for status, n in sorted(unfinished.items()))]
    )


def _loss(loss: Interval | None, otherwise: str) -> str:
    if loss is None:
        return otherwise
    if not math.isfinite(loss.mean):
        return "not finite"
    return f"{loss.mean:.4f}" if loss.half is None else f"{loss.mean:.4f} ± {loss.half:.4f}"


def _cost(method: Method, axis: str) -> str:
    cost, total = method.cost(axis), len(method.outcomes)
    if cost is not None:
        return number(cost.mean, cost.half)
    if all(outcome.cost is None for outcome in method.outcomes):
        return "not reached"
    return f"not reached ({method.reached} of {total} do)"


def _ratio(method: Method, ratio: Interval | None) -> str:
    if ratio is None:
        return "baseline" if method.is_baseline else "-"
    if not math.isfinite(ratio.mean):
        return "∞"
    return f"{ratio.mean:.1%}" if ratio.half is None else f"{100 * ratio.mean:.1f} ± {100 * ratio.half:.1f}%"
