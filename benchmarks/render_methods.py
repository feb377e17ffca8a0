"""Tables and pictures of every method on the same work; nothing is trained.

`python -m benchmarks.render_methods` makes them from the archives.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from apollo_cli import files
from apollo_cli.report import notes, tables
from apollo_cli.report.comparison import Comparison, Method
from apollo_cli.run_directory import RunDirectory
from benchmarks import results_page
from benchmarks.archives import BenchmarkCorpus, growth_costs
from benchmarks.cells import KINDS
from benchmarks.method_cells import NAME, method_cells

TITLE = "Every method on the same work"

SHARED = """\
Made by `make methods`: all have the same text, model, batch, peak rate, the one chosen for scratch, and shape of
the rate, and the FLOPs of scratch, those of a source included. What a method does to the rate at growth, and
one-layer expansion's own warmup and decay, belong to the method. Rows are sorted by loss. Savings are at scratch's
final loss; seconds saved follow from the seconds of a FLOP, measured in turns on one core, once (pace; scratch is
1). Jump: the largest rise of the validation loss at a growth, mean over seeds. Memory: of training steps; growing
itself may take more.
"""
SURPRISES = """
## What surprised us

- **Little of the published savings is left** beside a scratch run with a tuned rate that stays high and falls at
  the end: with GPT no published method saves more than a tenth, with BERT none more than a fifth.
- **With BERT the best published methods are LIDAS and MIDAS**, which were made for reasoning, not for speed; with
  GPT StackBERT is beside them.
- **A small trained model is worth little here.** bert2BERT, LiGO and LEMON end above scratch with as many FLOPs,
  with every seed, though their source took no more than 8 % of them. With GPT, LEMON's loss rises by more than 0.1
  nats while the rate goes to its peak. No lower rate was tried for this table.
- **Fewer methods save seconds**: at this width a FLOP of a shallow model takes up to a fifth longer, so that with
  GPT no method saves any.
- **The jump at growth says little about the end.** With GPT, G_stack's is about one nat and MSG's is zero, and
  they end within 0.01 of each other.
- **Without zero init, late copies of a single layer do not recover here**: one-layer expansion, at 80 %, leaves
  BERT on the plateau and GPT more than 0.1 nats above scratch. `late_zero_init` grows at 85 %, but from three
  layers and with new layers that add nothing at first, and is first with BERT. Its stages were chosen for BERT;
  with GPT it ends a little above scratch, at 1.351 beside 1.349.
"""


def write(corpus: BenchmarkCorpus) -> None:
    results_page.put(TITLE, lines(corpus))


def lines(corpus: BenchmarkCorpus) -> Iterator[str]:
    """A table and a picture for each kind of model."""
    yield from SHARED.splitlines()
    for kind in KINDS:
        complete = corpus.complete(method_cells(kind))
        if not any(cell.method == "scratch" for cell in complete):
            continue
        comparison = corpus.compared(map(corpus.kept, complete), "scratch")
        yield from ["", f"## {kind.upper()}", "", *table(corpus, kind, comparison), ""]
        yield from (
            f"- {note}" for note in notes.comparison_notes(comparison) if "timing is not comparable" not in note
        )
        yield from results_page.pictures(f"{corpus.name}_{kind}", comparison, ["loss_against_flops"])
    yield from SURPRISES.splitlines()


def table(corpus: BenchmarkCorpus, kind: str, comparison: Comparison) -> Iterator[str]:
    """Loss, FLOPs saved with and without the source, seconds, the jump at growth, and memory."""
    named = {name_of(method): method for method in comparison.methods if method.final}
    runs = {
        name: [RunDirectory(corpus.kept(cell)) for cell in corpus.complete(method_cells(kind, [name]))]
        for name in named
    }
    device = Counter(run.summary()["device"] for of_name in runs.values() for run in of_name).most_common(1)[0][0]
    pace = known_paces(corpus, kind)
    rows = [
        [
            *(name, str(len(runs[name])), tables.method_cells(comparison, method).final),
            *_saved(comparison, method),
            f"{pace[name]:.2f}" if name in pace else "-",
            seconds_saved(method, pace),
            _jump(runs[name]),
            _memory(run for run in runs[name] if run.summary()["device"] == device),
        ]
        for name, method in sorted(named.items(), key=lambda pair: pair[1].final.mean)  # type: ignore[union-attr]
    ]
    saved = ("FLOPs saved", "without source")
    head = ("method", "seeds", "final loss (nats)", *saved, "pace", "seconds saved", "jump", f"memory, {device}")
    yield from results_page.table(head, rows)


def pace_file(corpus: BenchmarkCorpus, kind: str) -> Path:
    """Seconds of a FLOP of each method, as a share of scratch's."""
    return corpus.folder / f"{kind}_paces.json"


def known_paces(corpus: BenchmarkCorpus, kind: str) -> dict[str, float]:
    """Content of that file; empty if it does not exist."""
    path = pace_file(corpus, kind)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def name_of(method: Method) -> str:
    """`name` of its config; a label may be longer."""
    return str(method.outcomes[0].run.config["name"])


def _saved(comparison: Comparison, method: Method) -> Iterator[str]:
    """FLOPs, with and without the source; where the loss is not reached, how many seeds reach it."""
    cells, without = tables.method_cells(comparison, method), method.saving("flops", with_source=False)
    reached = method.saving("flops") is not None or method.is_baseline
    yield cells.savings["flops"] if reached else cells.costs["flops"]
    from_source = any(outcome.source.flops for outcome in method.outcomes)
    yield (f"{without.mean:.1%}" if without else cells.costs["flops"]) if from_source else ""


def seconds_saved(method: Method, pace: dict[str, float]) -> str:
    """Share of scratch's seconds, from the FLOPs of its runs and their sources, each at its own pace."""
    name = name_of(method)
    if method.is_baseline or name not in pace or method.saving("flops") is None:
        return ""
    saved = []
    for outcome in method.outcomes:
        assert outcome.cost
        assert outcome.target
        assert outcome.target.cost
        before = outcome.source.flops
        seconds = (outcome.cost.flops - before) * pace[name] + before * pace.get("source", 1.0)
        saved.append(1 - seconds / outcome.target.cost.flops)
    return f"{fmean(saved):.1%}"


def _jump(runs: Sequence[RunDirectory]) -> str:
    """Largest rise of the validation loss at a growth, mean over runs."""
    rises = [max(costs) for run in runs if (costs := growth_costs(run.summary()))]
    return f"{fmean(rises):z.3f}" if rises else ""


def _memory(runs: Iterator[RunDirectory]) -> str:
    """Peak: of tensors on a GPU, of the process on a CPU."""
    rows = (json.loads(line) for run in runs for line in run.metrics_file.read_bytes().splitlines())
    peaks = [row.get("perf/peak_memory_bytes") or 0 for row in rows]
    return files.in_units(int(max(peaks))) if peaks else "-"


if __name__ == "__main__":
    write(BenchmarkCorpus(NAME))
