"""The gap and its time constant, by hand-worked numbers."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import archives, render_mixing, results_page
from benchmarks.archives import BenchmarkCorpus
from benchmarks.mixing_cells import DEEP, KINDS, NAME, SHALLOW, MixingCell, mixing_cells, reference
from benchmarks.render_mixing import open_gap, spread, time_constant
from tests.benchmarks.conftest import without_pictures


def test_the_gap_is_one_at_the_shallow_and_zero_at_the_deep_model() -> None:
    shallow, deep = {0: 2.0, 250: 1.9, 500: 1.8}, {0: 1.9, 250: 1.7, 500: 1.5, 750: 1.4}
    assert open_gap(shallow, shallow, deep) == {0: 1, 250: 1, 500: 1}
    assert open_gap(deep, shallow, deep) == {0: 0, 250: 0, 500: 0}
    # a jump of half the gap above the shallow model; a quarter of 0.2; 0.06 of 0.3 below the deep one
    grown = {0: 2.05, 125: 1.9, 250: 1.75, 500: 1.44}
    assert open_gap(grown, shallow, deep) == pytest.approx({0: 1.5, 250: 0.25, 500: -0.2})


def test_where_the_deep_model_is_not_ahead_there_is_no_gap() -> None:
    assert open_gap({0: 2.0, 250: 1.9}, {0: 2.0, 250: 1.9}, {0: 2.1, 250: 1.8}) == {250: 1}


def test_a_gap_that_halves_in_500_steps_has_a_time_constant_of_721() -> None:
    """500 / ln 2 = 721.35; the height at which it starts does not matter."""
    assert time_constant({0: 5.0, 250: 0.5, 750: 0.25}, 250) == pytest.approx(721.35, abs=0.01)
    decay = {step: 0.8 * math.exp(-step / 1000) for step in range(0, 1501, 125)}
    assert time_constant(decay, 250) == pytest.approx(1000)


def test_the_time_constant_is_a_least_squares_slope() -> None:
    """Logarithms 0, -1, -1 at 0, 100, 200: the slope is -100 / 20,000, so tc is 200."""
    assert time_constant({0: 1.0, 100: math.exp(-1), 200: math.exp(-1)}, 0) == pytest.approx(200)


@pytest.mark.parametrize("gap", [{250: 0.5, 500: 0.6}, {250: 0.5}, {250: 0.5, 500: 0.2, 750: -0.1}, {}])
def test_a_gap_that_does_not_close_or_has_closed_has_no_time_constant(gap: dict[int, float]) -> None:
    assert time_constant(gap, 250) is None


def test_labels_that_are_too_close_are_moved_apart() -> None:
    """By 0.15, a third of which is taken back from each."""
    assert spread([0.0, 0.1, 0.5], 0.25) == pytest.approx([-0.05, 0.2, 0.45])


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
    assert (archives.RESULTS / "mixing_gpt.png").exists()


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
