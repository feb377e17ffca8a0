"""A loss or a gradient that is not finite never reaches the weights."""

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apollo_cli.config.config import Config
from apollo_cli.data.batches import TrainingBatches
from apollo_cli.errors import TrainingError
from apollo_cli.training import planning
from apollo_cli.training.checkpoint import Checkpoints
from apollo_cli.training.device import Device
from apollo_cli.training.nonfinite import MAX_SKIPS_IN_A_ROW
from apollo_cli.training.run import resume, train
from apollo_cli.training.state import Checkpoint
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, STEPS, BuiltOnce, read_rows, without_clocks


def poison(monkeypatch: pytest.MonkeyPatch, steps: Collection[int], what: str) -> None:
    """At these steps (as counted before the step), one number of the loss or of a gradient is not finite."""
    original = Trainer.backward

    def backward(trainer: Trainer, step: int, depths: list[int]) -> Tensor:
        losses = original(trainer, step, depths)
        if step in steps:
            if what == "loss":
                losses[1] = math.nan
            else:
                gradient = trainer.model.blocks[0].get_parameter("qkv.weight").grad
                assert isinstance(gradient, Tensor)
                gradient[3, 2] = -math.inf if what == "-inf" else math.nan
        return losses

    monkeypatch.setattr(Trainer, "backward", backward)


def _newest(run_dir: Path) -> Checkpoint:
    found = Checkpoints(run_dir / "checkpoints", 1).load_newest(print)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def undisturbed(config: Callable[..., Config], built_once: BuiltOnce) -> Path:
    return built_once("dropout", lambda folder: train(config("model.dropout=0.1", "checkpoint.every=99"), folder))


FAST = [("loss", 0), ("gradient", 3), ("-inf", 7)]


@pytest.mark.parametrize(
    ("what", "step"),
    [
        pytest.param(what, step, marks=[] if (what, step) in FAST else pytest.mark.slow)
        for what in ("loss", "gradient", "-inf")
        for step in (0, 3, 7)  # the first of all, the first after a growth, one in between
    ],
)
def test_stop_keeps_the_state_before_the_step_and_a_diagnosis(
    what: str,
    step: int,
    undisturbed: Path,
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("model.dropout=0.1", f"checkpoint.every={step or 99}")
    with monkeypatch.context() as patch:
        poison(patch, [step], what)
        with pytest.raises(TrainingError, match=rf"step {step}: .*(nan|inf).*on_nonfinite=skip"):
            train(config(*words), tmp_path / "run")
    if step:
        assert _newest(tmp_path / "run").state.step == step
        assert all(t.isfinite().all() for t in _newest(tmp_path / "run").tensors.values())
    found = json.loads((tmp_path / "run" / "refused_steps" / f"step_{step:08d}.json").read_text())
    assert (found["step"], len(found["depths"]), len(found["rows"])) == (step, 2, 2)
    assert [len(rows) for rows in found["rows"]] == [2, 2]
    assert (found["losses"][1] is None) == (what == "loss")
    assert (found["grad_norm"] is None) == (what != "loss")
    assert found["parameters"] == ([] if what == "loss" else ["blocks.0.qkv.weight"])
    # what was kept is the state before: without the poison, the run ends as if nothing had happened
    resume(tmp_path / "run")
    assert without_clocks(read_rows(tmp_path / "run")) == without_clocks(read_rows(undisturbed))
    ours, theirs = ((run / "model" / "model.safetensors").read_bytes() for run in (tmp_path / "run", undisturbed))
    assert ours == theirs


def test_the_rows_of_a_diagnosis_are_those_of_the_step(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[Any]] = {}
    original = Trainer.backward

    def backward(trainer: Trainer, step: int, depths: list[int]) -> Tensor:
        batches = trainer.training.batches
        assert isinstance(batches, TrainingBatches)
        seen[step] = [
            (batches.rows[batches.row_numbers(step, part)], trainer.training.micro_batch(step, part).targets)
            for part in (0, 1)
        ]
        return original(trainer, step, depths)

    monkeypatch.setattr(Trainer, "backward", backward)
    train(config("model=gpt"), tmp_path)
    for parts in seen.values():
        for rows, targets in parts:  # a GPT's targets are its rows without their first token
            assert torch.equal(torch.from_numpy(rows[:, 1:].astype("int64")).flatten(), targets)


def test_skip_leaves_the_step_out_and_counts_it(
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(monkeypatch, [4, 6], "gradient")
    weights: dict[int, list[Tensor]] = {}
    original = Trainer.step

    def step(trainer: Trainer) -> None:
        before = [p.detach().clone() for p in trainer.model.parameters()]
        number = trainer.state.step
        original(trainer)
        after = list(trainer.model.parameters())
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same == (number in (4, 6))
        weights[number] = before

    monkeypatch.setattr(Trainer, "step", step)
    result = train(config("on_nonfinite=skip", "log.every=1"), tmp_path)
    assert len(weights) == STEPS
    rows = [row for row in read_rows(tmp_path) if "train/lr" in row]
    assert [row["train/skipped_steps"] for row in rows] == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [row["step"] for row in rows if row["train/loss"] is None] == [5, 7]
    assert rows[-1]["flops"] == result.plan.flops  # they were spent
    assert json.loads((tmp_path / "summary.json").read_text())["totals"]["skipped_steps"] == 2
    assert capsys.readouterr().out.count("; skipped, see ") == 2
    assert sorted(p.name for p in (tmp_path / "refused_steps").iterdir()) == [
        "step_00000004.json", "step_00000006.json",
    ]  # fmt: skip


def test_the_optimizers_own_flops_of_a_skipped_step_are_spent(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers run in each step, so the plan has them exactly; before the refused step there is a checkpoint."""
    poison(monkeypatch, [4, 6], "loss")
    result = train(config("on_nonfinite=skip", "log.every=1", "optim=muon"), tmp_path)
    assert read_rows(tmp_path)[-1]["optimizer_flops"] == result.plan.optimizer_flops > 0


def test_too_many_skips_in_a_row_end_the_run(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(1, 99), "loss")
    with pytest.raises(TrainingError, match=f"as in the {MAX_SKIPS_IN_A_ROW} steps before it"):
        train(config("on_nonfinite=skip", "eval.every=100", "checkpoint.every=100"), tmp_path)
    assert len(list((tmp_path / "refused_steps").iterdir())) == MAX_SKIPS_IN_A_ROW + 1


@pytest.mark.parametrize("step", [0, 5])
def test_a_stopped_run_is_resumed_with_skip(
    step: int, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, [step], "loss")
    with pytest.raises(TrainingError):
        train(config(), tmp_path)
    assert (tmp_path / "checkpoints" / f"step_{step:08d}").is_dir()
    resume(tmp_path, {"on_nonfinite": "skip"})
    assert json.loads((tmp_path / "summary.json").read_text())["totals"]["skipped_steps"] == 1


def test_a_huge_learning_rate_ends_with_a_message(config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"a lower optim\.lr"):
        train(config("optim.lr=1e38", "optim.warmup=0"), tmp_path)


def test_peaks_between_two_rows_are_recorded(config: Callable[..., Config], tmp_path: Path) -> None:
    """The mean over log.every steps hides a spike, which the rows of single steps show."""
    train(config(*RARELY, "log.every=1"), tmp_path / "all")
    train(config(*RARELY, "log.every=3"), tmp_path / "few")
    every = [row for row in read_rows(tmp_path / "all") if "train/lr" in row]
    for row in (row for row in read_rows(tmp_path / "few") if "train/lr" in row):
        inside = [r for r in every if row["step"] - 3 < r["step"] <= row["step"]]
        assert row["train/loss_max"] == max(r["train/loss"] for r in inside)
        assert row["train/grad_norm_max"] == max(r["train/grad_norm"] for r in inside)
        assert row["train/loss"] == pytest.approx(sum(r["train/loss"] for r in inside) / len(inside))


def test_the_summary_has_the_losses_around_each_growth(config: Callable[..., Config], tmp_path: Path) -> None:
    train(config(*RARELY, "expander=stack"), tmp_path)
    rows = [row for row in read_rows(tmp_path) if "growth/to" in row]
    expected = [
        {
            "step": before["step"], "from": before["growth/from"], "to": before["growth/to"],
            "eval/loss_before": before["eval/loss"], "eval/loss_after": after["eval/loss"],
        }
        for before, after in zip(rows[::2], rows[1::2], strict=True)
    ]  # fmt: skip
    assert len(expected) == 2
    assert json.loads((tmp_path / "summary.json").read_text())["growths"] == expected


def test_skip_keeps_the_state_before_the_step(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, [5], "loss")
    train(config("on_nonfinite=skip", "checkpoint.every=99", "checkpoint.keep=9"), tmp_path)
    saved = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert saved == ["step_00000003", "step_00000005", "step_00000006", "step_00000012"]  # growths, and the end


@pytest.mark.parametrize("steps", [1, 12])
def test_weights_that_are_not_finite_are_neither_saved_nor_exported(
    steps: int, config: Callable[..., Config], tmp_path: Path
) -> None:
    """The loss and the gradient of the last step were finite, its update was not."""
    words = ("optim.lr=1e38", "optim.warmup=0", f"budget.steps={steps}", "schedule.layers=[4]", "schedule.ends=[1]")
    with pytest.raises(TrainingError, match=r"weights that are not finite.*a lower optim\.lr"):
        train(config(*words), tmp_path)
    assert not list(tmp_path.glob("checkpoints/step_*"))
    assert not (tmp_path / "model").exists()
    assert not list((tmp_path).glob("*.tmp"))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_skips_in_a_row_do_not_delete_good_checkpoints(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them would hold the same weights."""
    poison(monkeypatch, range(7, 99), "loss")
    words = ("on_nonfinite=skip", "budget.steps=40", "checkpoint.every=3", "checkpoint.keep=3")
    with pytest.raises(TrainingError, match="in the 10 steps before it") as caught:
        train(config(*words, "schedule.layers=[4]", "schedule.ends=[1]"), tmp_path)
    assert not caught.value.resumable
    saved = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
    assert "step_00000007" in saved  # the state before the first of them


def test_a_budget_in_seconds_reads_the_clock_after_each_step(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a device that runs ahead."""
    monkeypatch.setattr(Device, "runs_ahead", True)
    settled: list[int] = []
    original = Trainer.sync_pending_steps

    def sync_pending_steps(trainer: Trainer) -> None:
        settled.append(trainer.state.step)
        original(trainer)

    monkeypatch.setattr(Trainer, "sync_pending_steps", sync_pending_steps)
    monkeypatch.setattr(planning, "seconds_by_depth", lambda *_: lambda depth: 0.2)
    train(config("budget.steps=null", "budget.seconds=4", "log.every=1000"), tmp_path)
    assert {*range(1, 6)} <= {*settled}
