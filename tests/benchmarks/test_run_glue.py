"""A tiny fine-tuning campaign."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import glue_cells, render_glue, results_page, run_glue
from benchmarks.archives import BenchmarkCorpus
from benchmarks.cells import SEARCH_PATH, ReproductionCell
from benchmarks.glue_cells import GlueGroup
from tests.helpers import made_glue


@pytest.fixture
def one_model(no_results: None, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]) -> ReproductionCell:
    """A cell of a few steps, two tasks, one rate."""
    cell = ReproductionCell("bert", "scratch", "2e-3", 0)
    monkeypatch.setattr(glue_cells, "CORPUS", "tiny")
    monkeypatch.setattr(glue_cells, "SEEDS", (0,))
    monkeypatch.setattr(render_glue, "SEEDS", (0,))
    monkeypatch.setattr(glue_cells, "models", lambda seed: {"scratch": cell})
    monkeypatch.setattr(glue_cells, "GROUPS", (GlueGroup(("rte",), ("1e-3",)), GlueGroup(("wnli",), ("2e-3",))))
    monkeypatch.setattr(glue_cells, "EPOCHS", 1)
    small = [word for word in tiny if not word.startswith(("schedule.", "optim.lr", "size="))]
    whole = ("schedule.layers=[4]", "schedule.ends=[1]")
    monkeypatch.setattr(
        ReproductionCell, "words", (SEARCH_PATH, "experiment=repro_scratch", "data.tokenizer=auto", *small, *whole)
    )
    return cell


@pytest.mark.slow
def test_models_are_trained_fine_tuned_kept_and_not_again(
    one_model: ReproductionCell, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(made_glue.write(tmp_path / "tsv"))
    run_glue.main(folder)
    assert "2 parts, 2 to do" in capsys.readouterr().out
    kept = json.loads(
        (BenchmarkCorpus("tiny").kept(one_model) / "glue" / "results.json").read_text(encoding="utf-8")
    )
    assert set(kept["tasks"]) == {"rte", "wnli"}
    assert str(tmp_path) not in json.dumps(kept)
    assert kept["average"]["mean"]["without_wnli"] == kept["tasks"]["rte"]["mean"]
    text = results_page.page_of("GLUE of the reproduction's models").read_text(encoding="utf-8")
    rte, wnli = (f"{100 * kept['tasks'][name]['mean']:.1f}" for name in ("rte", "wnli"))
    assert f"| {kept['pretrained']['eval/loss']:.4f} | {rte} | {wnli} | {rte} |" in text
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    run_glue.main(folder)
    assert "2 parts, 0 to do" in capsys.readouterr().out
    assert results_page.page_of("GLUE of the reproduction's models").read_text(encoding="utf-8") == text
