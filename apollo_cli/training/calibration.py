"""The duration of a micro-step on this machine, for a budget in seconds."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np

from apollo_cli.config.config import Config
from apollo_cli.data.batches import Task, TrainingBatches
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.models.build import build
from apollo_cli.training.device import Device
from apollo_cli.training.optimizer import build_optimizer

_REPEATS = 5


def seconds_by_depth(config: Config, device: Device, task: Task, width: float = 1.0) -> Callable[[int], float]:
    """Seconds of a micro-step by depth: a + b depth, timed on random rows at depth 1 and L, at this width."""
    target = config.model.layers
    rows = np.random.default_rng(0).integers(config.data.vocab_size, size=(64, config.data.seq_len))
    share = device.shared_by(config.run)
    batches = TrainingBatches(rows, task, 0, config.batch.size, config.batch.micro_size, processes=share)

    def measure(depth: int) -> float:
        model = build(config.model_config.narrowed(width), depth).to(device.device)
        device.compile_blocks(model.blocks)
        optimizer = build_optimizer(model, config.optim)
        times = []
        for repeat in range(_REPEATS + 1):
            device.synchronize()
            start = perf_counter()
            with device.autocast():
                loss = model.loss(
                    batches.micro_batch(repeat, 0).to(device.device), layer_map("nearest", depth, depth)
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            device.synchronize()
            times.append(perf_counter() - start)
        return median(times[1:])  # the first one includes warm-up and compilation

    shallow = measure(1)
    slope = max(0.0, (measure(target) - shallow) / (target - 1)) if target > 1 else 0.0
    return lambda depth: shallow + slope * (depth - 1)
