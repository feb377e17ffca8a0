"""A run that its validation loss ends, and the best checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apollo_cli.config.config import Config
from apollo_cli.errors import ApolloError
from apollo_cli.training.checkpoint import load_checkpoint
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, read_rows, without_clocks

STAGES = ("schedule.layers=[2,4]", "schedule.ends=[0.5,1]")
# after steps 2, 4, ...; the whole model is there after step 6
LOSSES = {2: 1.0, 4: 1.1, 6: 1.2, 8: 4.0, 10: 3.0, 12: 3.5}


def made_losses(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Replaces the measured losses after these steps."""
    original = Trainer.evaluate_model

    def evaluate_model(trainer: Trainer) -> dict[str, float]:
        return original(trainer) | {"eval/loss": losses.get(trainer.state.step, 9.0)}

    monkeypatch.setattr(Trainer, "evaluate_model", evaluate_model)


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_best_checkpoint_of_the_whole_model_is_kept_and_exported(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_losses(monkeypatch, LOSSES)
    words = (*RARELY, *STAGES, "eval.every=2", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.best=true")
    train(config("model=gpt", *words), tmp_path)
    summary = summary_of(tmp_path)
    assert (summary["ended_by"], summary["best"]) == ("budget", {"step": 10, "eval/loss": 3.0})
    kept = tmp_path / "checkpoints"
    assert sorted(path.name for path in kept.glob("step_*")) == ["step_00000010", "step_00000012"]
    best, exported = load_checkpoint(kept, "best"), load_file(tmp_path / "model_best" / "model.safetensors")
    assert best.state.step == 10
    last = load_file(tmp_path / "model" / "model.safetensors")
    name = "transformer.h.0.ln_1.weight"
    assert torch.equal(exported[name], best.tensors["blocks.0.attention_norm.weight"])
    assert not torch.equal(exported[name], last[name])


def test_evaluations_of_a_gated_model_are_not_judged(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not exported with its gates, which are open from step 10 on."""
    made_losses(monkeypatch, {8: 1.0, 10: 4.0, 12: 3.5})
    gated = ("expander=msg", "sampler=shallow", "expander.gate_duration=0.33")
    words = (*RARELY, *STAGES, *gated, "eval.every=2", "checkpoint.best=true", "budget.target_loss=2")
    train(config("model=gpt", *words), tmp_path)
    summary = summary_of(tmp_path)
    assert (summary["ended_by"], summary["best"]) == ("budget", {"step": 12, "eval/loss": 3.5})
    evaluations = [(row["step"], row.get("gated")) for row in read_rows(tmp_path) if "eval/loss" in row]
    at_growth = [(6, None), (6, None), (6, True)]
    assert evaluations == [(0, None), (2, None), (4, None), *at_growth, (8, True), (10, None), (12, None)]


def test_a_run_that_has_reached_its_target_at_once_has_a_checkpoint(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    words = ("model=gpt", *RARELY, "schedule.layers=[4]", "schedule.ends=[1]")
    train(config(*words, "budget.target_loss=100"), tmp_path / "first")
    assert (summary_of(tmp_path / "first")["totals"]["steps"], len(read_rows(tmp_path / "first"))) == (0, 1)
    assert [path.name for path in (tmp_path / "first" / "checkpoints").glob("step_*")] == ["step_00000000"]
    again = train(
        config(*words, f"init_from.path={tmp_path}/first", "init_from.optimizer=true"), tmp_path / "second"
    )
    assert again.plan.source.flops == 0
    assert read_rows(tmp_path / "second")[0]["eval/loss"] == read_rows(tmp_path / "first")[0]["eval/loss"]


@pytest.mark.parametrize(
    ("budget", "step"),
    [
        ("budget.target_loss=3.2", 10),  # not after step 2: the whole model counts
        ("budget.patience=1", 12),
        ("budget.patience=2", 14),
    ],
)
def test_the_validation_loss_ends_a_run_and_a_killed_one_ends_in_the_same_way(
    budget: str, step: int, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_losses(monkeypatch, LOSSES)
    stages = ("schedule.layers=[2,4]", "schedule.ends=[0.15,1]", "budget.steps=40", "eval.every=2", "log.every=5")
    settings = config("model=gpt", *RARELY, *stages, "checkpoint.every=9", budget)
    result = train(settings, tmp_path / "straight")
    assert result.plan.may_end_early
    rows, summary = read_rows(tmp_path / "straight"), summary_of(tmp_path / "straight")
    key = budget.partition("=")[0].removeprefix("budget.")
    assert (summary["status"], summary["ended_by"], summary["totals"]["steps"]) == ("completed", key, step)
    assert (rows[-1]["step"], "train/loss" in rows[-1]) == (step, step % 5 != 0)
    assert (tmp_path / "straight" / "model").is_dir()
    assert f"budget.{key}" in (tmp_path / "straight" / "train.log").read_text()
    original = Trainer.evaluate

    def killed(trainer: Trainer) -> None:
        original(trainer)
        if trainer.state.step == step:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", killed)
        with pytest.raises(ZeroDivisionError):
            train(settings, tmp_path / "run")
    resume(tmp_path / "run")
    assert without_clocks(read_rows(tmp_path / "run")) == without_clocks(rows)
    with pytest.raises(ApolloError, match=rf"ended by budget\.{key}, not by its length"):
        resume(tmp_path / "run", {"budget": {"steps": 100}})


def test_nothing_is_promised_of_a_best_checkpoint_that_is_not_kept(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    train(config(*RARELY), tmp_path)
    with pytest.raises(ApolloError, match=r"checkpoint=best: none is kept.*checkpoint\.best=true"):
        load_checkpoint(tmp_path / "checkpoints", "best")
