"""Sentences on a comparison: its headline, and notes on what limits it."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from statistics import fmean, median

from apollo_cli import files
from apollo_cli.errors import one_line
from apollo_cli.intervals import interval_of_all
from apollo_cli.report import savings
from apollo_cli.report.comparison import AXES, Comparison, Method
from apollo_cli.report.groups import differing
from apollo_cli.report.runs import ModelSize, first_of, model_size
from apollo_cli.report.tables import format_number, format_ratio, method_cells

INTERVAL_NOTE = (
    "± is the half width of the 95 % Student-t interval over seeds; n = 1 has none. A method with the baseline's "
    "seeds is paired with it: each run is measured at the final loss of the baseline's run of its seed."
)
CROSSING_NOTE = (
    "The cost of the target is where the loss of the whole model is first at or below it, linear between two "
    "evaluations, never extrapolated. Saving = 1 - cost / baseline's cost; speedup = baseline's cost / cost - 1."
)

_TOLERANCE = 0.01  # share of a cost below which two are reported as one
_GROWTH = ("sampler.", "expander.", "init_from.", "schedule.", "optim.at_growth")  # what a method consists of
_MAX_LABELS = 40  # characters of labels beside one value
_MAX_METHODS = 8  # in one sentence
_SLOWDOWN = 3  # times the usual seconds a FLOP of a model size
_LOST_SHARE = 0.05  # of all seconds
_MIN_SPANS = 3  # between evaluations of one model size, without the first


def headline(comparison: Comparison) -> str:
    """The best method in one sentence; empty where nothing is measured. An interval with 0 in it is no saving."""
    savings_of = {method.label: saving for method in comparison.methods if (saving := method.saving("flops"))}
    if not savings_of or comparison.target is None or comparison.baseline is None:
        return ""
    title, baseline = comparison.family.title, comparison.baseline
    runs = [outcome.run for method in comparison.methods for outcome in method.outcomes]
    by_frequency = min((run.frequency_loss for run in runs if run.frequency_loss is not None), default=math.inf)
    if comparison.target.loss >= by_frequency:
        return (
            f"{title}: no saving yet: validation loss {comparison.target.loss:.4f} is no lower than that of always "
            f"answering by frequency, {by_frequency:.4f}; train longer"
        )
    at = f"at validation loss {comparison.target.loss:.4f}"
    positive = [m for m in comparison.methods if m.label in savings_of and savings_of[m.label].mean > 0]
    certain = [method for method in positive if not savings_of[method.label].includes_zero]
    if not positive:
        nearest = max(savings_of, key=lambda label: savings_of[label].mean)
        more = max(0.0, -100 * savings_of[nearest].mean)
        return f"{title}: no method saves FLOPs {at}; the nearest, {nearest}, needs {more:.1f}% more"
    if not certain:
        return f"{title}: no method is shown to save FLOPs {at}: every interval includes 0; more seeds narrow them"
    best = max(certain, key=lambda method: savings_of[method.label].mean)
    cells, seconds = method_cells(comparison, best), best.saving("seconds")
    machines = {
        tuple(outcome.run.made_with.get(key) for key in ("device", "precision"))
        for method in (baseline, best)
        for outcome in method.outcomes
    }
    is_measured = len(machines) == 1 and not any(map(list, map(_timing_notes, (baseline, best))))
    is_timed = is_measured and seconds and seconds.mean > 0 and not seconds.includes_zero
    return (
        f"{title}: {best.label} saves {cells.savings['flops']} of the FLOPs"
        f"{' and ' + cells.savings['seconds'] + ' of the seconds' if is_timed else ''} of {baseline.label} {at} "
        f"({cells.runs})"
    )


def comparison_notes(comparison: Comparison) -> list[str]:
    """Notes on a comparison, the weightiest first; the labels in them are untrusted text."""
    methods = comparison.methods
    found = [
        *(notes(comparison) for notes in (_baseline_notes, _reference_notes, _shallow_notes, _settings_notes)),
        *(notes(method) for notes in (_source_notes, _extension_notes) for method in methods),
        _machine_notes(comparison),
        *map(_timing_notes, methods),
        *(_noise_notes(comparison), _target_notes(comparison), comparison.family.notes),
    ]
    return list(dict.fromkeys(chain.from_iterable(found)))


def _baseline_notes(comparison: Comparison) -> Iterator[str]:
    """Why there are no savings, and what to type."""
    labels = ", ".join(f"'{group.label}'" for group in comparison.candidates or comparison.family.groups)
    asked, target, baseline = comparison.question.baseline, comparison.target, comparison.baseline
    if asked and not comparison.candidates:
        yield f"No savings here: --baseline {asked} is not among these runs."
    elif not comparison.candidates and len(comparison.family.groups) == 1:
        yield f"No savings: {labels} is the only method here. Add runs that train all layers from the first step."
    elif not comparison.candidates:
        yield f"No savings: none trains all layers from the first step. Type --baseline with one of {labels}."
    elif len(comparison.candidates) > 1:
        yield f"No savings: several train from scratch. Type --baseline with one of {labels}."
    elif baseline is None or not baseline.curves:
        yield f"No savings: {labels} has no evaluation of the whole model yet."
    elif target is None:
        yield f"No savings: the loss of {labels} is not finite at the end. Type --target-loss."
    elif comparison.baseline_cost is None:
        losses = [point.loss for point in savings.mean_curve(baseline.curves)]
        how = f"goes from {losses[0]:.4f} down to {min(losses):.4f}" if losses else "has no shared evaluation"
        yield f"No savings: {labels} {how} and does not reach {target.loss:.4f} at a cost that can be compared."


def _reference_notes(comparison: Comparison) -> Iterator[str]:
    baseline, cost = comparison.baseline, comparison.baseline_cost
    if baseline is None or cost is None:
        return
    completed = sum(outcome.run.status == "completed" for outcome in baseline.outcomes)
    is_final = bool(comparison.target and comparison.target.interval)  # else a loss that somebody chose
    if not completed:
        moves = "the target is their current loss and" if is_final else "the cost of the target"
        yield f"No run of '{baseline.label}' is completed: {moves} will change."
    elif completed < len(baseline.outcomes):
        of = f"the {completed} completed runs of '{baseline.label}', of {len(baseline.outcomes)}"
        yield f"The target and its cost are those of {of}." if is_final else f"The cost is that of {of}."
    ends = [curve[-1].cost.flops for curve in baseline.curves]
    if len({curve[-1].step for curve in baseline.curves}) > 1:
        is_mean = is_final and abs(cost.flops - fmean(ends)) < _TOLERANCE * cost.flops
        yield (
            f"The runs of '{baseline.label}' end at different budgets, {min(ends):.3e} to {max(ends):.3e} FLOPs"
            f"{'; the mean of their ends is the cost of the target' if is_mean else ''}."
        )
    elif is_final and cost.flops < (1 - _TOLERANCE) * min(ends):
        yield (
            f"'{baseline.label}' is at its final loss after {cost.flops:.3e} of its {max(ends):.3e} FLOPs already; "
            "this is the cost of the target."
        )


def _shallow_notes(comparison: Comparison) -> Iterator[str]:
    """Methods whose depth has not paid: a shallower model from scratch has their loss for no more FLOPs."""
    ended = [(method, method.outcomes[0].run) for method in comparison.methods if method.curve and method.has_ended]
    for method, grown in ended:
        end = method.curve[-1]
        shallow = [
            (savings.lowest_within(other.curve, end.cost.flops), other.label, run.target_layers)
            for other, run in ended
            if run.is_scratch and run.blocks == grown.blocks and run.target_layers < grown.target_layers
        ]
        if grown.is_scratch or not shallow:
            continue
        loss, label, layers = min(shallow)
        if loss <= end.loss < math.inf:
            yield (
                f"'{method.label}' ends at {end.loss:.4f}; '{label}', with {layers} layers from the first step, is "
                f"at {loss:.4f} for no more FLOPs: the deeper layers have not paid."
            )


def _settings_notes(comparison: Comparison) -> Iterator[str]:
    """The settings beside growth in which the methods differ; labels may not show them."""
    labels = [method.label for method in comparison.methods]
    parts = [
        f"{key} {_by_value((value, label) for value, label in zip(values, labels, strict=True) if value)}"
        for key, values in differing([method.outcomes[0].run for method in comparison.methods])
        if not key.startswith(_GROWTH)
    ]
    if parts:
        yield f"The methods also differ in settings beside growth: {'; '.join(parts)}."


def _source_notes(method: Method) -> Iterator[str]:
    """The cost of a method with and without the model that it is initialized from."""
    if any(outcome.run.source_flops is None for outcome in method.outcomes):
        yield (
            f"'{method.label}' is initialized from a model of unknown cost, which is not counted; "
            "set init_from.flops."
        )
    if costs := [outcome.source.flops for outcome in method.outcomes if outcome.source.flops]:
        without = [format_ratio(method, method.saving(axis, with_source=False)) for axis in AXES]
        saved = f" Without them its saving is {without[0]} of the FLOPs and {without[1]} of the seconds."
        yield (
            f"'{method.label}' is initialized from a model that cost {format_number(fmean(costs))} FLOPs; they are "
            f"counted.{saved if method.saving('flops') else ''}"
        )


def _extension_notes(method: Method) -> Iterator[str]:
    """Runs that were made longer than they were planned, which equal no run of that length."""
    for outcome in method.outcomes:
        if earlier := outcome.run.config.get("budget.extended_from"):
            yield (
                f"{one_line(outcome.run.place)} ('{method.label}') was extended: it was planned with "
                f"{one_line(earlier)} steps, of which its warmup and the ends of its stages are shares."
            )


def _machine_notes(comparison: Comparison) -> Iterator[str]:
    """Devices, precisions or commits in which runs differ, between methods or within one."""
    consequences = {
        "device": "their seconds compare the machines too",
        "precision": "their losses and seconds compare that too",
        "git_commit": "the code may have changed between them",
    }
    for key, consequence in consequences.items():
        length = 12 if key == "git_commit" else None
        runs = [(outcome.run, method.label) for method in comparison.methods for outcome in method.outcomes]
        known = [(run.made_with[key][:length], label) for run, label in runs if key in run.made_with]
        if len({value for value, _ in known}) > 1:
            yield f"The runs differ in {key.replace('_', ' ')}, so {consequence}: {_by_value(known)}."


def _by_value(pairs: Iterable[tuple[str, str]]) -> str:
    """Values, each with the labels that have it: `0.1 ('a', 'b'), 0.2 (7 methods)`."""
    labels: dict[str, list[str]] = {}
    for value, label in dict.fromkeys(pairs):
        labels.setdefault(value, []).append(f"'{label}'")
    parts = []
    for value, of_value in labels.items():
        names = ", ".join(of_value)
        count = files.counted(len(of_value), "method")
        parts.append(f"{value} ({names if len(names) <= _MAX_LABELS else count})")
    return ", ".join(parts)


def _timing_notes(method: Method) -> Iterator[str]:
    """Runs that paused or shared their machine for a while, so that their timing is not comparable.

    Each span between two evaluations is compared with the others of its model size, for a small model has other
    seconds a FLOP than a large one.
    """
    for outcome in method.outcomes:
        spans: dict[ModelSize, list[tuple[float, float]]] = defaultdict(list)
        for row, later in pairwise(outcome.run.evaluations):
            if later["flops"] > row["flops"]:
                seconds, flops = (later[key] - row[key] for key in ("train_seconds", "flops"))
                spans[model_size(later)].append((seconds, flops))
        total, lost = sum(seconds for each in spans.values() for seconds, _ in each), 0.0
        for _, *later_spans in spans.values():  # the first one of each size has compilation and warm-up
            if len(later_spans) >= _MIN_SPANS:
                usual = median(seconds / flops for seconds, flops in later_spans)
                lost += sum(s - usual * flops for s, flops in later_spans if s > _SLOWDOWN * usual * flops)
        if lost > _LOST_SHARE * total:
            yield (
                f"{one_line(outcome.run.place)} ('{method.label}') lost {lost:.0f} of {total:.0f} s where it was "
                f"{_SLOWDOWN} times slower than usual: stopped, compiling, or the machine was busy. "
                "Its timing is not comparable."
            )


def _noise_notes(comparison: Comparison) -> Iterator[str]:
    """Losses that cross the target more than once; the baseline is counted in the same way."""
    if comparison.baseline_cost is None:
        return
    parts = []
    for method in comparison.methods:
        ends = [(outcome.cost, outcome.cost_for_good) for outcome in method.outcomes]
        later = [cost for cost, good in ends if cost and not (good and good.flops <= (1 + _TOLERANCE) * cost.flops)]
        if later and not method.is_baseline:
            saved = interval_of_all([outcome.saving_for_good for outcome in method.outcomes])
            of_method = all(good for _, good in ends)
            above = "above it at the end" if not of_method else "while the baseline is above it at the end"
            mean = f"{saved.mean:.1%}" if saved else above
            parts.append(f"'{method.label}' {mean} ({len(later)} of {len(method.outcomes)} runs)")
    if parts:
        yield (
            "Losses rise above the target again after they reach it. Saving in FLOPs, method and baseline counted "
            f"from where they stay there: {first_of(parts, _MAX_METHODS)}."
        )


def _target_notes(comparison: Comparison) -> Iterator[str]:
    target, baseline = comparison.target, comparison.baseline
    if target is None or target.interval is None or target.cost is None or baseline is None:
        return
    if target.interval.n == 1:
        yield (
            f"The target is the loss of one run of '{baseline.label}': its variation with the seed is "
            "unknown, and no interval includes it."
        )
        return
    fixed = [f"'{m.label}'" for m in comparison.methods if not m.is_paired and not m.is_baseline and m.reached]
    if fixed:
        yield (
            f"Not paired with '{baseline.label}' seed by seed: {first_of(fixed, _MAX_METHODS)}. They have other "
            "seeds, or a run that does not reach the loss of its seed. Their target is the mean loss, whose own "
            "variation over seeds their intervals leave out."
        )
