"""What a loss costs from scratch: runs of several budgets, each with a learning rate laid out for its own.

So a method is measured at the loss where it ended, not at one that it happens to reach.
"""

from collections.abc import Iterator
from statistics import fmean

from apollo_cli.intervals import Interval, interval
from apollo_cli.report import savings
from apollo_cli.report.runs import RunFiles
from benchmarks import results
from benchmarks.reproduce import METHODS, SEEDS, TUNED, Cell, Corpus, ladder_cells, longer_cells


def ladder(corpus: Corpus, kind: str, seed: int) -> savings.Curve:
    """Final losses of scratch runs against their budgets, as far as they are there."""
    there = [cell for cell in ladder_cells(kind, seed) if corpus.kept(cell).exists()]
    return savings.make_curve(_end(corpus, cell) for cell in there)


def from_scratch(rungs: savings.Curve, loss: float) -> float | None:
    """FLOPs of a scratch run that ends at this loss, linear between two budgets; None beyond those tried."""
    if not rungs or not rungs[-1].loss <= loss <= rungs[0].loss:
        return None
    cost = savings.crossing(rungs, loss)
    return cost.flops if cost else None


def rungs(corpus: Corpus, kind: str) -> Iterator[str]:
    """The table of the scratch runs."""
    ladders = [ladder(corpus, kind, seed) for seed in SEEDS]
    budgets = sorted({(end.step, end.cost.flops) for ends in ladders for end in ends})
    losses = [{end.step: f"{end.loss:.4f}" for end in ends} for ends in ladders]
    rows = [[str(steps), f"{flops:.3e}", *(of.get(steps, "-") for of in losses)] for steps, flops in budgets]
    yield from results.table(("steps", "FLOPs", *(f"loss, seed {seed}" for seed in SEEDS)), rows)


def beside(corpus: Corpus, kind: str) -> Iterator[str]:
    """The table of what each method saved at its own final loss."""
    rows = [_row(corpus, kind, method) for method in METHODS if method != "scratch"]
    head = ("method", "FLOPs", "final losses (nats)", "FLOPs from scratch", "FLOPs saved")
    yield from results.table(head, [row for row in rows if row])


def fewer(corpus: Corpus, kind: str) -> Iterator[str]:
    """The table of the runs of fewer layers and more steps, at their own final loss."""
    rows = []
    for cell in longer_cells(kind):
        if corpus.kept(cell).exists():
            end = _end(corpus, cell)
            cost = from_scratch(ladder(corpus, kind, cell.seed), end.loss)
            saved = f"{savings.saving(end.cost.flops, cost):.1%}" if cost else "-"
            costs = f"{cost:.3e}" if cost else "beyond"
            rows.append([str(cell.layers), str(end.step), f"{end.cost.flops:.3e}", f"{end.loss:.4f}", costs, saved])
    head = ("layers", "steps", "FLOPs", "final loss (nats)", "FLOPs of 12 layers", "fewer")
    yield from results.table(head, rows)


def _row(corpus: Corpus, kind: str, method: str) -> list[str] | None:
    cells = [Cell(kind, method, TUNED[kind, method], seed) for seed in SEEDS]
    ends = {cell.seed: _end(corpus, cell) for cell in cells if corpus.kept(cell).exists()}
    if not ends:
        return None
    costs = {seed: from_scratch(ladder(corpus, kind, seed), end.loss) for seed, end in ends.items()}
    saved = [savings.saving(ends[seed].cost.flops, cost) for seed, cost in costs.items() if cost]
    return [
        method,
        f"{fmean(end.cost.flops for end in ends.values()):.3e}",
        ", ".join(f"{end.loss:.4f}" for end in ends.values()),
        ", ".join(f"{cost:.3e}" if cost else "beyond" for cost in costs.values()),
        _mean(interval(saved)) if len(saved) == len(ends) else "-",
    ]


def _mean(of: Interval) -> str:
    half = "" if of.half is None else f" ± {of.half:.1%}"
    return f"{of.mean:.1%}{half} (n = {of.n})"


def _end(corpus: Corpus, cell: Cell) -> savings.Point:
    summary = RunFiles(corpus.kept(cell)).summary
    totals = summary["totals"]
    cost = savings.Cost(totals["flops"], totals["train_seconds"])
    return savings.Point(totals["steps"], cost, summary["losses"]["eval/loss"])
