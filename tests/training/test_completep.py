"""Runs in CompleteP: equal to the standard ones at the base, exact at growth, resumed exactly."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apollo_cli.config.config import Config
from apollo_cli.errors import ConfigError
from apollo_cli.inference.evaluation_command import evaluate_models
from apollo_cli.inference.trained import load_trained
from apollo_cli.models.hf import load_model
from apollo_cli.tracking.console import Console
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, read_rows, without_clocks
from tests.training.test_resume import interrupt

BASE = ("model=gpt", "model.parametrization=completep", "model.base_hidden=8", "model.base_layers=2")
GROWS = ("schedule.layers=[2,4]", "schedule.ends=[0.5,1]")


def eps_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collects the optimizer's eps of each step."""
    original, seen = Trainer.step, list[float]()

    def noting(trainer: Trainer) -> None:
        original(trainer)
        seen.append(trainer.optimizer.eps)

    monkeypatch.setattr(Trainer, "step", noting)
    return seen


def test_a_run_at_the_base_is_the_standard_run(config: Callable[..., Config], tmp_path: Path) -> None:
    sizes = ("model=gpt", *RARELY, "sampler=full", "schedule.layers=[4]", "schedule.ends=[1]")
    base = ("model.parametrization=completep", "model.base_hidden=16", "model.base_layers=4")
    train(config(*sizes), tmp_path / "standard")
    train(config(*sizes, *base), tmp_path / "completep")
    rows = [without_clocks(read_rows(tmp_path / name)) for name in ("standard", "completep")]
    assert rows[0] == rows[1]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("standard", "completep")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), id="lvps"),
        pytest.param(
            ("model=bert", "model.norm=pre", "expander=net2net", "expander.moments=new"),
            id="bert",
        ),
        pytest.param(("expander=net2net", "expander.moments=new", "sampler=shallow"), id="net2net"),
        pytest.param(("expander.moments=map", "optim.kind=muon"), id="muon", marks=pytest.mark.slow),
    ],
)
def test_a_resume_across_a_growth_is_exact(
    words: tuple[str, ...], config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """m_N = 2; m_L = 1 until step 6, then 2: so many times smaller is eps."""
    settings = config(*BASE, *RARELY, *GROWS, *words)
    result = train(settings, tmp_path / "straight")
    assert read_rows(tmp_path / "straight")[-1]["flops"] == result.plan.flops
    seen = eps_of_steps(monkeypatch)
    interrupt(lambda: train(settings, tmp_path / "run"), 6, monkeypatch)
    interrupt(lambda: resume(tmp_path / "run"), 7, monkeypatch)
    assert seen[-2:] == [1e-8 / 2, 1e-8 / 4]
    resume(tmp_path / "run")
    assert without_clocks(read_rows(tmp_path / "run")) == without_clocks(read_rows(tmp_path / "straight"))
    if "expander=net2net" in words:
        before, after = [row["eval/loss"] for row in read_rows(tmp_path / "run") if "growth/to" in row]
        assert after == pytest.approx(before, abs=1e-5)


@pytest.fixture(scope="module")
def finished(config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completep") / "run"
    train(config(*BASE, *RARELY, *GROWS, "checkpoint.keep=9"), folder)
    return folder


@torch.no_grad()
def test_a_finished_run_is_read_with_its_factors_and_its_export_without(finished: Path) -> None:
    tokens = torch.arange(20).view(2, 10)
    run, export = load_trained(finished, Console(quiet=True)).model, load_model(finished / "model")
    assert run.model_config.complete_p
    assert export.model_config.complete_p is None
    torch.testing.assert_close(run.logits(tokens, range(4)), export.logits(tokens, range(4)), rtol=0, atol=1e-5)
    saved = load_file(finished / "checkpoints" / "step_00000012" / "model.safetensors")
    for name, tensor in run.state_dict().items():
        torch.testing.assert_close(tensor, saved[name])


def test_an_early_exit_is_that_of_the_export_and_a_shared_pass_is_that_of_training(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 3 of 4 layers the factor of 4; at step 6, with 2 layers stored, depth 4 is `eval/loss_full_depth`."""

    def losses(*words: str) -> list[float]:
        capsys.readouterr()
        evaluate_models([*words, "--json"])
        return [found["loss"] for found in json.loads(capsys.readouterr().out)]

    (exit_of_run,) = losses(f"run={finished}", "depth=3", "device=cpu")
    trained = load_trained(finished, Console(quiet=True)).model
    tokens = torch.arange(20).view(2, 10)
    whole = trained.trunk(tokens, range(4), gates={3: 0.0})
    torch.testing.assert_close(trained.trunk(tokens, range(3), depth=4), whole)
    (at_end,) = losses(f"run={finished}", "device=cpu")
    assert exit_of_run != at_end == pytest.approx(read_rows(finished)[-1]["eval/loss"], abs=1e-5)
    (shared,) = losses(f"run={finished}", "checkpoint=step_00000006", "depth=4", "device=cpu")
    before = next(row for row in read_rows(finished) if "growth/to" in row)
    assert shared == pytest.approx(before["eval/loss_full_depth"], abs=1e-5)  # fp32 has 5e-7 there


@pytest.mark.parametrize("words", [BASE, ("model=gpt",)], ids=["completep", "standard"])
def test_a_run_begins_at_the_loss_of_its_source_in_either_parametrization(
    words: tuple[str, ...], finished: Path, config: Callable[..., Config], tmp_path: Path
) -> None:
    """Twice as wide, with two more layers that add nothing; in CompleteP no factor is the source's."""
    wide = ("model.hidden=32", "model.heads=4", "model.ffn=64", "model.layers=6", "schedule.layers=[6]")
    train(
        config(
            *words,
            *RARELY,
            *wide,
            "schedule.ends=[1]",
            "expander=lemon",
            f"init_from.path={finished}",
            "expander.moments=reset",
        ),
        tmp_path,
    )
    assert read_rows(tmp_path)[0]["eval/loss"] == pytest.approx(read_rows(finished)[-1]["eval/loss"], abs=1e-4)


def test_width_and_depth_grow_within_a_run_without_a_jump(config: Callable[..., Config], tmp_path: Path) -> None:
    widths = ("schedule.widths=[0.5,1]", "expander=lemon", "expander.moments=reset", "sampler=shallow")
    train(config(*BASE, *RARELY, *GROWS, *widths), tmp_path)
    before, after = [row["eval/loss"] for row in read_rows(tmp_path) if "growth/to" in row]
    assert after == pytest.approx(before, abs=1e-5)


MOMENTS = ("init_from.optimizer=true", "expander=net2net", "expander.moments=new", "sampler=shallow")


def test_a_start_with_moments_keeps_the_loss_and_scales_eps(
    finished: Path, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 layers become 8: m_N = 2, m_L = 4."""
    seen = eps_of_steps(monkeypatch)
    deep = ("model.layers=8", "schedule.layers=[8]", "schedule.ends=[1]", f"init_from.path={finished}")
    train(config(*BASE, *RARELY, *deep, *MOMENTS), tmp_path)
    assert read_rows(tmp_path)[0]["eval/loss"] == pytest.approx(read_rows(finished)[-1]["eval/loss"], abs=1e-5)
    assert set(seen) == {1e-8 / 8}


def test_a_start_with_moments_in_another_parametrization_is_refused(
    finished: Path, config: Callable[..., Config], tmp_path: Path
) -> None:
    same = (*RARELY, "schedule.layers=[4]", "schedule.ends=[1]", f"init_from.path={finished}", *MOMENTS)
    base = (
        "type model.parametrization=completep model.base_hidden=8 model.base_layers=2 model.base_heads=1, as it has"
    )
    with pytest.raises(ConfigError, match=base):
        train(config("model=gpt", *same), tmp_path)
