"""How long micro-steps and plans take: timed on this machine, or estimated for a named GPU."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from statistics import median
from time import perf_counter

import numpy as np
import torch

from apollo_cli.config.config import Config, PlanDevice
from apollo_cli.data.batches import Task, TrainingBatches
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.growth.plan import Plan
from apollo_cli.models.build import build
from apollo_cli.models.flops import FORWARD_AND_BACKWARD, layer_flops
from apollo_cli.training.device import Device
from apollo_cli.training.memory import activation_limit, pieces_of
from apollo_cli.training.optimizer import build_optimizer

_REPEATS = 5
_SAMPLE_TOKENS = 512  # of a layer that is timed for an estimate

# Dense bf16 products in FLOP/s, NVIDIA's data sheets (v100: fp16).
GPUS: dict[PlanDevice, float] = {
    "h200": 989e12,
    "h100": 989e12,
    "a100": 312e12,
    "l40s": 362e12,
    "rtx4090": 165e12,
    "v100": 125e12,
}
# Measured on one H100 (benchmarks/SPEED.md, "On a GPU"): BERT-Base reaches 26 % of the peak, and no layer of a
# smaller model takes less than 31 ms / 12, for the host has to start it.
_SHARE_OF_PEAK, _SECONDS_A_LAYER = 0.26, 0.0026


def estimated_duration(plan: Plan, config: Config, device: Device) -> tuple[float, str]:
    """The training seconds of a plan, roughly, and where they come from.

    They are those on `plan_device`, or on this device by the rate of one layer, timed now.
    """
    devices = plan.step_cost.devices
    if name := config.run.plan_device:
        rate = GPUS[name] * _SHARE_OF_PEAK * devices
        seconds = plan.map_flops / (rate / devices) + sum(  # each device learns the whole map
            count * max(plan.flops_of(part.stage.first_step, depth) / rate, depth * _SECONDS_A_LAYER)
            for part in plan.stages
            for depth, count in part.depth_counts.items()
        )
        per_device = f"{devices} x {name}" if devices > 1 else name
        return seconds, (
            f"{per_device} in bf16 at {_SHARE_OF_PEAK:.0%} of {GPUS[name] / 1e12:.0f} TFLOP/s; memory and traffic "
            f"above are those of a run on {device.name}"
        )
    rate = _layer_rate(config, device)
    seconds = ((plan.flops - plan.map_flops) / devices + plan.map_flops) / rate
    return seconds, f"{device.name}, {rate / 1e9:.3g} GFLOP/s in a layer timed now"


def _layer_rate(config: Config, device: Device) -> float:
    """Model FLOPs a second of the forward and backward pass of one layer of this model on this device."""
    model_config, seq_len = config.model_config, config.data.seq_len
    rows = max(1, _SAMPLE_TOKENS // seq_len)
    block = build(replace(model_config, vocabulary=64), 1).to(device.device).blocks[0]
    hidden = torch.randn(rows, seq_len, model_config.hidden, device=device.device)
    flops = FORWARD_AND_BACKWARD * layer_flops(model_config, rows, seq_len, rows * seq_len)

    def run() -> None:
        with device.autocast():
            output = block(hidden)
        output.float().sum().backward()

    return flops / min(_seconds(run, device))  # other programs on the machine can only add to it


def _seconds(run: Callable[[], None], device: Device) -> list[float]:
    """The duration of each of some calls, without the first one, which includes warm-up and compilation."""
    times = []
    for _ in range(_REPEATS + 1):
        device.synchronize()
        start = perf_counter()
        run()
        device.synchronize()
        times.append(perf_counter() - start)
    return times[1:]


def seconds_by_depth(config: Config, device: Device, task: Task, width: float = 1.0) -> Callable[[int], float]:
    """Seconds of a micro-step by depth: a + b depth, timed on random rows at depth 1 and L, at this width.

    With its share of the update, of which a step has one.
    """
    target, limit = config.model.layers, activation_limit(device)
    rows = np.random.default_rng(0).integers(config.data.vocab_size, size=(64, config.data.seq_len))
    share = device.shared_by(config.run)
    batches = TrainingBatches(rows, task, 0, config.batch.size, config.batch.micro_size, processes=share)

    def measure(depth: int) -> float:
        model = build(config.model_config.narrowed(width), depth).to(device.device)
        device.compile_blocks(model.blocks)
        optimizer = build_optimizer(model, config.optim)
        path = layer_map("nearest", depth, depth)
        numbers = count()

        def backward() -> None:
            optimizer.zero_grad()
            batch = batches.micro_batch(next(numbers), 0).to(device.device)
            pieces = pieces_of(batch, model.model_config, depth, device, limit)
            for piece in pieces:
                with device.autocast():
                    loss = model.loss(piece, path)
                (loss / len(pieces)).backward()

        seconds = median(_seconds(backward, device))
        return seconds + median(_seconds(optimizer.step, device)) / config.batch.accumulation

    shallow = measure(1)
    slope = max(0.0, (measure(target) - shallow) / (target - 1)) if target > 1 else 0.0
    return lambda depth: shallow + slope * (depth - 1)
