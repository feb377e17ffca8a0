"""Tiny long runs from end to end."""

from pathlib import Path

import pytest

from benchmarks import long_runs, render_long
from benchmarks.archives import BenchmarkCorpus
from benchmarks.campaign import Campaign
from benchmarks.long_cells import NAME, LongCell

COMMAND = "python -m benchmarks.long_runs gpt"


@pytest.mark.parametrize("words", [["gpt"], ["t5", "a.txt"], []])
def test_an_unknown_model_and_no_text_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"MODEL FILE\.\.\.: MODEL is one of gpt, bert"):
        long_runs.main(words)


@pytest.mark.slow
def test_tiny_runs_are_trained_reported_and_not_trained_again(
    no_results: None,
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(render_long, "PAGE", tmp_path / "LONG.md")
    own = ("model.layers", "schedule.", "optim.", "budget.", "size=", "data.vocab_size")
    small = (*(word for word in tiny if not word.startswith(own)), "budget.steps=20")
    cells = [LongCell("gpt", method, "2e-3", 0) for method in ("scratch", "two_hops")]
    long_runs.run(Campaign(NAME, small, kind="gpt"), cells, COMMAND)
    assert "2 cells of gpt, 2 to train" in capsys.readouterr().out
    assert "**2 of 2 cells are trained**. Text: " in render_long.PAGE.read_text(encoding="utf-8")
    assert BenchmarkCorpus(NAME, kind="gpt").complete(cells) == cells
    monkeypatch.setattr(Campaign, "run", None)
    long_runs.run(Campaign(NAME, small, kind="gpt"), cells, COMMAND)
    assert "2 cells of gpt, 0 to train" in capsys.readouterr().out
