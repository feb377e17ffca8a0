"""Every growth method on the same work: `make methods`, which goes on where it was stopped.

All share text, model, batch, steps of evaluation, seeds and learning rate, those of the reproduction; each has the
FLOPs that scratch takes, with what its source took. What is typed after `python -m benchmarks.methods` are the
methods that are wanted, all by default.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from apollo_cli import files
from apollo_cli.config import parse
from apollo_cli.help import conf_folder
from apollo_cli.overrides import compose_values
from apollo_cli.report import plots, words
from apollo_cli.report.comparison import Comparison, Method, Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.runs import RunFiles, flat, read
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan
from benchmarks import reproduce, results
from benchmarks.reproduce import KINDS, SEEDS, TUNED, Cell, Corpus

NAME = "methods"
FROM_SOURCE = ("bert2bert", "ligo", "lemon")
OWN = ("gstack", "stackbert", "mslt", "midas", "lidas", "one_layer", "late_silent", "raptr", "msg", "net2net_depth")
METHODS = ("scratch", "apollo", *OWN, *FROM_SOURCE)
# half of the depth and of the width, heads as large, half of scratch's steps: a twelfth of its FLOPs
SOURCE = ("model.layers=6", "model.hidden=32", "model.heads=1", "model.ffn=128")
SOURCE_STEPS = 1500


@dataclass(frozen=True)
class MethodCell(Cell):
    """A run of a method by its preset, at the size of the reproduction."""

    @property
    def words(self) -> tuple[str, ...]:
        """What is typed for it, but for the budget and the source."""
        preset = {"source": "scratch"}.get(self.method, self.method)
        experiment = f"{preset}_{self.kind}" if preset in ("scratch", "apollo") else preset
        small = SOURCE if self.method == "source" else ()
        common = shared(experiment) | dict(word.split("=") for word in small)
        return (
            f"experiment={experiment}",
            "size=nano",
            f"name={self.method}",
            f"model={self.kind}",
            *(f"{key}={value}" for key, value in common.items()),
            f"optim.lr={self.rate}",
            f"seed={self.seed}",
        )


def shared(experiment: str) -> dict[str, Any]:
    """The values of `_reproduction.yaml`, but for those that the preset decides itself and the budget."""
    common, own = (_values(name) for name in ("_reproduction", experiment))
    return {key: value for key, value in common.items() if key not in own and not key.startswith("budget.")}


def _values(experiment: str) -> dict[str, Any]:
    text = (conf_folder() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    return flat({key: value for key, value in yaml.safe_load(text).items() if key not in ("defaults", "name")})


def cells(kind: str, methods: Sequence[str] = METHODS) -> list[MethodCell]:
    """All seeds of these methods, at the rate that was chosen for scratch."""
    return [MethodCell(kind, method, TUNED[kind, "scratch"], seed) for seed in SEEDS for method in methods]


@dataclass(frozen=True)
class Budgeted(MethodCell):
    """A cell with its budget and its source."""

    more: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """All that is typed for it."""
        return (*MethodCell.words.fget(self), *self.more)  # type: ignore[attr-defined]


def steps() -> int:
    """Of scratch."""
    return int(_values("_reproduction")["budget.steps"])


@cache
def flops(kind: str, method: str, number: int) -> int:
    """What so many steps of a scratch run take."""
    typed = [*MethodCell(kind, method, TUNED[kind, "scratch"], 0).words, f"budget.steps={number}"]
    config = parse(compose_values(typed))
    return make_plan(config, choose(config.run)).flops


def source_of(cell: Cell) -> Budgeted:
    """The smaller model that a cell begins from: one for each seed."""
    return Budgeted(cell.kind, "source", cell.rate, cell.seed, more=(f"budget.steps={SOURCE_STEPS}",))


def budgeted(corpus: Corpus, cell: Cell) -> Budgeted:
    """The cell with as many FLOPs as scratch, its source's included."""
    budget = flops(cell.kind, "scratch", steps())
    more: tuple[str, ...] = ()
    if cell.method in FROM_SOURCE:
        budget -= flops(cell.kind, "source", SOURCE_STEPS)
        more = (f"expander.source={corpus.folder(source_of(cell))}",)
    whole = cell.method == "scratch"
    length = (f"budget.steps={steps()}",) if whole else ("budget.steps=null", f"budget.flops={budget}")
    return Budgeted(cell.kind, cell.method, cell.rate, cell.seed, more=(*more, *length))


def main(methods: Sequence[str]) -> None:
    """Trains what is missing, sources first, and writes the table of what is there."""
    if unknown := [method for method in methods if method not in METHODS]:
        sys.exit(f"{', '.join(unknown)}: no such method; they are {', '.join(METHODS)}")
    corpus = Corpus(NAME, ())
    wanted = [cell for kind in KINDS for cell in cells(kind, methods or METHODS)]
    missing = [budgeted(corpus, cell) for cell in wanted if not corpus.kept(cell).exists()]
    sources = list(dict.fromkeys(source_of(cell) for cell in missing if cell.method in FROM_SOURCE))
    at_once = os.cpu_count() or 1
    print(f"{len(wanted)} cells, {len(missing)} to train, {len(sources)} sources, {at_once} at once", flush=True)
    corpus.each(sources, lambda cell, threads: _trained(corpus, cell, threads), at_once, "make methods")
    corpus.each(missing, corpus.train, at_once, "make methods")
    results.put("Every method on the same work", lines(corpus))


def _trained(corpus: Corpus, cell: Cell, threads: int) -> None:
    corpus.trained(cell, threads)


def lines(corpus: Corpus) -> Iterator[str]:
    """A table and a picture for each kind of model."""
    yield "Made by `make methods`: all have the same text, model, batch, rate and seeds (`_reproduction.yaml`), and"
    yield "the FLOPs of scratch, what their source took included. Savings are at scratch's final loss."
    for kind in KINDS:
        there = [corpus.kept(cell) for cell in cells(kind) if corpus.kept(cell).exists()]
        if not any("_scratch_" in folder.name for folder in there):
            continue
        runs, _ = read([str(folder) for folder in there])
        (comparison,) = compare(families(runs)[0], Question("scratch"))
        yield from ["", f"## {kind.upper()}", "", *table(corpus, kind, comparison), ""]
        yield from (f"- {note}" for note in words.notes(comparison))
        yield from _picture(corpus, kind, comparison)


def table(corpus: Corpus, kind: str, comparison: Comparison) -> Iterator[str]:
    """Loss, what is saved with and without the source, the jump at growth, and memory."""
    head = (
        "method",
        "runs",
        "final loss (nats)",
        "FLOPs saved",
        "without source",
        "seconds saved",
        "jump",
        "memory",
    )
    rows = []
    for method in comparison.methods:
        of, without = words.cells(comparison, method), method.saving_without_source("flops")
        begun = method.label in FROM_SOURCE and without is not None
        folders = [corpus.kept(cell) for cell in cells(kind, [method.label]) if corpus.kept(cell).exists()]
        rows.append(
            [
                *(of.method, of.runs, of.final, of.savings["flops"]),
                f"{without.mean:.1%}" if begun and without else "",
                of.savings["seconds"],
                _jump(method, [RunFiles(folder) for folder in folders]),
                files.in_units(max(_memory(RunFiles(folder)) for folder in folders)),
            ]
        )
    yield from results.table(head, rows)


def _jump(method: Method, runs: Sequence[RunFiles]) -> str:
    """The largest rise of the loss at a growth, mean over seeds."""
    rises = [
        max(growth["eval/loss_after"] - growth["eval/loss_before"] for growth in run.summary["growths"])
        for run in runs
        if run.summary["growths"]
    ]
    return f"{sum(rises) / len(rises):.3f}" if rises else ""


def _memory(run: RunFiles) -> int:
    """The peak of the process, in bytes."""
    return max(int(row.get("perf/peak_memory_bytes") or 0) for row in run.rows)


def _picture(corpus: Corpus, kind: str, comparison: Comparison) -> Iterator[str]:
    for name, caption, data in plots.pictures(comparison):
        if name == "loss_against_flops":
            path = reproduce.KEPT / corpus.name / f"{kind}_{name}.png"
            files.write_bytes(path, data)
            yield from ["", f"![{caption}](reproduction/{corpus.name}/{path.name})"]


if __name__ == "__main__":
    main(sys.argv[1:])
