"""Runs whose width grows between two stages, and the initialization of the larger model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from apollo_cli.config.config import Config
from apollo_cli.errors import ConfigError
from apollo_cli.growth.expanders import CopyLayers
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.rng import Purpose, generator
from apollo_cli.models.build import build
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.training.device import choose
from apollo_cli.training.init_from.weights import enlarged, init_from_smaller
from apollo_cli.training.planning import make_plan
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, STEPS, read_rows
from tests.training.test_methods import weights
from tests.training.test_resume import assert_same, interrupt

HALF = ("sampler=shallow", "schedule.layers=[4,4]", "schedule.ends=[0.5,1]", "schedule.widths=[0.5,1]")
FPI = ("expander=bert2bert", "expander.width=fpi", *HALF)
BOTH = ("expander=bert2bert", "model.heads=4", "schedule.widths=[0.25,0.5,1]")  # AKI, and 1, 2, 4 layers
OFTEN = ("batch.micro=4", "checkpoint.every=1", "checkpoint.keep=100")
GROWN = 6  # the step before which all of these become as wide as they get


def planned(config: Config) -> Plan:
    return make_plan(config, choose(config.run))


def moved(run_dir: Path, step: int) -> set[str]:
    """The parameters that the update after this step changed; those of a layer as `blocks.N`."""
    before, after = weights(run_dir, step), weights(run_dir, step + 1)
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return {".".join(name.split(".")[:2]) if name.startswith("blocks.") else name.split(".")[0] for name in names}


def grown(words: tuple[str, ...], config: Callable[..., Config], folder: Path) -> tuple[Trainer, dict[str, Tensor]]:
    """The trainer at its end, and the weights as its last growth left them."""
    seen: list[Any] = []
    original = Trainer.enlarge

    def watched(trainer: Trainer, *arguments: Any) -> None:
        original(trainer, *arguments)
        seen[:] = [trainer, {name: t.clone() for name, t in trainer.model.state_dict().items()}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "enlarge", watched)
        train(config(*words), folder)
    return seen[0], seen[1]


def test_flops_of_a_narrow_stage_by_hand(config: Callable[..., Config]) -> None:
    """h = 8 of 16, f = 16 of 32; 16 tokens in each of 4 rows a step, 15 predictions a row, a vocabulary of 300."""
    plan = planned(config("model=gpt", *FPI))
    narrow = 4 * (16 * 4 * (8 * 8**2 + 4 * 8 * 16 + 4 * 8 * 16) + 15 * 2 * 8 * 300)
    whole = 4 * (16 * 4 * (8 * 16**2 + 4 * 16 * 32 + 4 * 16 * 16) + 15 * 2 * 16 * 300)
    assert [stage.flops for stage in plan.stages] == [6 * 3 * narrow, 6 * 3 * whole]
    assert plan.scratch_flops == 12 * 3 * whole
    assert [stage["width"] for stage in plan.as_dict()["stages"]] == [0.5, 1]


@pytest.mark.parametrize("kind", ["bert", "gpt", "llama"])
def test_a_narrow_stage_costs_what_a_model_of_that_size_costs(kind: str, config: Callable[..., Config]) -> None:
    halves, _ = planned(config(f"model={kind}", *FPI)).stages
    small = ("model.hidden=8", "model.heads=1", "model.ffn=16", "schedule.layers=[4,4]", "schedule.ends=[0.5,1]")
    plain, _ = planned(config(f"model={kind}", "sampler=shallow", *small)).stages
    for name in ("flops", "parameters", "memory_bytes", "sent_bytes", "depth_counts"):
        assert getattr(halves, name) == getattr(plain, name)


def test_a_budget_of_flops_is_filled_by_narrow_stages_too(config: Callable[..., Config]) -> None:
    plan = planned(config(*FPI, "budget.steps=null", "budget.flops=1e9"))
    assert plan.flops <= 1e9
    assert planned(config(*FPI, f"budget.steps={plan.steps + 1}")).flops > 1e9


@pytest.mark.parametrize(
    ("kind", "words"),
    [("gpt", BOTH), pytest.param("bert", (*FPI, "model.dropout=0.1"), marks=pytest.mark.slow)],
)
def test_a_run_stopped_around_the_growth_is_resumed_exactly(
    kind: str,
    words: tuple[str, ...],
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(f"model={kind}", *RARELY, *words)
    result = train(settings, tmp_path / "straight")
    assert read_rows(tmp_path / "straight")[-1]["flops"] == result.plan.flops
    goes = (lambda: train(settings, tmp_path / "run"), *[lambda: resume(tmp_path / "run")] * 2)
    for step, go in enumerate(goes, GROWN - 1):
        interrupt(go, step, monkeypatch)
        torch.manual_seed(999)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_units_are_copied_and_their_readers_are_divided(config: Callable[..., Config], tmp_path: Path) -> None:
    """By formula, from the seed of the stage: draws for heads first, then the residual stream, then the FFN."""
    _, after = grown(("model=gpt", *FPI, *OFTEN), config, tmp_path)
    before, rng = weights(tmp_path, GROWN), generator(0, Purpose.GROWTH, 1)  # a checkpoint is of before the growth
    rng.integers(1, size=1)
    residual, inside = (np.concatenate([np.arange(n), rng.integers(n, size=n)]) for n in (8, 16))
    copies = torch.from_numpy(np.bincount(residual)[residual])
    assert torch.equal(after["tokens.weight"], before["tokens.weight"][:, residual])
    for layer in range(4):
        name = f"blocks.{layer}.ffn_in.weight"
        torch.testing.assert_close(after[name], before[name][inside][:, residual] / copies, rtol=1e-6, atol=0)


def test_after_the_growth_every_parameter_trains_and_the_optimizer_has_no_other(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    trainer, _ = grown(("model=bert", *BOTH, *OFTEN), config, tmp_path)
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == set(trainer.model.parameters()) == set(trainer.optimizer.state)
    head = {"transform", "transform_norm", "head_bias", "embedding_norm"}
    embeddings = {"tokens", "positions", "segments"}
    assert moved(tmp_path, GROWN + 1) == {f"blocks.{i}" for i in range(4)} | head | embeddings
    state = load_file(tmp_path / "checkpoints" / f"step_{STEPS:08d}" / "optimizer.safetensors")
    assert {int(t) for name, t in state.items() if name.endswith("/step")} == {STEPS - GROWN}


@pytest.mark.parametrize(("kind", "layers"), [("gpt", "[2,4]"), ("bert", "[4,4]")])
def test_lemon_keeps_the_loss_at_growth(
    kind: str, layers: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    train(config(f"model={kind}", *RARELY, "expander=lemon", *HALF, f"schedule.layers={layers}"), tmp_path)
    before, after = [row for row in read_rows(tmp_path) if "growth/to" in row]
    assert (before["width"], after["width"]) == (0.5, 1)
    assert (before["stage"], after["stage"]) == (1, 2)
    assert after["eval/loss"] == pytest.approx(before["eval/loss"], abs=2e-5)


def test_every_growth_is_in_the_summary(config: Callable[..., Config], tmp_path: Path) -> None:
    trainer, _ = grown(("model=gpt", *RARELY, *BOTH), config, tmp_path)
    ends = [{k: v for k, v in growth.items() if "loss" not in k} for growth in trainer.state.growths]
    assert ends == [
        {"step": 3, "from": 1, "to": 2, "width_from": 0.25, "width_to": 0.5},
        {"step": 6, "from": 2, "to": 4, "width_from": 0.5, "width_to": 1},
    ]
    assert [row["stage"] for row in read_rows(tmp_path) if "growth/to" in row] == [1, 2, 2, 3]


def test_a_source_may_be_as_narrow_as_the_first_stage(config: Callable[..., Config], tmp_path: Path) -> None:
    small = ("model.layers=2", "model.hidden=8", "model.heads=1", "model.ffn=16", "schedule.layers=[2]")
    train(config("model=gpt", *RARELY, *small, "schedule.ends=[1]"), tmp_path / "source")
    plan = train(config("model=gpt", *RARELY, *FPI, f"init_from.path={tmp_path / 'source'}"), tmp_path / "run").plan
    assert plan.source.flops
    end = read_rows(tmp_path / "source")[-1]["eval/loss"]
    assert read_rows(tmp_path / "run")[0]["eval/loss"] == pytest.approx(end, abs=0.5)
    quarter = (*FPI, "model.heads=4", "schedule.widths=[0.25,1]", f"init_from.path={tmp_path / 'source'}")
    with pytest.raises(
        ConfigError, match=r"hidden=4 is less than the source's 8: nothing shrinks \(in the first stage, of .*0\.25"
    ):
        planned(config("model=gpt", *quarter))


def test_enlarging_draws_no_random_numbers_of_torch() -> None:
    model_config = ModelConfig("bert", vocabulary=31, positions=12, hidden=8, heads=2, ffn=12, layers=2)
    narrow, rng = build(model_config, 2), torch.get_rng_state()
    large = replace(model_config, hidden=16, heads=4, ffn=24)
    random = np.random.default_rng(0)
    wide = enlarged(
        narrow, large, 3, lambda wide, narrow: init_from_smaller(wide, narrow, CopyLayers("stack"), random)
    )
    assert torch.equal(torch.get_rng_state(), rng)
    assert wide.model_config == large
    assert len(wide.blocks) == 3
    assert all(parameter.isfinite().all() for parameter in wide.parameters())
