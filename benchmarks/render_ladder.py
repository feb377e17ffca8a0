"""Tables of what a loss costs from scratch, from runs of several budgets with learning-rate schedules of their own.

So a method is measured at its final loss, not at a loss that it passes on the way.
"""

from collections.abc import Iterator
from statistics import fmean

from apollo_cli.intervals import Interval, interval
from apollo_cli.report import savings
from benchmarks import results_page
from benchmarks.archives import BenchmarkCorpus
from benchmarks.cells import METHODS, SEEDS, ReproductionCell, headline_cells, ladder_cells, longer_cells


def ladder(corpus: BenchmarkCorpus, kind: str, seed: int) -> savings.Curve:
    """Final losses of the complete scratch runs against their budgets."""
    return savings.make_curve(end_of(corpus, cell) for cell in corpus.complete(ladder_cells(kind, seed)))


def rungs(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Table of the scratch runs."""
    ladders = [ladder(corpus, kind, seed) for seed in SEEDS]
    budgets = sorted({(end.step, end.cost.flops) for ends in ladders for end in ends})
    losses = [{end.step: f"{end.loss:.4f}" for end in ends} for ends in ladders]
    rows = [
        [str(steps), f"{flops:.3e}", *(of_seed.get(steps, "-") for of_seed in losses)] for steps, flops in budgets
    ]
    yield from results_page.table(("steps", "FLOPs", *(f"loss, seed {seed}" for seed in SEEDS)), rows)


def beside(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Table of what each method saved at its own final loss."""
    rows = [_row(corpus, kind, method) for method in METHODS if method != "scratch"]
    head = ("method", "FLOPs", "final losses (nats)", "FLOPs from scratch", "FLOPs saved")
    yield from results_page.table(head, [row for row in rows if row])


def frontier(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Picture of every method's complete runs beside the scratch runs."""
    from apollo_cli.report.frontier import Ended, draw_frontier  # imports matplotlib
    from apollo_cli.report.style import looks

    by_label, methods = looks(METHODS, "scratch"), []
    for method in METHODS:
        ends, _ = _ends(corpus, kind, method)
        if ends and method != "scratch":
            saved = savings_of(corpus, kind, method).values()
            methods.append(Ended(by_label[method], tuple(ends.values()), tuple(saved)))
    ladders = [rungs for seed in SEEDS if (rungs := ladder(corpus, kind, seed))]
    caption = (
        f"{kind.upper()}: final validation loss against model FLOPs, means over seeds. The line goes through "
        "scratch runs of several budgets, its band from the lowest to the highest seed; arrows are savings"
    )
    figure = draw_frontier(ladders, methods, "flops")
    yield from results_page.picture(f"{corpus.name}_{kind}_frontier", caption, figure)


def fewer(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Table of what twelve layers need for the final loss of shallower and longer runs."""
    rows = []
    for cell in corpus.complete(longer_cells(kind)):
        end = end_of(corpus, cell)
        cost = savings.scratch_cost(ladder(corpus, kind, cell.seed), end.loss, "flops")
        saved = f"{savings.saving(end.cost.flops, cost):.1%}" if cost else "-"
        costs = f"{cost:.3e}" if cost else "beyond"
        rows.append([str(cell.layers), str(end.step), f"{end.cost.flops:.3e}", f"{end.loss:.4f}", costs, saved])
    head = ("layers", "steps", "FLOPs", "final loss (nats)", "FLOPs of 12 layers", "fewer")
    yield from results_page.table(head, rows)


def _row(corpus: BenchmarkCorpus, kind: str, method: str) -> list[str] | None:
    ends, costs = _ends(corpus, kind, method)
    if not ends:
        return None
    saved = [share for share in savings_of(corpus, kind, method).values() if share is not None]
    return [
        method,
        f"{fmean(end.cost.flops for end in ends.values()):.3e}",
        ", ".join(f"{end.loss:.4f}" for end in ends.values()),
        ", ".join(f"{cost:.3e}" if cost else "beyond" for cost in costs.values()),
        saving_text(interval(saved)) if len(saved) == len(ends) else "-",
    ]


def savings_of(corpus: BenchmarkCorpus, kind: str, method: str) -> dict[int, float | None]:
    """What each seed of a method saved beside scratch runs of its final loss; None beyond their budgets."""
    ends, costs = _ends(corpus, kind, method)
    return {seed: savings.saving(ends[seed].cost.flops, cost) if cost else None for seed, cost in costs.items()}


def _ends(
    corpus: BenchmarkCorpus, kind: str, method: str
) -> tuple[dict[int, savings.Point], dict[int, float | None]]:
    """The ends of a method's runs by their seed, and the FLOPs of scratch runs that end at their losses."""
    ends = {cell.seed: end_of(corpus, cell) for cell in corpus.complete(headline_cells(kind, [method]))}
    return ends, {
        seed: savings.scratch_cost(ladder(corpus, kind, seed), end.loss, "flops") for seed, end in ends.items()
    }


def saving_text(saved: Interval) -> str:
    half = "" if saved.half is None else f" ± {saved.half:.1%}"
    return f"{saved.mean:.1%}{half} (n = {saved.n})"


def end_of(corpus: BenchmarkCorpus, cell: ReproductionCell) -> savings.Point:
    summary = corpus.summary(cell)
    totals = summary["totals"]
    cost = savings.Cost(totals["flops"], totals["train_seconds"])
    return savings.Point(totals["steps"], cost, summary["losses"]["eval/loss"])
