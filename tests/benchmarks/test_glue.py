"""GLUE of the reproduction's models: what is kept, what is not done again, and the table."""

import json
import subprocess
from pathlib import Path

import pytest

from apollo_cli.glue.tasks import TASKS
from benchmarks import glue, glue_trainer, reproduce, results
from benchmarks.reproduce import Cell, Corpus
from tests.glue import made_glue


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


def test_only_what_the_table_says_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rate that it does not name, for the best one counts; no other task."""
    monkeypatch.setattr(reproduce, "KEPT", tmp_path / "kept")
    cell, path = glue.models(0)["scratch"], tmp_path / "glue" / "results.json"
    path.parent.mkdir()

    def fine_tuned(*rates: float) -> None:
        task = {"mean": 0.5, "best": 0.5, "rates": rates}
        found = {"pretrained": {"run_dir": "/mine", "flops": 1}, "tasks": {"sst2": task, "qnli": task}}
        path.write_text(json.dumps(found), encoding="utf-8")

    fine_tuned(3e-4)
    glue.keep(cell, tmp_path)
    assert set(glue.kept(cell)["tasks"]) == {"sst2"}
    fine_tuned(3e-4, 1e-3)
    with pytest.raises(RuntimeError, match=r"sst2 was fine-tuned at \[0.001\], too"):
        glue.keep(cell, tmp_path)


def test_the_table_begins_with_what_the_frequent_label_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1 of MRPC is 81.2 there, accuracy 68.4, as is published."""
    runs = [{"device": "an abacus"}]
    found = {"tasks": {name: {"mean": 0.5, "rates": [], "runs": runs} for name in ("mrpc", "rte", "wnli")}}
    monkeypatch.setattr(glue, "kept", lambda cell: found | {"pretrained": {"flops": 2e13, "eval/loss": 1.0}})
    table = [line for line in glue.lines() if line.startswith("| ")]
    assert table[0].endswith("| MRPC | RTE | WNLI | average without WNLI |")
    assert table[2] == "| always the frequent label | - | - | - | 74.8 | 52.7 | 56.3 | 63.8 |"
    assert table[3].startswith("| scratch | 3 | 2.000e+13")
    assert len(table) == 3 + len(glue.models(0))
    assert "Fine-tuned on an abacus: MRPC, RTE, WNLI." in glue.lines()


def test_both_sides_of_the_contest_stand_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {
        "apollo-glue": {"rte": {"0": 0.5, "1": 0.6}, "mrpc": {"0": 0.7}},
        "Trainer": {"rte": {"0": 0.55, "1": 0.55}},
    }
    monkeypatch.setattr(glue_trainer, "KEPT", tmp_path / "trainer.json")
    glue_trainer.KEPT.write_text(json.dumps(scores), encoding="utf-8")
    table = [line for line in glue_trainer.lines() if line.startswith("| ")]
    assert table[2:] == ["| RTE | 55.0 ± 63.5 (n = 2) | 55.0 ± 0.0 (n = 2) | 50.0, 60.0 | 55.0, 55.0 |"]
