"""The page of the long runs."""

import json
from dataclasses import replace

import pytest

from benchmarks import render_long, results_page
from benchmarks.archives import BenchmarkCorpus
from benchmarks.long_cells import NAME, RATES, SHALLOWER, LongCell, long_cells
from tests.benchmarks.conftest import without_pictures


def test_a_method_is_measured_beside_scratch_runs_of_twelve_and_of_six_layers(
    no_results: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve layers reach 1.6 halfway from 80 to 120 FLOPs, at their geometric mean, six from 40 to 60."""
    monkeypatch.setattr(render_long, "_frontier", lambda *_: [])
    corpus = BenchmarkCorpus(NAME, kind="gpt")

    def scratch(steps: int | None, layers: int | None = None) -> LongCell:
        return LongCell("gpt", "scratch", "2e-3", 0, layers=layers, steps=steps)

    grown = LongCell("gpt", "two_hops", "2e-3", 0)
    ended = {
        scratch(None): (120, 1.5),
        scratch(6000): (80, 1.7),
        scratch(None, SHALLOWER): (60, 1.55),
        scratch(6000, SHALLOWER): (40, 1.65),
        grown: (75, 1.6),
    }
    for cell, (flops, loss) in ended.items():
        keep(corpus, cell, flops, loss)
    text = list(render_long.lines("gpt", [*ended, LongCell("gpt", "apollo", "2e-3", 0)]))
    assert text[0] == "**5 of 6 cells are trained**; nothing is said about the others. Text: a.txt."
    assert (
        "| two_hops | 12 | 12,000 | 7.500e+01 | 1.6000 | +0.05 | +0.20 | 23.5% (n = 1) | 2,298 | -53.1% (n = 1) |"
        in text
    )
    assert "| scratch | 6 | 12,000 | 6.000e+01 | 1.5500 |  |  | 44.7% (n = 1) | 4,843 |  |" in text
    assert "| scratch | 12 | 12,000 | 1.200e+02 | 1.5000 |  |  |  |  | - |" in text
    again = replace(grown, seed=1)  # no scratch run of its seed is there
    keep(corpus, again, 75, 1.62)
    text = list(render_long.lines("gpt", [*ended, again]))
    row = "| two_hops | 12 | 12,000 | 7.500e+01 | 1.6000, 1.6200 | +0.05; +0.05 | +0.20; +0.20 "
    assert f"{row}| 23.5% (n = 1) | 2,298 | -53.1% (n = 1) |" in text


def test_a_bert_with_other_norms_saves_beside_none(no_results: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_long, "_frontier", lambda *_: [])
    corpus, cells = (
        BenchmarkCorpus(NAME, kind="bert"),
        [LongCell("bert", "scratch", "1e-3", 0, steps=steps) for steps in (None, 6000)],
    )
    scaled = LongCell("bert", "apollo_completep", "1e-3", 0)
    for cell, flops, loss in zip([*cells, scaled], (120, 80, 90), (1.5, 1.7, 1.6), strict=True):
        keep(corpus, cell, flops, loss)
    (row,) = (line for line in render_long.lines("bert", [*cells, scaled]) if "apollo_completep" in line)
    assert row.endswith("| +0.05 | +0.20 |  |  |  |")


def test_the_page_has_the_tables_of_the_kept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_long, "_frontier", lambda *_: [])
    text = render_long.PAGE.read_text(encoding="utf-8")
    for kind in RATES:
        found = text.partition(f"# {kind.upper()}\n")[2].partition("\n# ")[0].splitlines()
        assert without_pictures(found) == without_pictures(list(render_long.lines(kind, long_cells(kind))))


def keep(corpus: BenchmarkCorpus, cell: LongCell, flops: int, loss: float) -> None:
    """Keeps a made run."""
    folder = corpus.kept(cell)
    folder.mkdir()
    (folder / "config.yaml").write_text("{format: 1, data: {kind: text, files: [a.txt]}}", encoding="utf-8")
    growths = [{"eval/loss_before": 1.8, "eval/loss_after": 1.85}] if cell.method != "scratch" else []
    totals = {"steps": cell.steps or 12000, "flops": flops, "train_seconds": 1.0}
    summary = {"growths": growths, "totals": totals, "losses": {"eval/loss": loss}}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    before = {"layers": 3, "growth/from": 3, "eval/loss": 1.8, "eval/loss_full_depth": 2.0}
    rows = [{"layers": 3}, before, before | {"layers": 6, "eval/loss": 1.85}] if growths else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_pages_of_models_are_written_beside_each_other(no_results: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_long, "PAGE", results_page.FOLDER / "LONG.md")
    render_long.write()
    text = render_long.PAGE.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("# ")] == [
        f"# {render_long.TITLE}",
        "# GPT",
        "# BERT",
    ]
