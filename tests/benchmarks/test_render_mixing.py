"""The page of the mixing bench."""

import json
from pathlib import Path

import pytest

from benchmarks import archives, render_mixing, results_page
from benchmarks.archives import BenchmarkCorpus
from benchmarks.mixing_cells import DEEP, KINDS, NAME, SHALLOW, MixingCell, mixing_cells, reference
from tests.benchmarks.conftest import without_pictures


def test_the_page_says_what_is_trained_and_nothing_about_the_rest(
    no_results: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gap is 0.1 nats; it starts at 150 % and halves in 250 steps, so that tc is 250 / ln 2 = 361."""
    monkeypatch.setattr(render_mixing, "PAGE", tmp_path / "MIXING.md")
    corpus, cell = BenchmarkCorpus(NAME, kind="gpt"), MixingCell("gpt", "net2net", "2e-3", 0)
    shallow, deep = reference(cell, SHALLOW), reference(cell, DEEP)
    keep(
        corpus,
        cell,
        [(0, 1.8, 3), *((125 + t, 1.7 + 0.15 * 0.5 ** (t / 250), 12 * t) for t in range(0, 1501, 125))],
    )
    keep(corpus, shallow, [(step, 1.8, 3) for step in range(0, 2001, 125)])
    render_mixing.write({"gpt": [shallow, deep, cell]})
    text = render_mixing.PAGE.read_text(encoding="utf-8")
    assert "**2 of 3 cells are trained**; nothing is said about the others. Text: a.txt, b.txt." in text
    assert "| cell |" not in text
    keep(corpus, deep, [(step, 1.7, 12 * step) for step in range(0, 2001, 125)])
    render_mixing.write({"gpt": [shallow, deep, cell]})
    text = render_mixing.PAGE.read_text(encoding="utf-8")
    assert "**3 of 3 cells are trained**." in text
    assert text.count("# How fast new layers mix") == text.count("# GPT") == 1
    assert "| **from step 3,000**: gap |  | 0.100 nats | 0.100 nats | 0.100 nats | 0.100 nats |  | 1.00 |" in text
    assert "| net2net | +0.050 | 75% | 38% | 9% | 2% | 361 | 1.00 |" in text
    assert (archives.RESULTS / "mixing_gpt.svg").exists()


def test_the_page_has_the_tables_of_the_kept_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_page, "picture", lambda *_: [])
    text = render_mixing.PAGE.read_text(encoding="utf-8")
    for kind in KINDS:
        found = text.partition(f"# {kind.upper()}\n")[2].partition("\n# ")[0].splitlines()
        assert without_pictures(found) == without_pictures(list(render_mixing.lines(kind, mixing_cells(kind))))


def keep(corpus: BenchmarkCorpus, cell: MixingCell, rows: list[tuple[int, float, int]]) -> None:
    """Keeps a made run of evaluations: step, loss and FLOPs."""
    folder = corpus.kept(cell)
    folder.mkdir()
    made = [{"step": step, "eval/loss": loss, "flops": flops} for step, loss, flops in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    (folder / "config.yaml").write_text("{format: 1, data: {kind: text, files: [a.txt, b.txt]}}", encoding="utf-8")
    growths = [{"eval/loss_before": 1.8, "eval/loss_after": 1.85}]
    (folder / "summary.json").write_text(json.dumps({"growths": growths}), encoding="utf-8")
