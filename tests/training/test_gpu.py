"""On a CUDA device: the numbers of the CPU, exact resumes, and no synchronization between two rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apollo_cli.config.config import Config
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import read_rows, without_clocks
from tests.training.test_resume import interrupt

pytestmark = pytest.mark.gpu
CUDA = ("device=cuda", "log.every=1")
WIDE = (
    "model.hidden=128",
    "model.heads=2",
    "model.ffn=512",
    "data.seq_len=64",
    "batch.size=16",
    "batch.micro=null",
)


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in read_rows(folder) if "train/loss" in row]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_losses_and_flops_are_those_of_the_cpu(kind: str, config: Callable[..., Config], tmp_path: Path) -> None:
    words = (f"model={kind}", *WIDE, "precision=fp32", "compile=false")
    train(config(*words, "log.every=1"), tmp_path / "cpu")
    train(config(*words, *CUDA), tmp_path / "cuda")
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)
    flops = [[row["flops"] for row in read_rows(tmp_path / name)] for name in ("cpu", "cuda")]
    assert flops[0] == flops[1]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_compiled_losses_in_bf16_stay_within_noise(
    kind: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    words = (f"model={kind}", *WIDE, *CUDA, "budget.steps=60", "optim.lr=1e-3")
    train(config(*words, "precision=fp32", "compile=false"), tmp_path / "exact")
    train(config(*words, "precision=bf16", "compile=true"), tmp_path / "short")
    exact, short = losses(tmp_path / "exact"), losses(tmp_path / "short")
    assert exact[-1] < exact[0] - 0.3  # something was learnt
    assert short == pytest.approx(exact, rel=0.02)
    assert short != exact


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_resumed_run_equals_an_undisturbed_one(
    step: int, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WIDE, *CUDA, "precision=bf16", "compile=true", "model.dropout=0.1")
    train(config(*words), tmp_path / "straight")
    interrupt(lambda: train(config(*words), tmp_path / "stopped"), step, monkeypatch)
    torch.manual_seed(999)
    resume(tmp_path / "stopped")
    straight, stopped = (without_clocks(read_rows(tmp_path / name)) for name in ("straight", "stopped"))
    assert stopped == straight


def refuse_to_wait(trainer_class: type[Trainer], first: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From step `first` on CUDA raises an error at each synchronization; returns the list of steps done."""
    original, done = trainer_class.step, list[int]()

    def step(trainer: Trainer) -> None:
        torch.cuda.set_sync_debug_mode("error" if trainer.state.step >= first else "default")
        try:
            original(trainer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        done.append(trainer.state.step)

    monkeypatch.setattr(trainer_class, "step", step)
    return done


def test_between_rows_nothing_waits_for_the_device(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = refuse_to_wait(Trainer, 6, monkeypatch)  # before, compilation waits, and so does what is done once
    rare = ("log.every=12", "eval.every=12", "checkpoint.every=12", "schedule.layers=[4]", "schedule.ends=[1]")
    train(config(*WIDE, "device=cuda", *rare), tmp_path)
    assert done == list(range(1, 13))


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_replayed_steps_have_the_losses_and_flops_of_those_that_are_not(
    kind: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    words = (f"model={kind}", *WIDE, *CUDA, "precision=fp32", "sampler=lvps", "budget.steps=100")
    train(config(*words, "compile=true"), tmp_path / "plain")
    train(config(*words, "compile=graphs"), tmp_path / "graphs")
    rows = [row for row in read_rows(tmp_path / "graphs") if "train/loss" in row]
    assert rows[-1]["perf/capture_seconds"] > 0  # it did not fall back
    assert losses(tmp_path / "graphs") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    flops = [[row["flops"] for row in read_rows(tmp_path / name)] for name in ("plain", "graphs")]
    assert flops[0] == flops[1]


def test_a_resumed_run_with_graphs_equals_an_undisturbed_one(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*WIDE, *CUDA, "precision=bf16", "compile=graphs", "model.dropout=0.1", "budget.steps=24")
    train(config(*words), tmp_path / "straight")
    interrupt(lambda: train(config(*words), tmp_path / "stopped"), 13, monkeypatch)
    torch.manual_seed(999)
    resume(tmp_path / "stopped")
    straight, stopped = (without_clocks(read_rows(tmp_path / name)) for name in ("straight", "stopped"))
    assert stopped == straight


def test_replayed_steps_do_not_wait_for_the_device(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = refuse_to_wait(Trainer, 6, monkeypatch)
    rare = ("log.every=12", "eval.every=12", "checkpoint.every=12", "schedule.layers=[4]", "schedule.ends=[1]")
    train(config(*WIDE, "device=cuda", "compile=graphs", *rare), tmp_path)
    assert done == list(range(1, 13))
