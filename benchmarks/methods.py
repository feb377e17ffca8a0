"""Every growth method on the same work: `make methods`, which goes on where it was stopped.

All share text, model, batch, steps of evaluation, seeds and learning rate, those of the reproduction; each has the
FLOPs that scratch takes, with what its source took. What is typed after `python -m benchmarks.methods` are the
methods that are wanted, all by default. Cells run beside each other, perhaps on several machines, so that their
seconds say nothing: at the end a twentieth of every method is timed in turns, on a machine that does nothing else.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from apollo_cli import files
from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.report import plots
from apollo_cli.report.comparison import Comparison, Method, Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.notes import comparison_notes
from apollo_cli.report.runs import RunFiles, flat, read_runs
from apollo_cli.report.tables import method_cells
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan
from benchmarks import reproduce, results, speed
from benchmarks.reproduce import KINDS, SEEDS, TUNED, Cell, Corpus

NAME, TITLE = "methods", "Every method on the same work"
FROM_SOURCE = ("bert2bert", "ligo", "lemon")
OWN = (
    *("gstack", "stackbert", "mslt", "midas", "lidas"),
    *("one_layer", "late_zero_init", "raptr", "msg", "net2net_depth"),
)
METHODS = ("scratch", "apollo", *OWN, *FROM_SOURCE)
# half of the depth and of the width, heads as large, half of scratch's steps: a twelfth of its FLOPs
SOURCE = ("model.layers=6", "model.hidden=32", "model.heads=1", "model.ffn=128")
SOURCE_STEPS = 1500
MAP = {"ligo": ("expander.steps=5",)}  # of 100, where a twentieth is timed

SHARED = """\
Made by `make methods`: all have the same text, model, batch, peak rate, the one chosen for scratch, and shape of
the rate, and the FLOPs of scratch, those of a source included. What a method does to the rate at growth, and
one-layer expansion's own warmup and decay, belong to the method. The best loss stands first. Savings are at
scratch's final loss; seconds saved follow from the seconds of a FLOP, measured in turns on one core, once (pace;
scratch is 1). Jump: the largest rise of the validation loss at a growth, mean over seeds. Memory: of training
steps; what growing itself takes is not in it.
"""
SURPRISES = """
## What surprised us

- **Little of the published savings is left** beside a scratch run with a tuned rate that stays high and falls at
  the end: with GPT no published method saves more than a tenth, with BERT none more than a fifth.
- **With BERT the best published methods are LIDAS and MIDAS**, which were made for reasoning, not for speed; with
  GPT StackBERT is beside them.
- **A small trained model is worth little here.** bert2BERT, LiGO and LEMON end above scratch with as many FLOPs,
  with every seed, though their source took no more than 8 % of them. LEMON shows how it is lost: with GPT the
  loss rises by more than 0.1 nats while the rate goes to its peak. No lower rate was tried for this table.
- **Seconds are saved by fewer still**: at this width a FLOP of a shallow model takes up to a fifth longer, so that
  with GPT no method saves any.
- **The jump at growth says little about the end.** With GPT that of G_stack is about a nat and that of MSG
  nothing, and they end within 0.01 of each other.
- **Copies of a single layer without zero init do not recover here**: one-layer expansion, at 80 %, leaves
  BERT on the plateau and GPT more than 0.1 nats above scratch. `late_zero_init` grows later still, at 85 %, but
  from three layers, by copies that add nothing at first, and is first with BERT. Its stages are BERT's; with GPT
  it ends a little above scratch, at 1.354 beside 1.349.
"""


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
            *(f"{key}={'null' if value is None else value}" for key, value in common.items()),
            f"optim.lr={self.rate}",
            f"seed={self.seed}",
            "precision=fp32",  # on a GPU, too: cells of several machines are compared
        )


def shared(experiment: str) -> dict[str, Any]:
    """The values of `_reproduction.yaml`, but for those that the preset decides itself and the budget.

    All have its shape of the learning rate: with a preset's own one would compare rates, not methods.
    """
    common, own = (_values(name) for name in ("_reproduction", experiment))
    decided = own.keys() - {"optim.schedule", "optim.knots"}
    return {key: value for key, value in common.items() if key not in decided and not key.startswith("budget.")}


def _values(experiment: str) -> dict[str, Any]:
    text = (conf_folder() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    return flat({key: value for key, value in yaml.safe_load(text).items() if key not in ("defaults", "name")})


def cells(kind: str, methods: Sequence[str] = METHODS) -> list[MethodCell]:
    """All seeds of these methods, at the rate that was chosen for scratch."""
    return [MethodCell(kind, method, TUNED[kind, "scratch"], seed) for seed in SEEDS for method in methods]


@dataclass(frozen=True)
class Evaluations(Corpus):
    """Of whose runs the evaluations are kept, and the last training row of each stage, which has its memory."""

    def rows(self, metrics: Path) -> bytes:
        """Those rows, as they are."""
        lines = metrics.read_bytes().splitlines(keepends=True)
        found = [json.loads(line) for line in lines]
        last = {row["stage"]: i for i, row in enumerate(found) if "train/loss" in row and "eval/loss" not in row}
        return b"".join(
            line
            for i, (line, row) in enumerate(zip(lines, found, strict=True))
            if "eval/loss" in row or i in last.values()
        )


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
        more = (f"init_from.path={corpus.folder(source_of(cell))}",)
    whole = cell.method == "scratch"
    length = (f"budget.steps={steps()}",) if whole else ("budget.steps=null", f"budget.flops={budget}")
    return Budgeted(cell.kind, cell.method, cell.rate, cell.seed, more=(*more, *length))


def main(methods: Sequence[str]) -> None:
    """Trains what is missing, sources first, and writes the table of what is there."""
    if unknown := [method for method in methods if method not in METHODS]:
        sys.exit(f"{', '.join(unknown)}: no such method; they are {', '.join(METHODS)}")
    corpus = Evaluations(NAME, ())
    wanted = [cell for kind in KINDS for cell in cells(kind, methods or METHODS)]
    missing = [budgeted(corpus, cell) for cell in wanted if not corpus.kept(cell).exists()]
    sources = list(dict.fromkeys(source_of(cell) for cell in missing if cell.method in FROM_SOURCE))
    at_once = os.cpu_count() or 1
    print(f"{len(wanted)} cells, {len(missing)} to train, {len(sources)} sources, {at_once} at once", flush=True)
    corpus.each(sources, lambda cell, threads: _trained(corpus, cell, threads), at_once, "make methods")
    corpus.each(missing, corpus.train, at_once, "make methods")
    for kind in KINDS:
        _time(corpus, kind, methods or METHODS)
    results.put(TITLE, lines(corpus))


def pace_file(kind: str) -> Path:
    """Has the seconds of a FLOP of each method, as a share of scratch's."""
    return reproduce.KEPT / NAME / f"{kind}_paces.json"


def known_paces(kind: str) -> dict[str, float]:
    """What is in it; empty where it is not there."""
    if not pace_file(kind).exists():
        return {}
    return json.loads(pace_file(kind).read_text(encoding="utf-8").replace("late_silent", "late_zero_init"))


def _time(corpus: Corpus, kind: str, methods: Sequence[str]) -> None:
    """Measures the paces that are not known; a source that one of them needs is trained if it is gone."""
    known = known_paces(kind)
    new = [method for method in methods if method not in known]
    if not new:
        return
    if not set(FROM_SOURCE).isdisjoint(new):
        corpus.trained(source_of(cells(kind, new)[0]), os.cpu_count() or 1)
    print(f"timing {len(new)} methods of {kind} in turns: keep the machine quiet", flush=True)
    files.write_json(pace_file(kind), known | paces(corpus, kind, new))


def paces(corpus: Corpus, kind: str, methods: Sequence[str]) -> dict[str, float]:
    """The seconds that a FLOP takes in each method and in a source, as a share of scratch's, measured in turns.

    Each runs all of its stages in a twentieth of its steps, and learns its map in a twentieth of its own.
    """
    of_seed = [cell for cell in cells(kind, list(dict.fromkeys(["scratch", *methods]))) if cell.seed == SEEDS[0]]
    found = [source_of(of_seed[0]), *(budgeted(corpus, cell) for cell in of_seed)]
    words = {cell.method: [*cell.words, *MAP.get(cell.method, ()), "tracking=local"] for cell in found}
    steps = {method: speed.steps_of(typed) // speed.THINNED for method, typed in words.items()}
    spent = speed.in_turns(words, steps)
    pace = {method: each["train_seconds"] / each["flops"] for method, each in spent.items()}
    return {method: each / pace["scratch"] for method, each in pace.items()}


def _trained(corpus: Corpus, cell: Cell, threads: int) -> None:
    corpus.trained(cell, threads)


def lines(corpus: Corpus) -> Iterator[str]:
    """A table and a picture for each kind of model."""
    yield from SHARED.splitlines()
    for kind in KINDS:
        there = [corpus.kept(cell) for cell in cells(kind) if corpus.kept(cell).exists()]
        if not any("_scratch_" in folder.name for folder in there):
            continue
        runs, _ = read_runs([str(folder) for folder in there])
        (comparison,) = compare(families(runs)[0], Question("scratch"))
        yield from ["", f"## {kind.upper()}", "", *table(corpus, kind, comparison), ""]
        yield from (f"- {note}" for note in comparison_notes(comparison) if "timing is not comparable" not in note)
        yield from _picture(corpus, kind, comparison)
    yield from SURPRISES.splitlines()


def table(corpus: Corpus, kind: str, comparison: Comparison) -> Iterator[str]:
    """Loss, what is saved with and without the source, seconds, the jump at growth, and memory."""
    named = {name_of(method): method for method in comparison.methods if method.final}
    kept = {
        name: [RunFiles(corpus.kept(cell)) for cell in cells(kind, [name]) if corpus.kept(cell).exists()]
        for name in named
    }
    device = Counter(run.summary["device"] for runs in kept.values() for run in runs).most_common(1)[0][0]
    pace = known_paces(kind)
    rows = [
        [
            *(name, str(len(kept[name])), method_cells(comparison, method).final),
            *_saved(comparison, method),
            f"{pace[name]:.2f}" if name in pace else "-",
            seconds_saved(method, pace),
            _jump(kept[name]),
            files.in_units(max(map(_memory, on))) if (on := _on(device, kept[name])) else "-",
        ]
        for name, method in sorted(named.items(), key=lambda pair: pair[1].final.mean)  # type: ignore[union-attr]
    ]
    saved = ("FLOPs saved", "without source")
    head = ("method", "seeds", "final loss (nats)", *saved, "pace", "seconds saved", "jump", f"memory, {device}")
    yield from results.table(head, rows)


def name_of(method: Method) -> str:
    """Its own; a label may say more."""
    return str(method.outcomes[0].run.config["name"])


def _saved(comparison: Comparison, method: Method) -> Iterator[str]:
    """FLOPs, with and without the source; where the loss is not reached, how many seeds reach it."""
    of, without = method_cells(comparison, method), method.saving_without_source("flops")
    reached = method.saving("flops") is not None or method.is_baseline
    yield of.savings["flops"] if reached else of.costs["flops"]
    from_source = any(outcome.source.flops for outcome in method.outcomes)
    yield (f"{without.mean:.1%}" if without else of.costs["flops"]) if from_source else ""


def seconds_saved(method: Method, pace: dict[str, float]) -> str:
    """From the FLOPs that its runs and their sources take, each at its own pace."""
    name, cost = name_of(method), method.cost("flops")
    if method.is_baseline or cost is None or method.baseline_cost is None or name not in pace:
        return ""
    before = fmean(outcome.source.flops for outcome in method.outcomes)
    seconds = (cost.mean - before) * pace[name] + before * pace.get("source", 1.0)
    return f"{1 - seconds / method.baseline_cost.flops:.1%}"


def _jump(runs: Sequence[RunFiles]) -> str:
    rises = [
        max(growth["eval/loss_after"] - growth["eval/loss_before"] for growth in run.summary["growths"])
        for run in runs
        if run.summary["growths"]
    ]
    return f"{fmean(rises):.3f}" if rises else ""


def _on(device: str, runs: Sequence[RunFiles]) -> list[RunFiles]:
    """Those of this device: the memory of one is not that of another."""
    return [run for run in runs if run.summary["device"] == device]


def _memory(run: RunFiles) -> int:
    """Its peak in bytes: of tensors on a GPU, of the process on a CPU."""
    return max(int(row.get("perf/peak_memory_bytes") or 0) for row in run.rows)


def _picture(corpus: Corpus, kind: str, comparison: Comparison) -> Iterator[str]:
    for name, caption, data in plots.draw_comparison(comparison):
        if name == "loss_against_flops":
            path = reproduce.KEPT / corpus.name / f"{kind}_{name}.png"
            results.picture(path, data)
            yield from ["", f"![{caption}](reproduction/{corpus.name}/{path.name})"]


if __name__ == "__main__":
    main(sys.argv[1:])
