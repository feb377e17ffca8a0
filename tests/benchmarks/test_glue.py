"""GLUE of the reproduction's models: what is kept, what is not done again, and the table."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from apollo_cli.glue.tasks import TASKS
from benchmarks import glue, glue_trainer, reproduce, results
from benchmarks.reproduce import Cell, Corpus
from tests.helpers import made_glue


def test_every_model_is_a_cell_of_the_reproduction() -> None:
    cells = {cell for seed in reproduce.SEEDS for cell in glue.models(seed).values()}
    assert cells <= set(reproduce.cells("pydocs"))
    assert len(cells) == 15
    assert {name for group in glue.GROUPS for name in group.tasks} <= set(TASKS)


@pytest.fixture
def one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]) -> Cell:
    """A cell of a few steps, two tasks, one rate."""
    cell = Cell("bert", "scratch", "2e-3", 0)
    monkeypatch.setattr(reproduce, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(reproduce, "RUNNING", tmp_path / "running")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(glue, "CORPUS", Corpus("tiny", ()))
    monkeypatch.setattr(glue, "SEEDS", (0,))
    monkeypatch.setattr(glue, "models", lambda seed: {"scratch": cell})
    monkeypatch.setattr(glue, "GROUPS", (glue.Group(("rte",), ("1e-3",)), glue.Group(("wnli",), ("2e-3",))))
    monkeypatch.setattr(glue, "EPOCHS", 1)
    small = [word for word in tiny if not word.startswith(("schedule.", "optim.lr", "size="))]
    whole = ("schedule.layers=[4]", "schedule.ends=[1]")
    monkeypatch.setattr(Cell, "words", ("experiment=repro_scratch", "data.tokenizer=auto", *small, *whole))
    return cell


@pytest.mark.slow
def test_models_are_trained_fine_tuned_kept_and_not_again(
    one_model: Cell, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(made_glue.write(tmp_path / "tsv"))
    glue.main([folder])
    assert "2 parts, 2 to do" in capsys.readouterr().out
    kept = json.loads((glue.CORPUS.kept(one_model) / "glue" / "results.json").read_text(encoding="utf-8"))
    assert set(kept["tasks"]) == {"rte", "wnli"}
    assert str(tmp_path) not in json.dumps(kept)
    assert kept["average"]["mean"]["without_wnli"] == kept["tasks"]["rte"]["mean"]
    text = results.RESULTS.read_text(encoding="utf-8")
    rte, wnli = (f"{100 * kept['tasks'][name]['mean']:.1f}" for name in ("rte", "wnli"))
    assert f"| {kept['pretrained']['eval/loss']:.4f} | {rte} | {wnli} | {rte} |" in text
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    glue.main([folder])
    assert "2 parts, 0 to do" in capsys.readouterr().out
    assert results.RESULTS.read_text(encoding="utf-8") == text


@pytest.fixture
def fine_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cell]:
    """Keeps results of SST-2, and of a task that nobody wants, at some rates and of some weights."""
    monkeypatch.setattr(reproduce, "KEPT", tmp_path / "kept")
    cell, path = glue.models(0)["scratch"], tmp_path / "glue" / "results.json"
    path.parent.mkdir()

    def keep(*rates: float, weights: str = "mine") -> Cell:
        task = {"mean": 0.5, "best": 0.5, "rates": rates}
        pretrained = {"run_dir": "/mine", "flops": 1, "weights": weights}
        path.write_text(json.dumps({"pretrained": pretrained, "tasks": {"sst2": task, "qnli": task}}), "utf-8")
        glue.keep(cell, tmp_path)
        return cell

    return keep


def test_only_what_the_table_says_is_kept(fine_tuned: Callable[..., Cell]) -> None:
    """No rate that it does not name, for the best one counts; no other task; no place on this machine."""
    kept = glue.kept(fine_tuned(3e-4))
    assert set(kept["tasks"]) == {"sst2"}
    assert kept["pretrained"] == {"flops": 1, "weights": "mine"}
    with pytest.raises(RuntimeError, match=r"sst2 was fine-tuned at \[0.001\], too"):
        fine_tuned(3e-4, 1e-3)


def test_results_of_two_models_are_not_mixed(fine_tuned: Callable[..., Cell]) -> None:
    cell = fine_tuned(3e-4)
    before = glue.kept(cell)
    with pytest.raises(RuntimeError, match=r"results\.json is of other weights than"):
        fine_tuned(3e-4, weights="another's")
    assert glue.kept(cell) == before


def test_a_task_is_missing_until_every_rate_was_tried(
    fine_tuned: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = glue.Group(("sst2",), ("1e-4", "3e-4"))
    monkeypatch.setattr(glue, "GROUPS", (group,))
    assert glue.Unit(fine_tuned(3e-4), group).missing == ("sst2",)
    assert glue.Unit(fine_tuned(1e-4, 3e-4), group).missing == ()


def test_both_sides_of_the_contest_stand_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {
        "apollo-glue": {"rte": {"0": 0.5, "1": 0.6}, "mrpc": {"0": 0.7}},
        "Trainer": {"rte": {"0": 0.55, "1": 0.55}},
    }
    monkeypatch.setattr(glue_trainer, "KEPT", tmp_path / "trainer.json")
    glue_trainer.KEPT.write_text(json.dumps(scores), encoding="utf-8")
    table = [line for line in glue_trainer.lines() if line.startswith("| ")]
    assert table[2:] == ["| RTE | 55.0 ± 63.5 (n = 2) | 55.0 ± 0.0 (n = 2) | 50.0, 60.0 | 55.0, 55.0 |"]
