"""Whole commands, on a tiny model and a tiny GLUE."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from apollo_cli.glue import finetuning
from apollo_cli.glue.command import PAGE, run
from apollo_cli.glue.tasks import TASKS
from apollo_cli.tracking.wandb import Identity, identify
from tests.conftest import read_rows, without_clocks
from tests.helpers.made_glue import ROWS
from tests.training.test_resume import stop_after, terminate


@pytest.fixture
def run_dir(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of the complete run, without results."""
    shutil.copytree(pretrained, tmp_path / "run")
    return tmp_path / "run"


def test_a_grid_is_run_and_the_same_command_skips_what_is_done(
    run_dir: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={run_dir}", "task=rte,stsb", *quick, "seed=0,1", "optim.lr=1e-3,3e-3"]
    assert run(words) == 0
    out = run_dir / "glue"
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert list(results["tasks"]) == ["stsb", "rte"]
    of_rte = results["tasks"]["rte"]
    assert [(each["lr"], each["seed"]) for each in of_rte["runs"]] == [
        (lr, s) for lr in (0.001, 0.003) for s in (0, 1)
    ]
    assert of_rte["rates"] == [0.001, 0.003]
    assert {(each["device"].split()[0], each["precision"]) for each in of_rte["runs"]} == {("cpu", "fp32")}
    of_rate = [each["score"] for each in of_rte["runs"] if each["lr"] == of_rte["rate"]]
    assert of_rte["mean"] == pytest.approx(sum(of_rate) / 2)
    assert of_rte["best"] == max(each["score"] for each in of_rte["runs"])
    assert results["average"]["mean"]["tasks"] == ["stsb", "rte"]
    assert results["average"]["mean"]["with_wnli"] == pytest.approx(
        (of_rte["mean"] + results["tasks"]["stsb"]["mean"]) / 2
    )
    assert (
        results["pretrained"]["eval/loss"]
        == json.loads((run_dir / "summary.json").read_text())["losses"]["eval/loss"]
    )
    rows = read_rows(out / "rte" / "lr0.001_seed1")
    evaluations = [row for row in rows if "eval/score" in row]
    assert [row["step"] for row in evaluations] == [0, 3, 6]
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4, 6]
    assert evaluations[-1]["eval/score"] == of_rte["runs"][1]["score"]
    assert "GLUE, development rows" in capsys.readouterr().out
    (out / "results.json").unlink()  # a command that was killed before it wrote them
    before = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    assert run(words) == 0
    assert "all of these fine-tuning runs are done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")} == before
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results


@pytest.mark.slow
def test_every_task_is_fine_tuned_and_its_answers_can_be_submitted(run_dir: Path, quick: tuple[str, ...]) -> None:
    assert run([f"run={run_dir}", *quick, "glue.epochs=1"]) == 0
    folder = run_dir / "glue" / "submission"
    names = {"MNLI-m", "MNLI-mm"} | {task.title for name, task in TASKS.items() if name != "mnli"}
    assert {path.stem for path in folder.glob("*.tsv")} == names
    for path in folder.glob("*.tsv"):
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        assert head == "index\tprediction"
        answers = [line.split("\t") for line in lines]
        assert [index for index, _ in answers] == [str(i) for i in range(ROWS["test"])]
        task = next(task for task in TASKS.values() if path.stem.startswith(task.title))
        if task.labels:
            assert {answer for _, answer in answers} <= set(task.labels)
        else:
            assert all(0 <= float(answer) <= 5 for _, answer in answers)
    results = json.loads((run_dir / "glue" / "results.json").read_text(encoding="utf-8"))
    assert set(results["tasks"]) == set(TASKS)
    assert set(results["tasks"]["mnli"]["metrics"]) == {"accuracy", "accuracy_mismatched"}
    assert results["average"]["mean"]["with_wnli"] != results["average"]["mean"]["without_wnli"]
    assert not list((run_dir / "glue").rglob("*.safetensors")), "weights are not kept"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_run_resumes_with_the_same_numbers(
    precision: str, run_dir: Path, quick: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"run={run_dir}",
        "task=cola",
        *(word for word in quick if word != "precision=fp32"),
        f"precision={precision}",
    ]
    assert run([*words, f"out={tmp_path / 'whole'}"]) == 0
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, terminate, patch)
        assert run([*words, f"out={tmp_path / 'parted'}"]) == 143
    assert f"apollo-glue resume={tmp_path / 'parted'}" in capsys.readouterr().err
    assert "task: a resumed command keeps its own values" in _error(
        [f"resume={tmp_path / 'parted'}", "task=rte"], capsys
    )
    assert run([f"resume={tmp_path / 'parted'}", "checkpoint.every=1"]) == 0
    whole, parted = (read_rows(tmp_path / name / "cola" / "lr0.001_seed0") for name in ("whole", "parted"))
    assert without_clocks(parted) == without_clocks(whole)  # with dropout of 0.1


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_numbers(run_dir: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    words = [f"run={run_dir}", "task=cola", *quick]
    assert run([*words, f"out={tmp_path / 'whole'}"]) == 0
    code = (
        "import os, signal, sys\n"
        "from apollo_cli.glue.command import run\n"
        "from apollo_cli.glue.finetuning import FineTuning\n"
        "original = FineTuning.step\n"
        "def step(loop):\n"
        "    original(loop)\n"
        "    if loop.state.step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "FineTuning.step = step\n"
        "run(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *words, f"out={tmp_path / 'parted'}"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run([*words, f"out={tmp_path / 'parted'}"]) == 0
    whole, parted = (read_rows(tmp_path / name / "cola" / "lr0.001_seed0") for name in ("whole", "parted"))
    assert without_clocks(parted) == without_clocks(whole)


def _error(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("apollo-glue: ")
    assert "Traceback" not in message
    return message


def test_wrong_words_are_refused_together_with_the_right_ones(
    run_dir: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    base = [f"run={run_dir}", "task=rte", *quick]
    message = _error(["task=colla", "glue.epochs=0", "seed=x"], capsys)
    assert "task=colla: should be 'cola', 'sst2', 'mrpc'" in message
    assert "did you mean cola?" in message
    assert "glue.epochs=0" in message
    assert "no such key; did you mean seed?" in _error(["run=x", "sed=1"], capsys)
    assert "type either run=RUN_DIR" in _error(["task=cola"], capsys)
    assert "device=cuda:9: not on this machine" in _error([*base, "device=cuda:9"], capsys)
    assert not (run_dir / "glue").exists()
    assert "--multirun: no such flag" in _error(["--multirun", "run=x"], capsys)
    said = "--optim.lr: no such flag; keys have no dashes: type optim.lr=1e-3"
    assert said in _error(["--optim.lr=1e-3", "run=x"], capsys)


def test_an_unfinished_run_is_refused_with_the_command_that_resumes_it(
    run_dir: Path, quick: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    (run_dir / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}), encoding="utf-8")
    message = _error([f"run={run_dir}", "task=cola", *quick], capsys)
    assert "this run did not finish (interrupted)" in message
    assert f"resume={run_dir}" in message
    assert not (run_dir / "glue").exists()
    assert "not a run directory" in _error([f"run={run_dir}/nowhere", "task=cola", *quick], capsys)
    run_dir = run_dir.rename(tmp_path / "a run")
    assert f"'resume={run_dir}'" in _error([f"run={run_dir}", "task=cola", *quick], capsys)
    (run_dir / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    shutil.rmtree(run_dir / "model")
    message = _error([f"run={run_dir}", "task=cola", *quick], capsys)
    assert "its model is missing" in message
    assert "resume" not in message


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run(["model=anything"]) == 2
    assert "start apollo-glue once, not as 4 processes" in capsys.readouterr().err


def test_a_missing_file_is_an_error_before_the_first_run(
    run_dir: Path, quick: tuple[str, ...], glue_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(glue_dir, tmp_path / "tsv")
    (tmp_path / "tsv" / "WNLI" / "dev.tsv").unlink()
    words = [f"run={run_dir}", "task=cola,wnli", *quick, f"glue.data_dir={tmp_path / 'tsv'}"]
    assert "WNLI/dev.tsv cannot be read" in _error(words, capsys)
    assert not (run_dir / "glue").exists()


def test_without_test_rows_there_is_no_submission(
    run_dir: Path, quick: tuple[str, ...], glue_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(glue_dir / "RTE", tmp_path / "tsv" / "RTE")
    (tmp_path / "tsv" / "RTE" / "test.tsv").unlink()
    assert run([f"run={run_dir}", "task=rte", *quick, f"glue.data_dir={tmp_path / 'tsv'}"]) == 0
    assert "RTE has no test.tsv" in capsys.readouterr().out
    assert not (run_dir / "glue" / "submission").exists()


def test_results_of_other_rows_are_not_mixed(
    run_dir: Path, quick: tuple[str, ...], glue_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither when all runs are done nor with another learning rate."""
    assert run([f"run={run_dir}", "task=rte", *quick, "glue.epochs=1"]) == 0
    before = (run_dir / "glue" / "results.json").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(glue_dir, other)
    path = other / "RTE" / "dev.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    for more in ((), ("optim.lr=3e-3",)):
        words = [f"run={run_dir}", "task=rte", *quick, "glue.epochs=1", f"glue.data_dir={other}", *more]
        assert "has results of other RTE rows: type out=DIR" in _error(words, capsys)
    assert (run_dir / "glue" / "results.json").read_bytes() == before
    missing = [f"run={run_dir}", "task=rte", *quick, "glue.epochs=1", f"glue.data_dir={tmp_path / 'nowhere'}"]
    assert "nowhere" in _error(missing, capsys)


def test_results_of_another_recipe_or_model_are_not_mixed(
    run_dir: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={run_dir}", "task=rte", *quick]
    assert run(words) == 0
    assert "another recipe: type glue.epochs=2, or out=DIR" in _error([*words, "glue.epochs=1"], capsys)
    weights = run_dir / "model" / "model.safetensors"
    tensors = load_file(weights)
    name = "bert.embeddings.LayerNorm.bias"
    save_file(tensors | {name: tensors[name] + 1}, weights, metadata={"format": "pt"})
    assert "results of another model, by its weights: type out=DIR" in _error(words, capsys)


def test_a_folder_of_results_keeps_the_precision_that_auto_took(
    run_dir: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"run={run_dir}", "task=rte", *(word for word in quick if not word.startswith("precision="))]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False})
    assert run(words) == 0
    assert yaml.safe_load((run_dir / "glue" / "glue.yaml").read_text())["precision"] == "fp32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert "has results in fp32; type precision=fp32, or out=DIR" in _error(words, capsys)
    assert run([*words, "precision=fp32"]) == 0
    assert run([f"resume={run_dir}/glue"]) == 0


def test_a_gpt_whose_tokenizer_has_no_end_of_text_is_refused(
    gpt_folder: Path, quick: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(gpt_folder, tmp_path / "gpt")
    path = tmp_path / "gpt" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<|endoftext|>", "<|end|>"), encoding="utf-8")
    message = _error([f"model={tmp_path / 'gpt'}", "task=rte", *quick, f"out={tmp_path / 'out'}"], capsys)
    assert "needs the token <|endoftext|> (or </s> or <|end_of_text|>), it has none" in message


def test_a_gpt_is_fine_tuned_from_a_folder(gpt_folder: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    assert run([f"model={gpt_folder}", "task=rte", *quick, f"out={tmp_path / 'out'}"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert 0 <= results["tasks"]["rte"]["mean"] <= 1


def test_wandb_finds_the_fine_tuning_beside_its_pretraining(
    run_dir: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Identity, dict[str, Any]]] = []
    monkeypatch.setattr(
        finetuning, "open_mirror", lambda tracking, identity, shown, *_: opened.append((identity, shown))
    )
    assert run([f"run={run_dir}", "task=rte", *quick]) == 0
    ((identity, shown),) = opened
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert identity.job_type == "glue"
    assert identity.group == identify(run_dir, summary["name"], (), "").name
    assert shown["pretrained"]["run_id"] == summary["run_id"] != identity.id


def test_the_page_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == PAGE
    assert all(f" {name}," in PAGE or f" {name};" in PAGE for name in TASKS)
