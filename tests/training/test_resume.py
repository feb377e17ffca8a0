"""Stopped anywhere and resumed, a run gives the same rows and the same weights, bit for bit."""

import re
import shlex
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apollo_cli.config.config import Config
from apollo_cli.config.hydra_syntax import parse_overrides
from apollo_cli.errors import CheckpointError
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import Interrupted
from apollo_cli.training import planning, run
from apollo_cli.training.device import choose
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, STEPS, read_rows, without_clocks

KINDS = ("bert", "gpt")
SIGNALS = {(1, "gpt"), (3, "bert"), (6, "gpt"), (7, "bert"), (10, "gpt")}  # fast ones; growths follow steps 3 and 6


class Killed(BaseException):
    """In place of kill -9: nothing is saved."""


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def raises(error: BaseException) -> None:
    raise error


def stop_after(step: int, how: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has each run stopped so after this step."""
    original = Trainer.step

    def stopping(trainer: Trainer) -> None:
        original(trainer)
        if trainer.state.step == step:
            how()

    monkeypatch.setattr(Trainer, "step", stopping)


def interrupt(begin: Callable[[], Any], step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(step, terminate, patch)
        with pytest.raises(Interrupted):
            begin()


def assert_same(folder: Path, expected: Path) -> None:
    """The same rows and weights, bit for bit."""
    assert without_clocks(read_rows(folder)) == without_clocks(read_rows(expected))
    ours = load_file(folder / "model" / "model.safetensors")
    theirs = load_file(expected / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        pytest.param(step, kind, marks=[] if (step, kind) in SIGNALS else pytest.mark.slow)
        for step in range(1, STEPS)
        for kind in KINDS
    ],
)
def test_a_signal_at_any_step(
    step: int,
    kind: str,
    straight: dict[str, Path],
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt(lambda: train(config(f"model={kind}"), tmp_path), step, monkeypatch)
    assert read_rows(tmp_path)[-1]["step"] <= step
    torch.manual_seed(999)
    resume(tmp_path)
    assert_same(tmp_path, straight[kind])


@pytest.mark.parametrize("step", [1, 5, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 7, 11))])
def test_a_kill_at_any_step(
    step: int,
    straight: dict[str, Path],
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_after(step, lambda: raises(Killed()), patch)
        with pytest.raises(Killed):
            train(config("model=gpt"), tmp_path)
    resume(tmp_path)
    assert_same(tmp_path, straight["gpt"])


def test_dropout_draws_the_same_after_a_resume(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("model=bert", "model.dropout=0.1", "optim.at_growth=rewarm", "expander.moments=map")
    train(config(*words), tmp_path / "straight")
    interrupt(lambda: train(config(*words), tmp_path / "run"), 7, monkeypatch)
    torch.manual_seed(999)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_two_stops_in_one_run(
    straight: dict[str, Path], config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, begin in ((4, lambda: train(config("model=bert"), tmp_path)), (9, lambda: resume(tmp_path))):
        interrupt(begin, step, monkeypatch)
    resume(tmp_path)
    assert_same(tmp_path, straight["bert"])


def test_equal_seeds_give_equal_runs_and_others_do_not(
    straight: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    train(config("model=bert"), tmp_path / "again")
    assert_same(tmp_path / "again", straight["bert"])
    train(config("model=bert", "seed=1"), tmp_path / "other")
    assert without_clocks(read_rows(tmp_path / "other")) != without_clocks(read_rows(straight["bert"]))


def test_two_samplers_see_the_same_rows(config: Callable[..., Config], tmp_path: Path) -> None:
    """At the first step the weights are equal, so equal depth and rows mean equal loss."""
    words = (*RARELY, "schedule=scratch", "schedule.layers=[4]", "schedule.ends=[1]", "log.every=1")
    for sampler in ("lvps", "uniform"):
        train(config(*words, f"sampler={sampler}"), tmp_path / sampler)
    assert without_clocks(read_rows(tmp_path / "lvps")) == without_clocks(read_rows(tmp_path / "uniform"))


def test_a_complete_run_is_not_resumed(straight: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="complete"):
        resume(straight["bert"])


def test_a_run_that_is_to_be_typed_is_in_quotes(straight: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "moved é's").symlink_to(straight["bert"])
    with pytest.raises(CheckpointError) as caught:
        resume(tmp_path / "moved é's")
    (word,) = shlex.split(str(caught.value).partition("if you type ")[2])
    (typed,) = parse_overrides([word], [])
    assert (typed.key_or_group, typed.value()) == ("init_from.path", f"{tmp_path}/moved é's")


def test_a_corpus_that_changed_is_not_trained_on(
    corpus_file: Path, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(corpus_file.read_bytes())
    interrupt(lambda: train(config(f"data.files=[{copy}]"), tmp_path / "run"), 4, monkeypatch)
    copy.write_text(copy.read_text() + "\n\n" + "more words than before " * 50)
    with pytest.raises(CheckpointError, match="corpus is not the one"):
        resume(tmp_path / "run")


def test_a_damaged_newest_checkpoint_costs_no_more_than_the_steps_since_the_one_before(
    straight: dict[str, Path],
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(lambda: train(config("model=bert"), tmp_path), 10, monkeypatch)
    (tmp_path / "checkpoints" / "step_00000010" / "state.pt").write_bytes(b"damaged")
    resume(tmp_path)
    assert "step_00000010: state.pt is damaged" in capsys.readouterr().out
    assert_same(tmp_path, straight["bert"])


def test_lost_rows_cost_the_steps_since_a_checkpoint_that_has_its_rows(
    straight: dict[str, Path],
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(lambda: train(config("model=bert"), tmp_path), 10, monkeypatch)
    metrics = tmp_path / "metrics.jsonl"
    rows = metrics.read_bytes()
    metrics.write_bytes(rows[:-1])  # that of step 10
    resume(tmp_path)
    said = (
        rf"step_00000010: metrics.jsonl had {len(rows)} bytes then and has {len(rows) - 1} now, .* the one before"
    )
    assert re.search(said, capsys.readouterr().out)
    assert_same(tmp_path, straight["bert"])


def test_a_checkpoint_without_its_rows_is_not_used(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(lambda: train(config("model=bert"), tmp_path), 10, monkeypatch)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)has 0 now.*Restore what is lost from a copy"):
        resume(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.fixture
def timed(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Config]:
    """Makes a config whose budget in seconds is planned as so many steps."""

    def make(steps: int) -> Config:
        plan = planning.make_plan(config(), choose(config().run), steps)
        monkeypatch.setattr(planning, "max_steps_within", lambda *_: plan)
        return config("budget.steps=null", "budget.seconds=1000")

    return make


def test_a_lost_plan_is_made_again_with_the_length_in_the_checkpoint(
    timed: Callable[[int], Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(lambda: train(timed(700), tmp_path), 4, monkeypatch)
    plan = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text("")
    timed(900)
    interrupt(lambda: resume(tmp_path), 6, monkeypatch)
    assert (tmp_path / "plan.json").read_text() == plan


def test_a_run_killed_before_its_corpus_is_there_finds_its_new_cache_folder(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run, "prepare_corpus", killed)
        with pytest.raises(Killed):
            train(config(f"data.cache_dir={tmp_path}/new/cache", *RARELY), tmp_path / "run")
    assert "eval/loss" in resume(tmp_path / "run").losses


def has_bf16(answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": answer})


def test_what_precision_auto_took_is_recorded_and_kept_elsewhere(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer, precision in ((True, "bf16"), (False, "fp32")):
        has_bf16(answer, monkeypatch)
        folder = tmp_path / precision
        train(config("precision=auto"), folder / "straight")
        assert RunDirectory(folder / "straight").config()["precision"] == precision
        interrupt(partial(train, config("precision=auto"), folder / "run"), 7, monkeypatch)
    before = (tmp_path / "bf16" / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(
        CheckpointError, match=r"precision=bf16, which cpu \(.*\) only emulates.*; resume it on a GPU"
    ):
        resume(tmp_path / "bf16" / "run")
    assert (tmp_path / "bf16" / "run" / "metrics.jsonl").read_bytes() == before
    has_bf16(True, monkeypatch)
    for precision in ("bf16", "fp32"):
        resume(tmp_path / precision / "run")
        assert_same(tmp_path / precision / "run", tmp_path / precision / "straight")
