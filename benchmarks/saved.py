"""What the kept runs of the reproduction say, as a part of benchmarks/RESULTS.md; nothing is trained.

`python -m benchmarks.saved CORPUS` makes every table and picture anew, `make reproduce` does so at its end.
"""

import sys
from collections.abc import Iterator
from typing import Any

from apollo_cli.report import plots
from apollo_cli.report.comparison import Comparison, Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.notes import comparison_notes
from apollo_cli.report.runs import RunFiles, read_runs
from apollo_cli.report.tables import method_cells, target_sentence
from benchmarks import ladder, results
from benchmarks.reproduce import (
    COMPARED,
    DEFAULT,
    FITTED,
    KEPT,
    KINDS,
    RATES,
    RUNGS,
    SEEDS,
    STEADIER,
    TUNED,
    Cell,
    Corpus,
    cells,
    cosine_cell,
    depth_cells,
    headline_cells,
    rate_cells,
    variant_cells,
)

_DEPTH = ("", "### Does depth pay?", "", "Scratch runs of equal steps, seed 0.", "")
_SECONDS = (
    "- Cells are trained beside each other and whatever else the machine does, so their seconds are not compared;"
    " see *Seconds and FLOPs of the reproduction* for runs timed in turns."
)
PICTURES = ("loss_against_flops", "growth")


def write(name: str) -> None:
    """The part on a corpus, with what is there of it."""
    results.put(f"What is saved: {name}", lines(name))


def lines(name: str) -> list[str]:
    """The lines of the part on a corpus; draws its pictures."""
    corpus = Corpus(name, ())
    said = [
        "Made by `make reproduce` from the rows in `benchmarks/reproduction/`, which `apollo-compare` reads, too.",
        "A cell is `apollo-train experiment=repro_METHOD model=KIND optim.lr=RATE seed=SEED`.",
    ]
    for kind in KINDS:
        if any(corpus.kept(cell).exists() for cell in headline_cells(kind)):
            said += ["", f"## {kind.upper()}", "", *_fitted(corpus, kind)]
            if name == DEFAULT:
                said += [*_DEPTH, *on_depth(corpus, kind), *_on_longer(corpus, kind), *_on_rates(corpus, kind)]
                said += _at_equal_loss(corpus, kind)
            else:
                said += _elsewhere(corpus, kind)
            said += [*_headline(corpus, kind), *_on_variants(corpus, kind)]
    return said


def _fitted(corpus: Corpus, kind: str) -> Iterator[str]:
    """What is typed beside a method's own words because the model wants it."""
    wanted = {cell.method for cell in cells(corpus.name)}
    methods: dict[str, list[str]] = {}
    for (of, method), more in FITTED.items():
        if of == kind and method in wanted:
            methods.setdefault(" ".join(more), []).append(method)
    yield from (f"With `{more}`: {', '.join(names)}." for more, names in methods.items())


def on_depth(corpus: Corpus, kind: str) -> Iterator[str]:
    """The table of scratch runs of other depths."""
    there = [cell for cell in depth_cells(kind) if corpus.kept(cell).exists()]
    rows = [
        [str(cell.layers or 12), _loss(corpus, cell), f"{_summary(corpus, cell)['totals']['flops']:.3e}"]
        for cell in there
    ]
    yield from results.table(("layers", "validation loss (nats)", "FLOPs"), rows)


def _on_longer(corpus: Corpus, kind: str) -> Iterator[str]:
    yield from ["", "### What fewer layers reach with more steps", ""]
    yield "Scratch runs of seed 0 that never grow, and what their loss costs twelve layers from scratch: growth is"
    yield from ["worth its trouble where it saves more than this, or where twelve layers are wanted.", ""]
    yield from ladder.fewer(corpus, kind)


def _on_rates(corpus: Corpus, kind: str) -> Iterator[str]:
    losses = {cell: _loss(corpus, cell) for cell in rate_cells(kind)}
    yield from ["", "### Learning rates", ""]
    yield from ["Validation loss of seed 0 at the end; **bold**: chosen, for the other methods, too.", ""]
    rows = []
    for method in COMPARED:
        of_rates = [losses[Cell(kind, method, rate, 0)] for rate in RATES[kind]]
        chosen = RATES[kind].index(TUNED[kind, method])
        rows.append([method, *(f"**{loss}**" if i == chosen else loss for i, loss in enumerate(of_rates))])
    yield from results.table(("method", *RATES[kind]), rows)
    if corpus.kept(cosine_cell(kind)).exists():
        yield from ["", f"Scratch under one cosine, as published, ends at {_loss(corpus, cosine_cell(kind))}."]


def _at_equal_loss(corpus: Corpus, kind: str) -> Iterator[str]:
    yield from ["", "### What the same loss costs from scratch", ""]
    yield from ["Scratch runs, each laid out for its own budget.", "", *ladder.rungs(corpus, kind), ""]
    yield "What the final loss of each run costs from scratch with the same seed (linear between two of these"
    yield from ["budgets, never beyond them), and so what the run saved.", "", *ladder.beside(corpus, kind)]


def _elsewhere(corpus: Corpus, kind: str) -> Iterator[str]:
    """What scratch alone does on another corpus."""
    if kind == RUNGS[0] and len(ladder.ladder(corpus, kind, SEEDS[0])) > 1:
        yield from _at_equal_loss(corpus, kind)
    if kind == STEADIER[0]:
        yield from [
            "",
            "### Scratch, seed by seed",
            "",
            "Final loss (nats) at the chosen rate and at half of it.",
            "",
        ]
        rows = [
            [rate, *(_loss(corpus, Cell(kind, "scratch", rate, seed)) for seed in SEEDS)]
            for rate in (TUNED[kind, "scratch"], STEADIER[1])
        ]
        yield from results.table(("rate", *(f"seed {seed}" for seed in SEEDS)), rows)


def _headline(corpus: Corpus, kind: str) -> Iterator[str]:
    if there := compared(corpus, kind):
        yield from ["", "### What is saved at the loss of scratch", "", *table(there)]
        yield from ["", *(f"- {note}" for note in comparison_notes(there)), _SECONDS]
        if _scratch(corpus, kind) != headline_cells(kind, ("scratch",)):
            yield f"- Scratch is the one at {STEADIER[1]}, better for it here; no other method was tried there."
        yield from draw(corpus, there)
    yield from _growths(corpus, kind)


def compared(corpus: Corpus, kind: str) -> Comparison | None:
    """All methods beside scratch, with the cells that are there; None without one of scratch."""
    wanted = [cell for cell in headline_cells(kind) if cell.method != "scratch"] + _scratch(corpus, kind)
    there = [cell for cell in wanted if corpus.kept(cell).exists()]
    if "scratch" not in {cell.method for cell in there}:
        return None
    runs, _ = read_runs([str(corpus.kept(cell)) for cell in there])
    (comparison,) = compare(families(runs)[0], Question("repro_scratch"))
    return comparison


def _scratch(corpus: Corpus, kind: str) -> list[Cell]:
    """The baseline: at the steadier rate where that was trained, for at the other some seeds are no target."""
    steadier = [Cell(kind, "scratch", STEADIER[1], seed) for seed in SEEDS]
    if corpus.name != DEFAULT and kind == STEADIER[0] and any(corpus.kept(cell).exists() for cell in steadier):
        return steadier
    return headline_cells(kind, ("scratch",))


def draw(corpus: Corpus, comparison: Comparison) -> Iterator[str]:
    """Draws those that are shown, beside the kept runs."""
    kind = comparison.family.title.lower()
    for name, caption, data in plots.draw_comparison(comparison):
        if name in PICTURES:
            path = KEPT / corpus.name / f"{kind}_{name}.png"
            results.picture(path, data)
            yield from ["", f"![{caption}](reproduction/{corpus.name}/{path.name})"]


def _growths(corpus: Corpus, kind: str) -> Iterator[str]:
    yield from ["", "### What growth costs", "", "Validation loss just before and after, seed by seed.", ""]
    rows = []
    for cell in headline_cells(kind):
        for growth in _summary(corpus, cell).get("growths", []):
            before, after = growth["eval/loss_before"], growth["eval/loss_after"]
            layers = f"{growth['from']} to {growth['to']}"
            rows.append(
                [cell.method, str(cell.seed), layers, *(f"{x:.3f}" for x in (before, after, after - before))]
            )
    yield from results.table(("method", "seed", "layers", "before", "after", "cost"), rows)


def _on_variants(corpus: Corpus, kind: str) -> Iterator[str]:
    """Another sampler or another expander, all else equal."""
    rows = []
    for cell in variant_cells(kind):
        if corpus.kept(cell).exists():
            summary = _summary(corpus, cell)
            costs = [growth["eval/loss_after"] - growth["eval/loss_before"] for growth in summary["growths"]]
            steps, flops = summary["totals"]["steps"], f"{summary['totals']['flops']:.3e}"
            rows.append([cell.method, str(steps), flops, _loss(corpus, cell), *(f"{cost:.3f}" for cost in costs)])
    if len(rows) > 1:
        yield from ["", "### Samplers and expanders", ""]
        yield "The stages of apollo_late and as many FLOPs, seed 0. `apollo_late` is LVPS with k = 4 and"
        yield "interpolation, `stack` the same but for its expander; the last columns: what a growth costs (nats)."
        yield ""
        head = ("variant", "steps", "FLOPs", "validation loss (nats)", "3 to 6", "6 to 12")
        yield from results.table(head, rows)


def table(comparison: Comparison) -> Iterator[str]:
    """The headline of a comparison."""
    yield from [f"{target_sentence(comparison)}; {comparison.family.description}.", ""]
    head = ("method", "runs", "final loss (nats)", "FLOPs to target", "FLOPs saved")
    rows = []
    for method in comparison.methods:
        of = method_cells(comparison, method)
        rows.append([of.method, of.runs, of.final, of.costs["flops"], of.savings["flops"]])
    yield from results.table(head, rows)


def _summary(corpus: Corpus, cell: Cell) -> dict[str, Any]:
    return RunFiles(corpus.kept(cell)).summary


def _loss(corpus: Corpus, cell: Cell) -> str:
    losses = _summary(corpus, cell).get("losses", {})
    return f"{losses['eval/loss']:.4f}" if losses else "-"


if __name__ == "__main__":
    write(*sys.argv[1:])
