"""A comparison for programs: JSON with everything, CSV with one line a method."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from apollo_cli.intervals import LEVEL, Interval
from apollo_cli.report import savings
from apollo_cli.report.comparison import AXES, Comparison, Method, Outcome
from apollo_cli.report.glue import GlueComparison, compare_glue
from apollo_cli.report.groups import settings
from apollo_cli.report.notes import comparison_notes
from apollo_cli.report.savings import Cost

_UNITS = {
    "loss": "nats per prediction",
    "flops": "model FLOPs",
    "seconds": "training seconds",
    "saving": "share of the baseline's cost: 1 - cost / baseline's cost",
    "speedup": "baseline's cost / cost - 1",
    "interval": f"Student-t over seeds, level {LEVEL}; null for n = 1",
}


def comparisons_json(comparisons: Sequence[Comparison], warnings: Sequence[str]) -> dict[str, Any]:
    """Everything, run by run; what is missing or not finite is null."""
    families = [
        {
            "family": comparison.family.title,
            "description": comparison.family.description,
            "baseline": comparison.baseline.label if comparison.baseline else None,
            "baseline_cost": comparison.baseline_cost,
            "target_loss": comparison.target and comparison.target.loss,
            "target_interval": comparison.target and comparison.target.interval,
            "at_flops": comparison.question.at_flops,
            "methods": [_method(method, glue) for method in comparison.methods],
            "notes": comparison_notes(comparison),
        }
        for comparison, glue in zip(comparisons, map(compare_glue, comparisons), strict=True)
    ]
    found: dict[str, Any] = _as_json({"units": _UNITS, "warnings": warnings, "families": families})
    return found


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """One line a method; an interval is the columns _mean, _low and _high."""
    lines: list[dict[str, Any]] = []
    for comparison in comparisons:
        glue, target_loss = compare_glue(comparison), comparison.target.loss if comparison.target else None
        for method in comparison.methods:
            line = {"family": comparison.family.title, "target_loss": target_loss, **_counts(method)}
            scores = {f"glue_{name}": score for name, score in _scores(method, glue).items()}
            for name, value in (_intervals(method) | scores).items():
                line |= {f"{name}_{part}": (_as_json(value) or {}).get(part) for part in ("mean", "low", "high")}
            lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for line in lines for column in line)))
    writer.writeheader()
    writer.writerows({column: _no_formula(value) for column, value in line.items()} for line in lines)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """The value; a text that a spreadsheet would run as a formula behind an apostrophe (OWASP, CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _method(method: Method, glue: GlueComparison | None) -> dict[str, Any]:
    found = {
        **_counts(method),
        **_intervals(method),
        "is_paired": method.is_paired,
        "settings": settings(method.outcomes[0].run),
        "runs": [_run(outcome, method) for outcome in method.outcomes],
    }
    if glue:
        found |= {"glue": _scores(method, glue), "glue_averaged": glue.averaged}
    return found


def _counts(method: Method) -> dict[str, Any]:
    return {
        "method": method.label,
        "is_baseline": method.is_baseline,
        "n": len(method.outcomes),
        "reached": method.reached,
    }


def _intervals(method: Method) -> dict[str, Interval | None]:
    return {
        "final_loss": method.final,
        "loss_at_flops": method.at_flops,
        **{f"{axis}_to_target": method.cost(axis) for axis in AXES},
        **{f"saving_{axis}": method.saving(axis) for axis in AXES},
        **{f"speedup_{axis}": method.speedup(axis) for axis in AXES},
    }


def _scores(method: Method, glue: GlueComparison | None) -> dict[str, Interval | None]:
    return glue.scores.get(method.label, {}) if glue else {}


def _run(outcome: Outcome, method: Method) -> dict[str, Any]:
    return {
        "place": outcome.run.place,
        "seed": outcome.run.seed,
        "status": outcome.run.status,
        **outcome.run.made_with,
        "final_loss": outcome.final,
        "loss_at_flops": outcome.at_flops,
        "target_loss": outcome.target and outcome.target.loss,
        "to_target": outcome.cost,
        "to_target_for_good": outcome.cost_for_good,
        **{f"saving_{axis}": None if method.is_baseline else outcome.ratio(savings.saving, axis) for axis in AXES},
    }


def _as_json(value: Any) -> Any:
    match value:
        case Interval(mean=mean, n=n):
            low, high = value.ends or (None, None)
            return {"mean": _as_json(mean), "low": low, "high": high, "n": n}
        case Cost(flops=flops, seconds=seconds):
            return {"flops": flops, "seconds": seconds}
        case dict():
            return {key: _as_json(each) for key, each in value.items()}
        case list() | tuple():
            return [_as_json(each) for each in value]
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case _:  # YAML has dates too
            return str(value)
