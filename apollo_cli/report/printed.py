"""A comparison, printed: a table for people; for machines JSON with everything, and CSV with one line a method."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from apollo_cli.intervals import LEVEL, Interval
from apollo_cli.report import savings
from apollo_cli.report.comparison import AXES, Comparison, Method, Outcome
from apollo_cli.report.glue import GlueTable, glue_table
from apollo_cli.report.groups import settings
from apollo_cli.report.savings import Cost
from apollo_cli.report.words import (
    CROSSING_NOTE,
    METHOD_OF_INTERVALS,
    UNITS,
    cells,
    headline,
    notes,
    spent,
    target,
)
from apollo_cli.tracking.console import Screen

_WIDE = 92  # columns, in which the speedup has room; it says what the saving says
_MEANING = {
    "loss": "nats per prediction",
    "flops": "model FLOPs",
    "seconds": "training seconds",
    "saving": "share of the baseline's cost: 1 - cost / baseline's cost",
    "speedup": "baseline's cost / cost - 1",
    "interval": f"Student-t over seeds, level {LEVEL}; null for n = 1",
}


def show(comparisons: Sequence[Comparison], warnings: Sequence[str]) -> None:
    """Prints all families, each with its notes."""
    screen = Screen()
    for warning in warnings:
        screen.print(Text(f"WARNING: {warning}", style="bold red"))
    for comparison in comparisons:
        screen.print(
            Text(f"\n{comparison.family.title}: ", style="bold"), Text(comparison.family.description), sep=""
        )
        if words := target(comparison):
            screen.print(Text(words))
        screen.print(_table(comparison, with_speedup=screen.width >= _WIDE))
        if glue := glue_table(comparison):
            screen.print(_glue(comparison, glue))
            for note in glue.notes:
                screen.print(Text(f"note: {note}"))
        for note in notes(comparison):
            screen.print(Text(f"note: {note}"))
    for sentence in filter(None, map(headline, comparisons)):
        screen.print(Text(sentence, style="bold"))
    screen.print(Text(f"{METHOD_OF_INTERVALS} {CROSSING_NOTE}", style="dim"))


def _table(comparison: Comparison, *, with_speedup: bool) -> Table:
    budget = comparison.question.at_flops
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    loss = "final loss\n(nats)" if budget is None else f"loss (nats), final\nand at {budget:.3g} FLOPs"
    table.add_column("method\n", overflow="fold")
    for name in (loss, "to the\ntarget", "\nof", "saved\n", *(["speedup\n"] if with_speedup else [])):
        table.add_column(name, justify="left" if name == "\nof" else "right", no_wrap=True)
    for method in comparison.methods:
        of = cells(comparison, method)
        table.add_row(
            Text(f"{of.method}\n{of.runs}"),
            of.final if budget is None else f"{of.final}\n{of.at_flops}",
            *("\n".join(part) for part in ([of.costs[axis] for axis in AXES], [UNITS[axis] for axis in AXES])),
            *("\n".join(part[axis] for axis in AXES) for part in (of.savings, of.speedups)[: 1 + with_speedup]),
        )
    return table


def _glue(comparison: Comparison, glue: GlueTable) -> Table:
    """Loss, FLOPs and GLUE side by side."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("method", overflow="fold")
    for name in ("final loss", "FLOPs", *glue.head):
        table.add_column(name, justify="right")
    for method in comparison.methods:
        if method.label in glue.scores:
            table.add_row(Text(method.label), cells(comparison, method).final, spent(method), *glue.cells(method))
    return table


def as_json(comparisons: Sequence[Comparison], warnings: Sequence[str]) -> dict[str, Any]:
    """Everything, run by run; what is not there or not finite is null."""
    return {
        "units": _MEANING,
        "warnings": list(warnings),
        "families": [
            {
                "family": comparison.family.title,
                "description": comparison.family.description,
                "baseline": comparison.baseline.label if comparison.baseline else None,
                "baseline_cost": _cost(comparison.baseline_cost),
                "target_loss": comparison.target and comparison.target.loss,
                "target_interval": _interval(comparison.target.interval if comparison.target else None),
                "at_flops": comparison.question.at_flops,
                "methods": [
                    _method(method) | _glue_of(glue_table(comparison), method) for method in comparison.methods
                ],
                "notes": notes(comparison),
            }
            for comparison in comparisons
        ],
    }


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """One line a method; columns named as in the JSON, with _mean, _low, _high."""
    lines = [
        {"family": comparison.family.title, "target_loss": comparison.target.loss if comparison.target else None}
        | _columns(method)
        | _glue_columns(glue_table(comparison), method)
        for comparison in comparisons
        for method in comparison.methods
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for line in lines for column in line)))
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _glue_of(glue: GlueTable | None, method: Method) -> dict[str, Any]:
    """The scores of a method, where the family has some."""
    if glue is None:
        return {}
    scores = glue.scores.get(method.label, {})
    return {"glue": {name: _interval(score) for name, score in scores.items()}, "glue_averaged": glue.averaged}


def _method(method: Method) -> dict[str, Any]:
    return {
        "method": method.label,
        "is_baseline": method.is_baseline,
        "n": len(method.outcomes),
        "reached": method.reached,
        **{name: _interval(value) for name, value in _intervals(method).items()},
        "saving_flops_at_ends_of_target_interval": method.moved,
        "settings": {key: _plain(value) for key, value in settings(method.outcomes[0].run).items()},
        "runs": [_run(outcome, method) for outcome in method.outcomes],
    }


def _columns(method: Method) -> dict[str, Any]:
    values: dict[str, Any] = {"method": method.label, "is_baseline": method.is_baseline}
    values |= {"n": len(method.outcomes), "reached": method.reached}
    for name, interval in _intervals(method).items():
        found = _interval(interval) or {}
        values |= {f"{name}_{part}": found.get(part) for part in ("mean", "low", "high")}
    return values


def _glue_columns(glue: GlueTable | None, method: Method) -> dict[str, Any]:
    scores = glue.scores.get(method.label, {}) if glue else {}
    return {
        f"glue_{name}_{part}": (_interval(score) or {}).get(part)
        for name, score in scores.items()
        for part in ("mean", "low", "high")
    }


def _intervals(method: Method) -> dict[str, Interval | None]:
    return {
        "final_loss": method.final,
        "loss_at_flops": method.at_flops,
        **{f"{axis}_to_target": method.cost(axis) for axis in AXES},
        **{f"saving_{axis}": method.saving(axis) for axis in AXES},
        **{f"speedup_{axis}": method.speedup(axis) for axis in AXES},
    }


def _run(outcome: Outcome, method: Method) -> dict[str, Any]:
    cost, baseline = outcome.cost, None if method.is_baseline else method.baseline_cost
    saved = {axis: savings.saving(cost.of(axis), baseline.of(axis)) for axis in AXES} if cost and baseline else {}
    return {
        "place": outcome.run.place,
        "seed": outcome.run.seed,
        "status": outcome.run.status,
        **outcome.run.made_with,
        "final_loss": _finite(outcome.final),
        "loss_at_flops": _finite(outcome.at_flops),
        "to_target": _cost(outcome.cost),
        "to_target_for_good": _cost(outcome.cost_for_good),
        **{f"saving_{axis}": saved.get(axis) for axis in AXES},
    }


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    low, high = interval.ends or (None, None)
    return {"mean": _finite(interval.mean), "low": low, "high": high, "n": interval.n}


def _cost(cost: Cost | None) -> dict[str, float] | None:
    return None if cost is None else {"flops": cost.flops, "seconds": cost.seconds}


def _plain(value: Any) -> Any:
    """A config's value as JSON has it; YAML has dates and numbers that are not finite, too."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | str) or _is_finite(value) else str(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
