"""What a reader of a comparison should know beside its numbers."""

import math
from collections.abc import Iterator

from apollo_cli.report import savings
from apollo_cli.report.comparison import Comparison, Method

_LATER = 0.01  # a share of the cost that is worth saying


def notes(comparison: Comparison) -> list[str]:
    """Sentences in the order of weight; labels in them are a stranger's text."""
    found = [
        *_on_baseline(comparison),
        *_on_reference(comparison),
        *_on_depth(comparison),
        *(note for method in comparison.methods for note in _on_noise(method)),
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


def _on_depth(comparison: Comparison) -> Iterator[str]:
    depths = {method.label: method.outcomes[0].run.target_layers for method in comparison.methods}
    if len(set(depths.values())) > 1:
        found = ", ".join(f"'{label}' {layers}" for label, layers in depths.items())
        yield f"The models are not equally deep; layers: {found}."


def _on_noise(method: Method) -> Iterator[str]:
    """A loss that comes to the target more than once."""
    if method.is_baseline or method.baseline_cost is None:
        return
    later = [o for o in method.outcomes if o.cost and not _is_near(o.cost, o.cost_for_good)]
    if later:
        costs = [o.cost_for_good.flops if o.cost_for_good else math.inf for o in method.outcomes]
        if math.isfinite(max(costs)):
            worst = savings.saving(sum(costs) / len(costs), method.baseline_cost.flops)
            end = f"counted from where it stays there, {worst:.1%} of the FLOPs are saved"
        else:
            end = "and it is above it again at the end"
        runs = f"{len(later)} of {len(method.outcomes)} runs"
        yield f"'{method.label}' rises above the target again in {runs}; {end}."


def _on_target(comparison: Comparison) -> Iterator[str]:
    """A target that moves with the baseline's seeds."""
    moved = [(m.label, sorted(m.moved)) for m in comparison.methods if m.moved]
    if moved:
        found = ", ".join(f"'{label}' {low:.1%} to {high:.1%}" for label, (low, high) in moved)
        yield (
            "The intervals hold the target fixed. With it at the ends of its own interval over the baseline's "
            f"seeds, and the baseline's cost as it is, the saving in FLOPs moves: {found}."
        )


def _is_near(cost: savings.Cost, later: savings.Cost | None) -> bool:
    return later is not None and later.flops <= (1 + _LATER) * cost.flops
