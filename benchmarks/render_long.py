"""benchmarks/LONG.md: what grown runs of 12,000 steps save beside scratch runs, and beside shallower ones.

`python -m benchmarks.render_long` makes it from the archives; nothing is trained.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from apollo_cli.intervals import interval
from apollo_cli.report import savings
from apollo_cli.run_directory import RunDirectory
from benchmarks import results_page
from benchmarks.archives import BenchmarkCorpus, growth_costs
from benchmarks.long_cells import DECAY, LONGEST, NAME, RATES, SHALLOWER, STEPS, WARMUP, LongCell, long_cells
from benchmarks.render_ladder import end_of, saving_text
from benchmarks.render_mixing import text_of

PAGE = Path(__file__).with_name("LONG.md")
TITLE = "What is saved in long runs"
ABOUT = f"""\
Made by `python -m benchmarks.long_runs bert|gpt FILE...`: 12 layers of width 64 on bytes, {STEPS:,} steps of
2,048 tokens, warmup {WARMUP:.0%}, constant, linear decay over the last {DECAY:.0%}; all methods of a model at one
rate, in bf16. Scratch runs of fewer steps and of fewer layers have the same shape of the rate over their own
length; a few runs of {LONGEST:,} steps show whether what is saved grows with the length. Where the methods grow:

- `two_hops`: from 3 to 6 to 12 layers after 25 and 50 % of the steps by `expander=boundary`, no moments for new
  layers; `two_hops_split`: so by `expander=split`, whose copies add their share of the layer each
- `two_hops_late`: after 50 and 75 %, as `apollo_late` does
- `four_hops`: to 4, 6, 8 and 12 layers, with about the FLOPs of `two_hops`
- `late_zero_init`, `late_split`: from 3 to 12 when the rate begins to fall, by layers that add nothing at first
  (`expander=net2net`) and by `expander=split`; `six_then_late`: as the first, but to 6 layers after 8 %
- `early_split`: from 3 to 12 layers after 8 %
- `_completep`: residual branches scaled by the depth that runs, in BERT with norms before them
  (`model.norm=pre`), another model that saves beside none; `interpolate_completep` is `apollo_completep` without
  LVPS: all steps run the stored layers

**From scratch** is what a run saves beside a scratch run of twelve layers that ends at the same loss, linear in
the logarithm of FLOPs between two budgets of the same seed, never beyond them; **in steps** counts it in steps of
these twelve layers. **From {SHALLOWER} layers** is the same beside {SHALLOWER} layers from scratch: a growth to
twelve pays only where it is positive, too. **All layers before** is how much higher the loss of the shared model of
twelve layers is than that of the stored layers, before each growth.
"""


def write(kind: str | None = None, wanted: Sequence[LongCell] = ()) -> None:
    """Writes the page: the part of a model, with these cells, or by default those of all models."""
    results_page.put(TITLE, ABOUT.splitlines(), PAGE)
    for each in [kind] if kind else RATES:
        results_page.put(each.upper(), lines(each, wanted or long_cells(each)), PAGE)


def lines(kind: str, wanted: Sequence[LongCell]) -> Iterator[str]:
    """Lines of the part of a model; draws its picture."""
    corpus = BenchmarkCorpus(NAME, kind=kind)
    complete = corpus.complete(wanted)
    is_partial = "" if len(complete) == len(wanted) else "; nothing is said about the others"
    text = f" Text: {text_of(RunDirectory(corpus.kept(complete[0])).config())}." if complete else ""
    yield f"**{len(complete)} of {len(wanted)} cells are trained**{is_partial}.{text}"
    if not complete:
        return
    head = ("run", "layers", "steps", "FLOPs", "final losses (nats)", "growths cost (nats)", "all layers before")
    savings_of = ("from scratch", "in steps", f"from {SHALLOWER} layers")
    yield from ["", *results_page.table((*head, *savings_of), _rows(corpus, complete))]
    yield from _frontier(corpus, kind, complete)


def _rows(corpus: BenchmarkCorpus, complete: Sequence[LongCell]) -> Iterator[list[str]]:
    """A row for the runs of each method, depth and length, over its seeds."""
    alike: dict[tuple[str, int | None, int | None], list[LongCell]] = {}
    for cell in complete:
        alike.setdefault((cell.method, cell.layers, cell.steps), []).append(cell)
    for (method, layers, steps), cells in alike.items():
        ends = [end_of(corpus, cell) for cell in cells]
        costs = [_signed(growth_costs(corpus.summary(cell))) for cell in cells]
        gaps = [_signed(_full_depth_gaps(corpus, cell)) for cell in cells]
        is_scratch, is_other = method == "scratch", "model.norm=pre" in cells[0].words
        beside = {
            depth: [] if is_other or (is_scratch and depth == layers) else _beside(corpus, complete, cells, depth)
            for depth in (None, *([] if is_scratch and layers else [SHALLOWER]))
        }
        yield [
            method,
            str(layers or 12),
            f"{steps or STEPS:,}",
            f"{sum(end.cost.flops for end in ends) / len(ends):.3e}",
            ", ".join(f"{end.loss:.4f}" for end in ends),
            "; ".join(costs),
            "; ".join(gaps),
            _share(beside[None]),
            _steps(beside[None], corpus, complete),
            _share(beside.get(SHALLOWER, [])),
        ]


def _signed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def _full_depth_gaps(corpus: BenchmarkCorpus, cell: LongCell) -> Iterator[float]:
    """Loss of all layers of the target less that of the stored ones, before each growth of a run, in nats."""
    for line in RunDirectory(corpus.kept(cell)).metrics_file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("growth/from") == row["layers"]:
            yield row["eval/loss_full_depth"] - row["eval/loss"]


def _beside(
    corpus: BenchmarkCorpus, complete: Sequence[LongCell], cells: Sequence[LongCell], layers: int | None
) -> list[tuple[float, float]] | None:
    """FLOPs of runs, and those of scratch runs of so many layers that end at their losses.

    Of the seeds with several scratch runs; None where a loss lies beyond them.
    """
    found = []
    for cell in cells:
        end, curve = end_of(corpus, cell), ladder(corpus, complete, cell.seed, layers)
        if len(curve) > 1:
            if (cost := savings.scratch_cost(curve, end.loss, "flops")) is None:
                return None
            found.append((end.cost.flops, cost))
    return found


def _share(beside: Sequence[tuple[float, float]] | None) -> str:
    """The share that is saved; a dash where a loss is beyond the scratch runs."""
    if beside is None:
        return "-"
    return saving_text(interval([savings.saving(*pair) for pair in beside])) if beside else ""


def _steps(
    beside: Sequence[tuple[float, float]] | None, corpus: BenchmarkCorpus, complete: Sequence[LongCell]
) -> str:
    """The FLOPs that are saved, in steps of the twelve layers; the mean over seeds."""
    scratch = next((cell for cell in complete if (cell.method, cell.layers) == ("scratch", None)), None)
    if not beside or scratch is None:
        return ""
    totals = corpus.summary(scratch)["totals"]
    saved = sum(cost - flops for flops, cost in beside) / len(beside)
    return f"{saved * totals['steps'] / totals['flops']:,.0f}"


def ladder(
    corpus: BenchmarkCorpus, complete: Sequence[LongCell], seed: int, layers: int | None = None
) -> savings.Curve:
    """Final losses of complete scratch runs of so many layers, 12 by default, against their budgets."""
    alike = [cell for cell in complete if (cell.method, cell.layers, cell.seed) == ("scratch", layers, seed)]
    return savings.make_curve(end_of(corpus, cell) for cell in alike)


def _frontier(corpus: BenchmarkCorpus, kind: str, complete: Sequence[LongCell]) -> Iterator[str]:
    """Picture of the complete runs beside scratch runs of several budgets."""
    from apollo_cli.report.frontier import frontier_of  # imports matplotlib

    shown = [cell for cell in complete if cell.method != "scratch_completep"]  # of one length: no line
    figure = frontier_of(corpus.compared(map(corpus.kept, shown), None), "flops")
    if figure:
        caption = f"{kind.upper()}: final validation loss against model FLOPs; the line goes through scratch runs"
        yield from results_page.picture(f"{NAME}_{kind}_frontier", caption, figure)


if __name__ == "__main__":
    write()
