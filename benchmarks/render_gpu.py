"""Tables and pictures of the reproduction on one GPU; nothing is trained.

`python -m benchmarks.render_gpu` makes them from the archive.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import render_reproduction, results_page
from benchmarks.archives import BenchmarkCorpus, growth_costs
from benchmarks.cells import KINDS
from benchmarks.gpu_cells import NAME

Summary = dict[str, Any]  # summary.json of a run

TITLE = "What is saved on a GPU"
ABOUT = (
    "Made by `python -m benchmarks.run_gpu KIND STEPS FILE...` on Wikipedia and novels, byte by byte, 256 to a row;"
    " 12 layers of 512, bf16. A cell is `apollo-train --config-dir benchmarks/conf experiment=repro_gpu_METHOD`"
    " with its steps below.",
    "One seed and one learning rate (1e-3): an indication beside the CPU's cells, no more than that.",
    "No run of fewer layers from scratch is beside them: whether depth pays at this length was not asked.",
)


def write() -> None:
    results_page.put(TITLE, lines())


def lines() -> Iterator[str]:
    """Lines of the page; draws its pictures."""
    yield from ABOUT
    corpus = BenchmarkCorpus(NAME)
    for kind in KINDS:
        paths = sorted(corpus.folder.glob(f"{kind}_*/summary.json"))
        runs = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in paths}
        if runs:
            runs = dict(sorted(runs.items(), key=lambda item: -item[1]["totals"]["flops"]))
            yield from ["", f"## {kind.upper()} on a GPU", "", *_ends(runs.values())]
            yield from _headline(corpus, kind, runs)
            yield from _steps(corpus, kind)


def _ends(summaries: Iterable[Summary]) -> Iterator[str]:
    rows = []
    for summary in summaries:
        totals, costs = summary["totals"], [f"{cost:.3f}" for cost in growth_costs(summary)]
        rows.append(
            [
                summary["name"].removeprefix("repro_gpu_"),
                f"{totals['steps']:,}",
                f"{totals['tokens']:.2e}",
                f"{totals['flops']:.3e}",
                f"{summary['losses']['eval/loss']:.4f}",
                ", ".join(costs) or "-",
            ]
        )
    head = ("method", "steps", "tokens", "FLOPs", "final loss (nats)", "what growths cost (nats)")
    yield from results_page.table(head, rows)


def _headline(corpus: BenchmarkCorpus, kind: str, runs: Mapping[Path, Summary]) -> Iterator[str]:
    """All methods beside the longest run from scratch."""
    *_, shorter = (folder for folder, summary in runs.items() if summary["name"] == "repro_gpu_scratch")
    folders = sorted(folder for folder in runs if folder != shorter)
    comparison = corpus.compared(folders, "repro_gpu_scratch")
    yield from ["", *render_reproduction.table(comparison)]
    yield from results_page.pictures(f"{NAME}_{kind}", comparison, render_reproduction.PICTURES)


def _steps(corpus: BenchmarkCorpus, kind: str) -> Iterator[str]:
    path = corpus.folder / f"{kind}_seconds.json"
    if path.exists():
        found = {int(depth): each for depth, each in json.loads(path.read_text()).items()}
        yield from ["", "A step with as many layers stored as run, by itself: real steps, 40 after 40.", ""]
        rows = [(str(n), f"{1e3 * each:.1f}", f"{each / found[max(found)]:.2f}") for n, each in found.items()]
        yield from results_page.table(("layers", "ms", "of twelve layers'"), rows)


if __name__ == "__main__":
    write()
