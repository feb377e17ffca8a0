"""A campaign of every method: which rows are kept, and a tiny one from end to end."""

import json
import re
from pathlib import Path

import pytest

from apollo_cli.report import plots
from benchmarks import interleaved, method_cells, render_methods, results_page, run_methods
from benchmarks.method_cells import MethodCell
from benchmarks.run_methods import MethodsCampaign, main


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"growing: no such method; they are scratch, apollo, gstack"):
        main(["growing"])


def test_evaluations_are_kept_and_the_last_training_row_of_each_stage(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "stage": 1, "eval/loss": 5.0},
        {"step": 1, "stage": 1, "train/loss": 4.0},
        {"step": 2, "stage": 1, "train/loss": 3.0},
        {"step": 2, "stage": 1, "eval/loss": 3.5},
        {"step": 3, "stage": 2, "train/loss": 2.0},
        {"step": 3, "stage": 2, "eval/loss": 2.5},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kept = MethodsCampaign("methods").rows(path).decode().splitlines()
    assert [json.loads(line) for line in kept] == [rows[0], *rows[2:]]


@pytest.mark.slow
def test_a_tiny_campaign_is_trained_reported_and_not_trained_again(
    no_results: None, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "draw_comparison", lambda comparison: [])  # they have tests of their own
    for module in (run_methods, render_methods):
        monkeypatch.setattr(module, "KINDS", ("gpt",))
    for module in (run_methods, method_cells):
        monkeypatch.setattr(module, "SEEDS", (0,))
    monkeypatch.setattr(method_cells, "scratch_steps", lambda: 12)
    monkeypatch.setattr(method_cells, "SOURCE_STEPS", 8)
    monkeypatch.setattr(interleaved, "THINNED", 2)
    own = ("model.", "schedule.", "optim.lr", "size=", "data.vocab_size", "budget.")
    small = [word for word in tiny if not word.startswith(own)]
    words = MethodCell.words.fget  # type: ignore[attr-defined]

    def tiny_words(cell: MethodCell) -> tuple[str, ...]:
        size = (8, 1, 16, 2) if cell.method == "source" else (16, 2, 32, 4)
        keys = ("model.hidden", "model.heads", "model.ffn", "model.layers")
        return (*words(cell), *small, *(f"{key}={n}" for key, n in zip(keys, size, strict=True)))

    monkeypatch.setattr(MethodCell, "words", property(tiny_words))
    method_cells.flops.cache_clear()
    try:
        main(["scratch", "gstack", "lemon"])
        text = results_page.page_of(render_methods.TITLE).read_text(encoding="utf-8")
        assert "# Every method on the same work" in text
        for method in ("scratch", "gstack", "lemon"):
            assert re.search(rf"^\| {method} \| 1 \| [\d.]+ \|.*\| \d\.\d\d \|", text, re.M), text
        assert "'lemon' is initialized from a model that cost" in text
        assert "3 cells, 3 to train, 1 sources" in capsys.readouterr().out
        main(["scratch", "gstack", "lemon"])
        assert "3 cells, 0 to train, 0 sources" in capsys.readouterr().out
    finally:
        method_cells.flops.cache_clear()
