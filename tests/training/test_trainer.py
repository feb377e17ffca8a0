import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apollo_cli.config.config import Config
from apollo_cli.growth.layer_maps import LayerMap, layer_map
from apollo_cli.models.hf import load_model
from apollo_cli.training import evaluate, planning
from apollo_cli.training.checkpoint import load_checkpoint
from apollo_cli.training.device import choose
from apollo_cli.training.run import resume, train
from tests.conftest import RARELY, read_rows, without_clocks
from tests.training.test_resume import assert_same, interrupt


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_accumulated_micro_steps_equal_one_large_one(
    kind: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    """At a fixed depth; the gradients differ by the order of a sum alone."""
    words = (f"model={kind}", *RARELY, "sampler=full", "optim.eps=1e-4")  # a larger eps keeps rounding small
    for micro in (1, 4):
        train(config(*words, f"batch.micro={micro}"), tmp_path / str(micro))
    one, four = (load_file(tmp_path / m / "model" / "model.safetensors") for m in ("1", "4"))
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-3, atol=1e-4)
    flops = [json.loads((tmp_path / m / "plan.json").read_text())["flops"] for m in ("1", "4")]
    assert flops[0] == flops[1]


def test_each_micro_step_has_a_depth_of_its_own(config: Callable[..., Config]) -> None:
    settings = config("batch.micro=1", "sampler=uniform")
    first = planning.make_plan(settings, choose(settings.run)).stages[0]
    assert sum(first.depth_counts.values()) == first.stage.steps * 4
    assert len(first.depth_counts) > 1


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_the_validation_loss_is_that_of_the_exported_model_in_transformers(
    kind: str, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    from apollo_cli.training import pretraining

    seen = []
    original = pretraining.EvaluationBatches

    def spy(*arguments: object) -> object:
        seen.append(original(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(pretraining, "EvaluationBatches", spy)
    result = train(config(f"model={kind}", *RARELY, "budget.steps=8"), tmp_path)
    auto = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "model").eval()
    losses, count = 0.0, 0
    for batch, _ in seen[0]:
        with torch.no_grad():
            logits = model(input_ids=batch.tokens).logits.flatten(0, 1)[batch.positions]
        losses += torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").item()
        count += len(batch.targets)
    assert result.losses["eval/loss"] == pytest.approx(losses / count, abs=1e-5)


def test_growth_by_interpolation_keeps_the_loss_at_full_depth(straight: dict[str, Path]) -> None:
    growths = [row for row in read_rows(straight["bert"]) if "growth/to" in row]
    for before, after in zip(growths[::2], growths[1::2], strict=True):
        assert before["eval/loss_full_depth"] == after["eval/loss_full_depth"]


def test_growth_as_soon_as_the_gates_are_open_keeps_the_loss(config: Callable[..., Config], tmp_path: Path) -> None:
    """The second stage is as long as its gates take, 3 steps; the checkpoint at its end has no gate."""
    words = ("expander=msg", "expander.gate_duration=0.25", "sampler=shallow", "optim.lr=1e-2", "log.every=1")
    train(config("model=gpt", *words, "checkpoint.every=100", "checkpoint.keep=9"), tmp_path)
    growths = json.loads((tmp_path / "summary.json").read_text())["growths"]
    assert [growth["step"] for growth in growths] == [3, 6]
    for growth in growths:
        assert growth["eval/loss_before"] == pytest.approx(growth["eval/loss_after"], abs=1e-6)
    assert not load_checkpoint(tmp_path / "checkpoints", "step_00000006").state.gated
    gated = [row["step"] for row in read_rows(tmp_path) if row.get("gated")]
    assert sorted(set(gated)) == [3, 4, 5, 6, 7, 8]  # of steps 6 to 8 those of the last growth


@pytest.mark.parametrize("expander", ["stack", "interpolate"])
def test_after_every_growth_all_layers_are_trained(
    expander: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    words = (*RARELY, f"expander={expander}", "checkpoint.every=1", "checkpoint.keep=100")
    train(config(*words), tmp_path)
    for grown, layers in ((4, 2), (7, 4)):  # the first step of a stage, and its second
        before, after = (
            load_file(tmp_path / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
            for step in (grown, grown + 1)
        )
        blocks = {name.split(".")[1] for name in after if name.startswith("blocks.")}
        assert blocks == {str(i) for i in range(layers)}
        for name in after:
            assert not torch.equal(before[name], after[name]) or _untrainable(name), name


def _untrainable(name: str) -> bool:
    return name.endswith("segments.weight")  # its unused row keeps still; the used one moves


@pytest.mark.parametrize("kind", ["bert", pytest.param("gpt", marks=pytest.mark.slow)])
def test_averaged_weights_are_evaluated_exported_and_resumed(
    kind: str, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"model={kind}", "optim.ema=0.8", "expander.moments=reset")
    depths: list[int] = []

    def noting(kind: str, stored: int, depth: int) -> LayerMap:
        depths.append(depth)
        return layer_map(kind, stored, depth)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "layer_map", noting)
        straight = train(config(*words), tmp_path / "straight")
    assert depths[:3] == [1, 4, 1]  # that of the average at the stored depth alone
    last, averaged = (load_model(tmp_path / "straight" / name) for name in ("model", "model_ema"))
    assert not torch.equal(last.tokens.weight, averaged.tokens.weight)
    assert straight.losses["eval/loss_ema"] != straight.losses["eval/loss"]
    train(config(f"model={kind}", "expander.moments=reset"), tmp_path / "plain")
    plain = [{k: v for k, v in row.items() if k != "eval/loss_ema"} for row in read_rows(tmp_path / "straight")]
    assert without_clocks(plain) == without_clocks(read_rows(tmp_path / "plain"))  # training is the same
    assert not (tmp_path / "plain" / "model_ema").exists()
    interrupt(lambda: train(config(*words), tmp_path / "run"), 7, monkeypatch)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "straight")
    again = load_model(tmp_path / "run" / "model_ema")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in averaged.state_dict().items())


def test_the_clip_is_in_the_config(config: Callable[..., Config], tmp_path: Path) -> None:
    norms = {}
    for clip in ("0", "1e-3"):
        train(config(*RARELY, f"optim.clip={clip}", "log.every=1", "budget.steps=8"), tmp_path / clip)
        norms[clip] = [row["train/grad_norm"] for row in read_rows(tmp_path / clip) if "train/loss" in row]
    assert norms["0"][0] == norms["1e-3"][0]  # the norm before clipping
    assert norms["0"][1:] != norms["1e-3"][1:]


def test_a_run_under_seconds_ends_by_the_clock(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the calibration predicted far too many steps."""
    monkeypatch.setattr(planning, "seconds_by_depth", lambda *_: lambda depth: 1e-5)
    result = train(config("budget.steps=null", "budget.seconds=0.4"), tmp_path)
    rows = read_rows(tmp_path)
    assert result.plan.steps > 10_000
    assert rows[-1]["step"] < 1_000
    assert 0.4 <= rows[-1]["train_seconds"] < 1.5
    assert f"{tmp_path}/model has 1 of 4 layers" in (tmp_path / "train.log").read_text()


def test_blocks_compile(config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    train(config(*RARELY, "compile=true", "budget.steps=8"), tmp_path)
    assert len(compiled) == 1 + 2 + 4


def test_an_exported_model_loads_back(straight: dict[str, Path]) -> None:
    model = load_model(straight["gpt"] / "model")
    weights = load_file(straight["gpt"] / "checkpoints" / "step_00000012" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])
