"""benchmarks/MIXING.md: how much of the gap between the shallow and the deep model is open after a growth.

`python -m benchmarks.render_mixing` makes it from the archives; nothing is trained.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apollo_cli.report.mixing import open_gap, time_constant
from apollo_cli.run_directory import RunDirectory
from benchmarks import results_page
from benchmarks.archives import BenchmarkCorpus
from benchmarks.mixing_cells import (
    DEEP,
    KINDS,
    NAME,
    SHALLOW,
    Lengths,
    MixingCell,
    Setting,
    by_setting,
    mixing_cells,
    reference,
)

PAGE = Path(__file__).with_name("MIXING.md")
TITLE = "How fast new layers mix"
ABOUT = """\
Made by `python -m benchmarks.mixing bert|gpt|llama FILE...`. One shallow checkpoint, of three layers of 64 on
bytes in bf16, in steps of 2,048 tokens at a constant rate, becomes a model of twelve layers by each operator and
is trained on at the same rate for 1,500 steps; so are the shallow model and one that had twelve layers from its
first step. **Open** is the share of the gap between these two in which the grown model is, at equal steps: (grown
- deep) / (shallow - deep) in validation loss. 100 % is where the shallow model stands, 0 % where the deep one
does. **tc** is the time constant of its closing: exp(-steps / tc), by least squares on the logarithm, from 250
steps after the last growth; "-" where it does not close or has closed. **FLOPs** are those of the 1,500 steps, as
a share of the deep model's; two hops spend fewer. One seed each. A cell differs in what its name says from the
base point: copies between the old layers as they are (`interpolate`), old layers keep their moments and new ones
have none (`moments=new`), one rate for all layers, AdamW, growth at step 3,000. `lr_scale` is the factor of the
new layers' rate at first, which becomes 1 over `lr_steps`, 250 if it says nothing; from 0.01 it is a warmup of
theirs. Some cells pair two such factors. `two_hops` is `boundary`, 3 to 6 to 12 layers within 375 steps.
"""
_HIGHEST = 1.5  # share of the gap that the picture shows: a jump may be many times the gap


@dataclass(frozen=True)
class Mixing:
    """How a cell mixed.

    Attributes:
        cell: that grew.
        jump: rise of the validation loss at its first growth, in nats.
        gap: share of the gap that is open, by steps since the first growth.
        time_constant: steps in which it falls to 1/e; None if it does not fall, or is closed.
        flops: of the steps after the first growth, as a share of the deep reference's.
    """

    cell: MixingCell
    jump: float
    gap: Mapping[int, float]
    time_constant: float | None
    flops: float


def write(wanted: Mapping[str, Sequence[MixingCell]] | None = None) -> None:
    """Writes the page.

    Args:
        wanted: all cells of each kind of model; those of `mixing_cells` by default.
    """
    results_page.put(TITLE, ABOUT.splitlines(), PAGE)
    for kind, cells in (wanted or {kind: mixing_cells(kind) for kind in KINDS}).items():
        results_page.put(kind.upper(), lines(kind, cells), PAGE)


def lines(kind: str, wanted: Sequence[MixingCell]) -> Iterator[str]:
    """Lines of the part of a model; draws its picture."""
    corpus = BenchmarkCorpus(NAME, kind=kind)
    complete = corpus.complete(wanted)
    is_partial = "" if len(complete) == len(wanted) else "; nothing is said about the others"
    text = f" Text: {text_of(RunDirectory(corpus.kept(complete[0])).config())}." if complete else ""
    yield f"**{len(complete)} of {len(wanted)} cells are trained**{is_partial}.{text}"
    settings = by_setting(complete)
    found = {setting: list(mixings(corpus, cells)) for setting, cells in settings.items()}
    if not any(found.values()):
        return
    marks = wanted[0].lengths.marks
    rows = [
        row
        for setting, of_setting in found.items()
        if of_setting
        for row in _rows(corpus, setting, sorted(of_setting, key=lambda mixing: _last(mixing.gap)), marks)
    ]
    head = ("cell", "jump (nats)", *(f"open after {mark:,}" for mark in marks), "tc (steps)", "FLOPs")
    yield from ["", *results_page.table(head, rows)]
    yield from _picture(kind, next(iter(wanted)).lengths, found)


def text_of(config: Mapping[str, Any]) -> str:
    """The files on which a run was trained, or the preset of its data."""
    data = config["data"]
    return ", ".join(data.get("files") or [f"data={data['kind']}"])


def mixings(corpus: BenchmarkCorpus, cells: Iterable[MixingCell]) -> Iterator[Mixing]:
    """How cells of one setting mixed; none where a reference is not trained."""
    for cell in cells:
        references = [reference(cell, name) for name in (SHALLOW, DEEP)]
        if corpus.missing(references):
            return
        grown, shallow, deep = (_rows_by_step(corpus, each) for each in (cell, *references))
        summary, end = corpus.summary(cell), cell.lengths.steps
        first = summary["growths"][0]
        gap = open_gap(*({step: row["eval/loss"] for step, row in rows.items()} for rows in (grown, shallow, deep)))
        flops = [rows[end]["flops"] - rows[0]["flops"] for rows in (grown, deep)]
        yield Mixing(
            cell,
            first["eval/loss_after"] - first["eval/loss_before"],
            {step: share for step, share in gap.items() if step >= 0},
            time_constant(gap, cell.last_growth + cell.lengths.marks[0]),
            flops[0] / flops[1],
        )


def _rows_by_step(corpus: BenchmarkCorpus, cell: MixingCell) -> dict[int, dict[str, Any]]:
    """The last evaluation of each step, counted from the growth."""
    text = RunDirectory(corpus.kept(cell)).metrics_file.read_text(encoding="utf-8")
    rows = map(json.loads, text.splitlines())
    return {cell.first_step + row["step"] - cell.age: row for row in rows if row.get("eval/loss") is not None}


def _rows(
    corpus: BenchmarkCorpus, setting: Setting, found: Sequence[Mixing], marks: Sequence[int]
) -> Iterator[list[str]]:
    """The gap of a setting in nats, then its cells."""
    shallow, deep = (_rows_by_step(corpus, reference(found[0].cell, name)) for name in (SHALLOW, DEEP))
    gaps = [f"{shallow[mark]['eval/loss'] - deep[mark]['eval/loss']:.3f} nats" for mark in marks]
    yield [f"**{setting}**: gap", "", *gaps, "", "1.00"]
    for mixing in found:
        constant = mixing.time_constant
        yield [
            mixing.cell.label,
            f"{mixing.jump:+.3f}",
            *(f"{mixing.gap[mark]:.0%}" if mark in mixing.gap else "-" for mark in marks),
            f"{constant:,.0f}" if constant else "-",
            f"{mixing.flops:.2f}",
        ]


def _picture(kind: str, lengths: Lengths, found: Mapping[Setting, Sequence[Mixing]]) -> Iterator[str]:
    """The gap over steps, by operator with the base's moments and rates, in the setting that has most of them."""
    shown = {setting: [m for m in found[setting] if m.gap and m.cell.is_usual] for setting in found}
    setting = max(shown, key=lambda setting: len(shown[setting]))
    usual = sorted(shown[setting], key=lambda mixing: _last(mixing.gap))
    if not usual:
        return
    from matplotlib import style
    from matplotlib.figure import Figure

    from apollo_cli.report.style import SETTINGS, SMALL, WIDTH, EndLabel, label_ends, label_height, looks

    looks_of = looks(mixing.cell.method for mixing in usual)
    texts = {mixing.cell.method: f"{mixing.cell.method} {_last(mixing.gap):.0%}" for mixing in usual}
    with style.context(SETTINGS):
        figure = Figure(figsize=(WIDTH, max(5.2, label_height(texts.values()) + 1)), layout="constrained")
        axes = figure.add_subplot()
        for share, name, side in ((100, "shallow model", "bottom"), (0, "deep model", "top")):
            axes.axhline(share, color="0.35", linestyle="--", linewidth=1)
            axes.text(lengths.steps * 0.99, share, name, ha="right", va=side, fontsize=SMALL, color="0.35")
        lowest = min(0.0, *(share for mixing in usual for share in mixing.gap.values())) - 0.08
        axes.set_xlim(0, lengths.steps)
        axes.set_ylim(100 * lowest, 100 * _HIGHEST)
        ends = []
        for mixing in usual:
            look, steps = looks_of[mixing.cell.method], list(mixing.gap)
            axes.plot(steps, [100 * mixing.gap[step] for step in steps], markevery=[-1], **look.of_line)
            ends.append(EndLabel(texts[mixing.cell.method], steps[-1], 100 * _last(mixing.gap), look.colour))
        label_ends(axes, ends)
        axes.set_xlabel("steps since the growth")
        axes.set_ylabel("gap still open (%)")
        axes.set_title(f"{kind.upper()}, {lengths.source} to {lengths.target} layers {setting}")
        caption = (
            f"{kind.upper()}: share of the gap between the shallow and the deep model that is open, by operator"
        )
        yield from results_page.picture(f"{NAME}_{kind}", caption, figure)


def _last(gap: Mapping[int, float]) -> float:
    return gap[max(gap)] if gap else math.inf


if __name__ == "__main__":
    write()
