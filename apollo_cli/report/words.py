"""A comparison as people read it: its numbers, and what they should know beside them; the same in all forms."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from apollo_cli.intervals import Interval, interval
from apollo_cli.report import savings
from apollo_cli.report.comparison import AXES, Comparison, Method
from apollo_cli.report.groups import differing
from apollo_cli.report.runs import plain

UNITS = {"flops": "FLOPs", "seconds": "s"}
METHOD_OF_INTERVALS = "± is the half width of the 95 % Student-t interval over seeds; n = 1 has none."
CROSSING_NOTE = (
    "The cost of the target is where the loss of the whole model is first at or below it, linear between two "
    "evaluations, never extrapolated. Saving = 1 - cost / baseline's cost; speedup = baseline's cost / cost - 1."
)


_LATER = 0.01  # a share of the cost that is worth saying
_GROWTH = ("sampler.", "expander.", "schedule.", "init_from.", "optim.at_growth")  # what a method is
_SHORT, _MOST = 40, 8  # letters of labels beside one value; methods in one sentence
_SLOW, _MUCH, _FEWEST_SPANS = 3, 0.05, 4  # times the usual pace; a share of all seconds; between evaluations


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
        final=_loss(method.final, "not whole yet") + ("" if method.has_ended or not method.final else " so far"),
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
    most, best = max(known, key=lambda pair: pair[0])
    of = cells(comparison, best)
    measured = [method for method in comparison.methods if method.is_baseline or method is best]
    timed = not [note for method in measured for note in _timing_notes(method)]
    seconds = f" and {of.savings['seconds']} of the seconds" if timed else ""
    none = "no method saves FLOPs; the nearest is " if most <= 0 else ""
    return (
        f"{comparison.family.title}: {none}{best.label} saves {of.savings['flops']} of the FLOPs"
        f"{seconds} of {comparison.baseline.label if comparison.baseline else ''} "
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


def spent(method: Method) -> str:
    """The FLOPs of its whole runs."""
    ends = [line[-1].cost.flops for line in method.curves if line]
    if not ends:
        return "-"
    total = interval(ends)
    return number(total.mean, total.half or None)


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
    if method.reached:
        return f"{method.reached} of {total} reach it"
    return "not yet" if any(outcome.run.status == "running" for outcome in method.outcomes) else "not reached"


def _ratio(method: Method, ratio: Interval | None) -> str:
    if ratio is None:
        return "baseline" if method.is_baseline else "-"
    if not math.isfinite(ratio.mean):
        return "∞"
    return f"{ratio.mean:.1%}" if ratio.half is None else f"{100 * ratio.mean:.1f} ± {100 * ratio.half:.1f}%"


def notes(comparison: Comparison) -> list[str]:
    """Sentences in the order of weight; labels in them are a stranger's text."""
    found = [
        *_on_baseline(comparison),
        *_on_reference(comparison),
        *_on_settings(comparison),
        *(note for method in comparison.methods for note in _on_source(method)),
        *_on_machines(comparison),
        *(note for method in comparison.methods for note in _timing_notes(method)),
        *_on_noise(comparison),
        *_on_target(comparison),
        *comparison.family.notes,
    ]
    return list(dict.fromkeys(found))


def _on_baseline(comparison: Comparison) -> Iterator[str]:
    """Why there are no savings, and what to type."""
    labels = ", ".join(f"'{group.label}'" for group in comparison.candidates or comparison.family.groups)
    asked, target = comparison.question.baseline, comparison.target
    if asked and not comparison.candidates:
        yield f"No savings here: --baseline {asked} is not among these runs."
    elif not comparison.candidates:
        yield f"No savings: none trains all layers from the first step. Type --baseline with one of {labels}."
    elif len(comparison.candidates) > 1:
        yield f"No savings: several train from scratch. Type --baseline with one of {labels}."
    elif not comparison.reference:
        yield f"No savings: {labels} has no evaluation of the whole model yet."
    elif target is None:
        yield f"No savings: the loss of {labels} is not finite at the end. Type --target-loss."
    elif comparison.baseline_cost is None:
        losses = [point.loss for point in savings.mean_curve(comparison.reference)]
        how = f"goes from {losses[0]:.4f} down to {min(losses):.4f}" if losses else "has no shared evaluation"
        yield f"No savings: {labels} {how} and does not come to {target.loss:.4f} at a cost that can be compared."


def _on_reference(comparison: Comparison) -> Iterator[str]:
    """How far the baseline's end is one."""
    baseline, reference, cost = comparison.baseline, comparison.reference, comparison.baseline_cost
    if baseline is None or cost is None:
        return
    completed = sum(outcome.run.status == "completed" for outcome in baseline.outcomes)
    if not completed:
        yield f"No run of '{baseline.label}' is completed: the target is where they stand now, and will move."
    elif completed < len(baseline.outcomes):
        of = f"the {completed} completed runs of '{baseline.label}', of {len(baseline.outcomes)}"
        yield f"The target and its cost are those of {of}."
    ends = [line[-1].cost.flops for line in reference]
    if len({line[-1].step for line in reference}) > 1:
        yield (
            f"The runs of '{baseline.label}' end at different budgets, {min(ends):.3e} to {max(ends):.3e} FLOPs; "
            "the mean of their ends is the cost of the target."
        )
    elif comparison.target and comparison.target.interval and cost.flops < (1 - _LATER) * min(ends):
        yield (
            f"'{baseline.label}' is at its final loss after {cost.flops:.3e} of its {max(ends):.3e} FLOPs already; "
            "it is charged no more than that."
        )


def _on_settings(comparison: Comparison) -> Iterator[str]:
    """What the methods differ in beside how they grow; a label may not say it."""
    labels = [method.label for method in comparison.methods]
    unlike = differing([method.outcomes[0].run for method in comparison.methods])
    parts = [
        f"{key} {_sorted_out((value, label) for value, label in zip(values, labels, strict=True) if value)}"
        for key, values in unlike
        if not key.startswith(_GROWTH)
    ]
    if parts:
        yield f"Beside how they grow the methods are not alike: {'; '.join(parts)}."


def _on_source(method: Method) -> Iterator[str]:
    """What a method takes with and without the model it begins from."""
    if any(outcome.run.source_flops is None for outcome in method.outcomes):
        yield (
            f"'{method.label}' begins from a model whose cost is not known, and it is not counted; "
            "init_from.flops says it."
        )
    took = [outcome.source.flops for outcome in method.outcomes if outcome.source.flops]
    if not took:
        return
    counted = f"'{method.label}' begins from a model that took {number(fmean(took))} FLOPs; they are counted"
    without = [method.saving_without_source(axis) for axis in AXES]
    if all(without):
        flops, seconds = (_ratio(method, saving) for saving in without)
        yield f"{counted}. Without them its saving is {flops} of the FLOPs and {seconds} of the seconds."
    else:
        yield f"{counted}."


def _on_machines(comparison: Comparison) -> Iterator[str]:
    """Runs of other devices, precisions or commits, between methods or within one."""
    consequences = {
        "device": "their seconds compare the machines, too",
        "precision": "their losses and seconds compare that, too",
        "git_commit": "the code may have changed between them",
    }
    for key, consequence in consequences.items():
        runs = [(o.run.made_with.get(key), method.label) for method in comparison.methods for o in method.outcomes]
        said = [(value[:12] if key == "git_commit" else value, label) for value, label in runs if value]
        if len({value for value, _ in said}) > 1:
            yield f"Not all runs have the same {key.replace('_', ' ')}, {consequence}: {_sorted_out(said)}."


def _sorted_out(pairs: Iterable[tuple[str, str]]) -> str:
    """Values, each with the labels that have it: `0.1 ('a', 'b'), 0.2 (7 methods)`."""
    labels: dict[str, list[str]] = {}
    for value, label in dict.fromkeys(pairs):
        labels.setdefault(value, []).append(f"'{label}'")
    who = {value: ", ".join(each) for value, each in labels.items()}
    many = {value: f"{len(each)} method{'s' * (len(each) > 1)}" for value, each in labels.items()}
    return ", ".join(f"{value} ({who[value] if len(who[value]) <= _SHORT else many[value]})" for value in labels)


def _some(parts: Sequence[str]) -> str:
    """The first of these, and how many more there are."""
    return ", ".join(parts[:_MOST]) + (f" and {len(parts) - _MOST} more" if len(parts) > _MOST else "")


def _timing_notes(method: Method) -> Iterator[str]:
    """Runs that stood still, or shared their machine, for a while: their seconds are no measure."""
    for outcome in method.outcomes:
        rows = outcome.run.evaluations
        spans = [
            (later["train_seconds"] - row["train_seconds"], later["flops"] - row["flops"])
            for row, later in pairwise(rows)
            if later["flops"] > row["flops"]
        ]
        if len(spans) < _FEWEST_SPANS:
            continue
        usual = median(seconds / flops for seconds, flops in spans)
        lost = sum(max(0.0, seconds - usual * flops) for seconds, flops in spans if seconds > _SLOW * usual * flops)
        total = sum(seconds for seconds, _ in spans)
        if lost > _MUCH * total:
            yield (
                f"{plain(outcome.run.place)} ('{method.label}') lost {lost:.0f} of {total:.0f} s where it went "
                f"{_SLOW} times slower than usual: stopped, or the machine was busy. Its seconds are no measure."
            )


def _on_noise(comparison: Comparison) -> Iterator[str]:
    """Losses that come to the target more than once; the baseline is counted in the same way."""
    target = comparison.target
    if target is None or comparison.baseline_cost is None:
        return
    mean = savings.mean_curve(comparison.reference)
    base = savings.crossing_for_good(mean, target.loss) or comparison.baseline_cost
    parts = []
    for method in comparison.methods:
        later = [o for o in method.outcomes if o.cost and not _is_near(o.cost, o.cost_for_good)]
        if later and not method.is_baseline:
            costs = [o.cost_for_good.flops for o in method.outcomes if o.cost_for_good]
            stay = len(costs) == len(method.outcomes)
            saved = f"{savings.saving(fmean(costs), base.flops):.1%}" if stay else "above it at the end"
            parts.append(f"'{method.label}' {saved} ({len(later)} of {len(method.outcomes)} runs)")
    if parts:
        yield (
            "Losses rise above the target again after they reach it. Saving in FLOPs, method and baseline counted "
            f"from where they stay there: {_some(parts)}."
        )


def _on_target(comparison: Comparison) -> Iterator[str]:
    """A target that moves with the baseline's seeds."""
    target, cost = comparison.target, comparison.baseline_cost
    if target and target.interval and cost and target.interval.n == 1 and comparison.baseline:
        yield (
            f"The target is that of one run of '{comparison.baseline.label}': how far it moves with the seed is "
            "not known, and no interval has it in."
        )
    moved = [(m.label, m.moved) for m in comparison.methods if m.moved and any(end is not None for end in m.moved)]
    if moved:
        found = _some([f"'{label}' {_share(low)} to {_share(high)}" for label, (low, high) in moved])
        yield (
            "The intervals hold the target fixed. With it at the ends of its own interval over the baseline's "
            f"seeds, and the baseline's cost as it is, the saving in FLOPs moves: {found}."
        )


def _share(saved: float | None) -> str:
    return "not reached" if saved is None else f"{saved:.1%}"


def _is_near(cost: savings.Cost, later: savings.Cost | None) -> bool:
    return later is not None and later.flops <= (1 + _LATER) * cost.flops
