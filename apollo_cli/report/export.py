"""A comparison for programs: JSON with everything, CSV with one line a method."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from apollo_cli.intervals import LEVEL, Interval
from apollo_cli.report import savings
from apollo_cli.report.comparison import AXES, Comparison, Method, Outcome
from apollo_cli.report.groups import settings
from apollo_cli.report.notes import comparison_notes
from apollo_cli.report.tables import GlueComparison, compare_glue

_UNITS = {
    "loss": "nats per prediction",
    "flops": "model FLOPs",
    "seconds": "training seconds",
    "saving": "share of the baseline's cost: 1 - cost / baseline's cost",
    "speedup": "baseline's cost / cost - 1",
    "interval": f"Student-t over seeds, level {LEVEL}; null for n = 1",
}
_COUNTS = ("method", "is_baseline", "n", "reached")
_BY_AXIS: dict[str, Callable[[Method, str], Interval | None]] = {
    "{}_to_target": Method.cost,
    "saving_{}": Method.saving,
    "speedup_{}": Method.speedup,
}
_INTERVALS = ("final_loss", "loss_at_flops", *(name.format(axis) for name in _BY_AXIS for axis in AXES))


def comparisons_json(comparisons: Sequence[Comparison], warnings: Sequence[str]) -> dict[str, Any]:
    """Everything, run by run; what is missing or not finite is null."""
    families = [
        {
            "family": comparison.family.title,
            "description": comparison.family.description,
            "baseline": comparison.baseline.label if comparison.baseline else None,
            "baseline_cost": comparison.baseline_cost,
            "target_loss": comparison.target and comparison.target.loss,
            "target_interval": _interval(comparison.target.interval) if comparison.target else None,
            "at_flops": comparison.question.at_flops,
            "methods": [_method(method, glue) for method in comparison.methods],
            "notes": comparison_notes(comparison),
        }
        for comparison, glue in zip(comparisons, map(compare_glue, comparisons), strict=True)
    ]
    found: dict[str, Any] = {"units": _UNITS, "warnings": warnings, "families": families}
    return to_jsonable_python(found, inf_nan_mode="null", fallback=str)


def comparison_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row a method; an interval is the columns _mean, _low and _high."""
    rows: list[dict[str, Any]] = []
    for family in comparisons_json(comparisons, [])["families"]:
        for method in family["methods"]:
            row = {"family": family["family"], "target_loss": family["target_loss"]}
            row |= {name: method[name] for name in _COUNTS}
            scores = {f"glue_{name}": score for name, score in method.get("glue", {}).items()}
            for name, value in ({name: method[name] for name in _INTERVALS} | scores).items():
                row |= {f"{name}_{part}": (value or {}).get(part) for part in ("mean", "low", "high")}
            rows.append(row)
    return rows


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    rows = comparison_rows(comparisons)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)))
    writer.writeheader()
    writer.writerows({column: _no_formula(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """The value; a text that a spreadsheet would run as a formula behind an apostrophe (OWASP, CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _method(method: Method, glue: GlueComparison | None) -> dict[str, Any]:
    glue_scores = glue.scores.get(method.label, {}) if glue else {}
    scores = {name: _interval(score) for name, score in glue_scores.items()}
    return {
        "method": method.label,
        "is_baseline": method.is_baseline,
        "is_paired": method.is_paired,
        "n": len(method.outcomes),
        "reached": method.reached,
        "final_loss": _interval(method.final),
        "loss_at_flops": _interval(method.at_flops),
        **{name.format(axis): _interval(of(method, axis)) for name, of in _BY_AXIS.items() for axis in AXES},
        "settings": settings(method.outcomes[0].run),
        "runs": [_run(outcome, method) for outcome in method.outcomes],
        **({"glue": scores, "glue_averaged": glue.averaged} if glue else {}),
    }


def _run(outcome: Outcome, method: Method) -> dict[str, Any]:
    saved = {f"saving_{axis}": None if method.is_baseline else outcome.ratio(savings.saving, axis) for axis in AXES}
    return {
        "place": outcome.run.place,
        "seed": outcome.run.seed,
        "status": outcome.run.status,
        **outcome.run.made_with,
        "final_loss": outcome.curve[-1].loss if outcome.curve else None,
        "loss_at_flops": outcome.at_flops,
        "target_loss": outcome.target and outcome.target.loss,
        "to_target": outcome.cost,
        "to_target_for_good": outcome.cost_for_good,
        **saved,
    }


def _interval(value: Interval | None) -> dict[str, Any] | None:
    if value is None:
        return None
    low, high = value.ends or (None, None)
    return {"mean": value.mean, "low": low, "high": high, "n": value.n}
