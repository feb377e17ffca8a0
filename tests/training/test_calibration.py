"""How long a plan takes: by the rate of this device, or of a named one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from torch import Tensor

from apollo_cli.config.config import Config, PlanDevice
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.training import calibration, memory
from apollo_cli.training.calibration import estimated_duration, seconds_by_depth
from apollo_cli.training.device import Device, choose
from apollo_cli.training.planning import make_plan, make_task


def test_a_named_gpu_is_bound_by_its_products_or_by_the_start_of_each_layer(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_gpu = config("plan_device=a100")
    plan = make_plan(of_gpu, choose(of_gpu.run))
    layers = sum(depth * n for part in plan.stages for depth, n in part.depth_counts.items())
    assert estimated_duration(plan, of_gpu, choose(of_gpu.run))[0] == pytest.approx(layers * 0.031 / 12, rel=0.01)
    monkeypatch.setattr(calibration, "_SECONDS_A_LAYER", 0.0)
    seconds, source = estimated_duration(plan, of_gpu, choose(of_gpu.run))
    assert seconds == pytest.approx(plan.flops / (0.26 * 312e12))
    assert source.startswith("a100 in bf16 at 26% of 312 TFLOP/s; memory and traffic above are those of a run on ")


def test_a_map_takes_time_too(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(config(), choose(config().run))
    of_gpu = config("plan_device=a100")
    with_map = replace(plan, maps={1: 312 * 10**12})
    seconds = [estimated_duration(each, of_gpu, choose(of_gpu.run))[0] for each in (plan, with_map)]
    assert seconds[1] - seconds[0] == pytest.approx(1 / 0.26)
    of_two = [replace(each, step_cost=replace(plan.step_cost, devices=2)) for each in (plan, with_map)]
    seconds = [estimated_duration(each, of_gpu, choose(of_gpu.run))[0] for each in of_two]
    assert seconds[1] - seconds[0] == pytest.approx(1 / 0.26)  # each learns the whole map
    monkeypatch.setattr(calibration, "_layer_rate", lambda *_: 1e9)
    seconds = [estimated_duration(each, config(), choose(config().run))[0] for each in of_two]
    assert seconds == pytest.approx([plan.flops / 2e9, plan.flops / 2e9 + 312e3])


def test_every_gpu_that_may_be_typed_has_a_speed() -> None:
    assert set(calibration.GPUS) == set(get_args(PlanDevice))


def test_a_micro_step_is_timed_in_the_pieces_of_training_with_its_share_of_the_update(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: set[int] = set()
    loss = LanguageModel.loss

    def watched(model: LanguageModel, batch: Batch, *rest: Any) -> Tensor:
        rows.add(len(batch.tokens))
        return loss(model, batch, *rest)

    def timed(run: Callable[[], None], device: Device) -> list[float]:
        run()
        return [4.0 if run.__name__ == "step" else 1.0]

    monkeypatch.setattr(LanguageModel, "loss", watched)
    monkeypatch.setattr(calibration, "_seconds", timed)
    monkeypatch.setattr(memory, "MIN_TOKENS", 16)
    monkeypatch.setattr(memory, "CPU_ACTIVATIONS", 1)
    of_two = config("batch.size=8", "batch.micro=4")  # rows of 16 tokens
    assert seconds_by_depth(of_two, choose(of_two.run), make_task(of_two))(3) == 1.0 + 4.0 / 2
    assert rows == {1}


def test_this_device_is_timed(config: Callable[..., Config]) -> None:
    plan = make_plan(config(), choose(config().run))
    seconds, source = estimated_duration(plan, config(), choose(config().run))
    assert 1e-5 < seconds < 60  # 4e7 FLOPs
    assert "GFLOP/s in a layer timed now" in source
