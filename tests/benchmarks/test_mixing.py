"""A tiny mixing bench from end to end; which rows are kept, and what is refused."""

import json
from pathlib import Path

import pytest

from benchmarks import mixing, render_mixing
from benchmarks.archives import BenchmarkCorpus
from benchmarks.mixing import MixingCampaign
from benchmarks.mixing_cells import NAME, Lengths, mixing_cells

TINY = Lengths(1, 2, 4, ages=(8, 32), age=32, warmup=2, lead=4, steps=12, hop=4, every=4, marks=(4, 8, 12))
COMMAND = "python -m benchmarks.mixing gpt"


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"MODEL is one of bert, gpt, llama"):
        mixing.main(["t5"])


def test_evaluations_alone_are_kept(tmp_path: Path) -> None:
    rows = [{"step": 4, "train/loss": 3.0}, {"step": 4, "eval/loss": 3.5}, {"step": 8, "train/loss": 2.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert json.loads(MixingCampaign(NAME).rows(path)) == rows[1]


@pytest.mark.slow
def test_a_tiny_bench_is_trained_reported_and_not_trained_again(
    no_results: None,
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(render_mixing, "PAGE", tmp_path / "MIXING.md")
    own = (
        "model.layers",
        "schedule.",
        "optim.",
        "budget.",
        "eval.every",
        "checkpoint.",
        "size=",
        "data.vocab_size",
    )
    small = tuple(word for word in tiny if not word.startswith(own))
    names = ("gpt_shallow", "gpt_deep", "gpt_interpolate")
    wanted = [
        cell
        for cell in mixing_cells("gpt", TINY)
        if cell.name in (*names, "gpt_shallow_age-8", "gpt_deep_age-8", "gpt_two_hops_age-8")
    ]

    def campaign() -> MixingCampaign:
        return MixingCampaign(NAME, small, kind="gpt")

    mixing.run(campaign(), wanted[:-1], COMMAND)
    assert "5 cells of gpt, 5 to train" in capsys.readouterr().out
    text = render_mixing.PAGE.read_text(encoding="utf-8")
    assert "**5 of 5 cells are trained**. Text: " in text
    assert "**from step 32**: gap" in text
    mixing.run(campaign(), wanted, COMMAND)
    assert "6 cells of gpt, 1 to train" in capsys.readouterr().out
    corpus = BenchmarkCorpus(NAME, kind="gpt")
    assert corpus.complete(wanted) == wanted
    growths = {cell.name: corpus.summary(cell)["growths"] for cell in wanted}
    assert [growth["step"] for growth in growths["gpt_two_hops_age-8"]] == [4, 8]
    monkeypatch.setattr(MixingCampaign, "run", None)
    mixing.run(campaign(), wanted, COMMAND)
    with pytest.raises(SystemExit, match="the cells of gpt that are kept have another text: take theirs, /"):
        mixing.run(MixingCampaign(NAME, (*small, "data.validation=0.2"), kind="gpt"), wanted, COMMAND)
