"""Tables and pictures of the reproduction, a page for each corpus; nothing is trained.

`python -m benchmarks.render_reproduction CORPUS` makes them from the archives.
"""

import sys
from collections.abc import Iterator
from statistics import fmean

from apollo_cli.intervals import interval
from apollo_cli.report import notes, tables
from apollo_cli.report.comparison import Comparison
from benchmarks import render_ladder, results_page
from benchmarks.archives import BenchmarkCorpus, growth_costs
from benchmarks.cells import (
    COMPARED,
    DEFAULT,
    FITTED,
    KINDS,
    RATES,
    RUNGS,
    SEEDS,
    STEADIER,
    TUNED,
    ReproductionCell,
    cells,
    cosine_cell,
    depth_cells,
    headline_cells,
    precision_pairs,
    rate_cells,
    steadier_cells,
    variant_cells,
)

_DEPTH = ("", "### Does depth pay?", "", "Scratch runs of equal steps, seed 0.", "")
_SECONDS = (
    "- Cells run in parallel with others and with other programs, so their seconds are not compared;"
    " see *Seconds and FLOPs of the reproduction* in [SPEED](SPEED.md) for runs timed in turns."
)
PICTURES = ("loss_against_flops", "growth")


def write(name: str) -> None:
    """Writes the part on a corpus from its complete cells."""
    results_page.put(f"What is saved: {name}", lines(name))


def lines(name: str) -> list[str]:
    """Lines of the part on a corpus; draws its pictures."""
    corpus = BenchmarkCorpus(name)
    text = [
        f"Made by `make reproduce` from the rows in `benchmarks/results/{name}_KIND.tar.bz2`.",
        f"`apollo-compare DIR/{name}` reads them, too, after `python -m benchmarks.archives unpack DIR`.",
        "A cell is",
        "`apollo-train --config-dir benchmarks/conf experiment=repro_METHOD model=KIND optim.lr=RATE seed=SEED`.",
    ]
    for kind in KINDS:
        if corpus.complete(headline_cells(kind)):
            text += ["", f"## {kind.upper()}", "", *_fitted(corpus, kind)]
            if name == DEFAULT:
                text += [*_DEPTH, *on_depth(corpus, kind), *_on_longer(corpus, kind), *_on_rates(corpus, kind)]
                text += [*_at_equal_loss(corpus, kind), *_on_precision(corpus, kind)]
            else:
                text += _elsewhere(corpus, kind)
            text += [*_headline(corpus, kind), *_on_variants(corpus, kind)]
    return text


def _fitted(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Overrides that methods have for this kind of model."""
    wanted = {cell.method for cell in cells(corpus.name)}
    methods: dict[str, list[str]] = {}
    for (fitted_kind, method), more in FITTED.items():
        if fitted_kind == kind and method in wanted:
            methods.setdefault(" ".join(more), []).append(method)
    yield from (f"With `{more}`: {', '.join(names)}." for more, names in methods.items())


def on_depth(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Table of scratch runs of several depths."""
    rows = [
        [str(cell.layers or 12), corpus.loss(cell), f"{corpus.summary(cell)['totals']['flops']:.3e}"]
        for cell in corpus.complete(depth_cells(kind))
    ]
    yield from results_page.table(("layers", "validation loss (nats)", "FLOPs"), rows)


def _on_longer(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    yield from ["", "### What fewer layers reach with more steps", ""]
    yield "Scratch runs of seed 0 that never grow, and what their loss costs twelve layers from scratch: growth"
    yield from ["pays where it saves more than this, or where twelve layers are needed.", ""]
    yield from render_ladder.fewer(corpus, kind)


def _on_rates(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    losses = {cell: corpus.loss(cell) for cell in rate_cells(kind)}
    yield from ["", "### Learning rates", ""]
    yield from ["Validation loss of seed 0 at the end; **bold**: chosen, for the other methods, too.", ""]
    rows = []
    for method in COMPARED:
        of_method = [losses[ReproductionCell(kind, method, rate, 0)] for rate in RATES[kind]]
        chosen = RATES[kind].index(TUNED[kind, method])
        rows.append([method, *(f"**{loss}**" if i == chosen else loss for i, loss in enumerate(of_method))])
    yield from results_page.table(("method", *RATES[kind]), rows)
    if corpus.kept(cosine_cell(kind)).exists():
        yield from ["", f"Scratch under one cosine, as published, ends at {corpus.loss(cosine_cell(kind))}."]


def _on_precision(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Final losses in fp32 and bf16, beside how far those of the seeds lie apart."""
    complete = [pair for pair in precision_pairs(kind) if len(corpus.complete(pair)) == len(pair)]
    pairs = [pair for pair in complete if [corpus.summary(cell)["precision"] for cell in pair] == ["fp32", "bf16"]]
    rows = []
    for method in dict.fromkeys(exact.method for exact, _ in pairs):
        losses = [
            [corpus.summary(cell)["losses"]["eval/loss"] for cell in pair]
            for pair in pairs
            if pair[0].method == method
        ]
        exact, short = zip(*losses, strict=True)
        differences = [b - a for a, b in losses]
        rows.append(
            [
                method,
                *("; ".join(f"{loss:.4f}" for loss in each) for each in (exact, short)),
                f"{fmean(differences):+.4f}",
                f"{max(map(abs, differences)):.4f}",
                f"{max(exact) - min(exact):.4f}",
            ]
        )
    if rows:
        yield from ["", "### In bf16", ""]
        yield "The same runs with `precision=bf16`: final validation loss (nats), seed by seed; weights and moments"
        yield from ["are in fp32 in both.", ""]
        head = ("method", "fp32", "bf16", "mean difference", "largest", "fp32 seeds apart")
        yield from results_page.table(head, rows)


def _at_equal_loss(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    yield from ["", "### What the same loss costs from scratch", ""]
    yield from ["Scratch runs, each laid out for its own budget.", "", *render_ladder.rungs(corpus, kind), ""]
    yield "What the final loss of each run costs from scratch with the same seed (linear in the logarithm of FLOPs"
    yield from ["between two of these budgets, never beyond them), and so what the run saved.", ""]
    yield from render_ladder.beside(corpus, kind)
    yield from render_ladder.frontier(corpus, kind)


def _elsewhere(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Scratch runs on another corpus."""
    if kind == RUNGS[0] and len(render_ladder.ladder(corpus, kind, SEEDS[0])) > 1:
        yield from _at_equal_loss(corpus, kind)
    if kind == STEADIER[0]:
        yield from [
            "",
            "### Scratch, seed by seed",
            "",
            "Final loss (nats) at the chosen rate and at half of it.",
            "",
        ]
        of_rates = (headline_cells(kind, ("scratch",)), steadier_cells())
        rows = [[cells[0].rate, *map(corpus.loss, cells)] for cells in of_rates]
        yield from results_page.table(("rate", *(f"seed {seed}" for seed in SEEDS)), rows)


def _headline(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    if comparison := compared(corpus, kind):
        yield from ["", "### What is saved at the loss of scratch", "", *table(comparison)]
        yield from ["", *(f"- {note}" for note in notes.comparison_notes(comparison)), _SECONDS]
        if _scratch(corpus, kind) != headline_cells(kind, ("scratch",)):
            yield f"- Scratch is the one at {STEADIER[1]}, better for it here; no other method was tried there."
        yield from results_page.pictures(f"{corpus.name}_{kind}", comparison, PICTURES)
    yield from _growths(corpus, kind)


def compared(corpus: BenchmarkCorpus, kind: str) -> Comparison | None:
    """The complete cells of all methods beside scratch; None if no scratch run is complete."""
    wanted = [cell for cell in headline_cells(kind) if cell.method != "scratch"] + _scratch(corpus, kind)
    complete = corpus.complete(wanted)
    if "scratch" not in {cell.method for cell in complete}:
        return None
    return corpus.compared(map(corpus.kept, complete), "repro_scratch")


def _scratch(corpus: BenchmarkCorpus, kind: str) -> list[ReproductionCell]:
    """The baseline: at the steadier rate where that was trained; at the other some seeds stay on the plateau."""
    if corpus.name != DEFAULT and kind == STEADIER[0] and corpus.complete(steadier_cells()):
        return steadier_cells()
    return headline_cells(kind, ("scratch",))


def _growths(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """The validation loss at each growth of a method, over its seeds."""
    yield from ["", "### What growth costs", "", "Validation loss just before and after, means over seeds.", ""]
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in headline_cells(kind):
        for growth in corpus.summary(cell).get("growths", []):
            of_seeds = seen.setdefault((cell.method, f"{growth['from']} to {growth['to']}"), [])
            of_seeds.append((growth["eval/loss_before"], growth["eval/loss_after"]))
    rows = []
    for (method, layers), losses in seen.items():
        before, after = (fmean(side) for side in zip(*losses, strict=True))
        cost = interval([after - before for before, after in losses])
        rows.append([method, layers, f"{before:.3f}", f"{after:.3f}", f"{cost.format(3)} (n = {cost.n})"])
    yield from results_page.table(("method", "layers", "before", "after", "cost"), rows)


def _on_variants(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    """Other samplers and expanders, all else equal."""
    rows = []
    for cell in corpus.complete(variant_cells(kind)):
        costs = growth_costs(corpus.summary(cell))
        steps, flops = (corpus.summary(cell)["totals"][name] for name in ("steps", "flops"))
        rows.append(
            [cell.method, str(steps), f"{flops:.3e}", corpus.loss(cell), *(f"{cost:z.3f}" for cost in costs)]
        )
    if len(rows) > 1:
        yield from ["", "### Samplers and expanders", ""]
        yield "The stages of apollo_late and as many FLOPs, seed 0. `apollo_late` is LVPS with k = 4 and"
        yield "interpolation, `stack` the same but for its expander; the last columns: what a growth costs (nats)."
        yield ""
        head = ("variant", "steps", "FLOPs", "validation loss (nats)", "3 to 6", "6 to 12")
        yield from results_page.table(head, rows)
        pair = [cell for cell in corpus.complete(variant_cells(kind)) if cell.method in ("apollo_late", "stack")]
        if len(pair) > 1:
            comparison = corpus.compared(map(corpus.kept, pair), None)
            yield from results_page.pictures(f"{corpus.name}_{kind}_stacking", comparison, ["growth"])


def table(comparison: Comparison) -> Iterator[str]:
    """Table of the savings of a comparison."""
    yield from [f"{tables.target_sentence(comparison)}; {comparison.family.description}.", ""]
    head = ("method", "runs", "final loss (nats)", "FLOPs to target", "FLOPs saved")
    rows = []
    for method in comparison.methods:
        row = tables.method_cells(comparison, method)
        rows.append([method.label, row.runs, row.final, row.costs["flops"], row.savings["flops"]])
    yield from results_page.table(head, rows)


if __name__ == "__main__":
    write(*sys.argv[1:])
