"""Labels of a run, by which trackers group and filter runs."""

from functools import cache
from typing import Any

import torch

from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.config.config import Config
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.samplers import is_scratch
from apollo_cli.run_directory import read_keys
from apollo_cli.training.device import Device
from apollo_cli.training.summary import git_commit, versions


def labels(config: Config, plan: Plan, device: Device) -> dict[str, Any]:
    """What runs are grouped and filtered by: method, size, and what they were made with."""
    return {
        "method": method(config),
        "scratch": trains_whole(config),
        "target_layers": config.model.layers,
        "size": size(config),
        "parameters": plan.stages[-1].parameters,
        "made_with": {
            "git_commit": git_commit(),
            "device": device.name,
            "devices": device.processes.world_size,
            "precision": device.precision,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
    }


def tags(config: Config) -> tuple[str, ...]:
    """Model, sampler, expander, stages and size; `baseline` where all layers train from the first step."""
    kinds = (config.model.kind, config.sampler.kind, config.expander.kind)
    return (*kinds, _stages(config), size(config), *(["baseline"] if trains_whole(config) else []))


def method(config: Config) -> str:
    """The name of the run and how it grows; equal for runs that differ in their seed."""
    if trains_whole(config):
        return f"{config.run.name}: scratch"
    strength = f" k={config.sampler.k:g}" if hasattr(config.sampler, "k") else ""
    growth = f"{config.sampler.kind}{strength} expander={config.expander.kind} {_stages(config)}"
    return f"{config.run.name}: {growth}"


def trains_whole(config: Config) -> bool:
    return is_scratch(config.schedule.layers, config.model.layers, config.sampler.kind, config.init_from.path)


def size(config: Config) -> str:
    """The option of the group `size` with these layers and this width; else both as numbers."""
    shape = config.model.layers, config.model.hidden
    return _shipped_sizes().get(shape, "{}x{}".format(*shape))


@cache
def _shipped_sizes() -> dict[tuple[int, int], str]:
    models = {path.stem: read_keys(path)["model"] for path in (conf_folder() / "size").glob("*.yaml")}
    return {(model["layers"], model["hidden"]): name for name, model in models.items()}


def _stages(config: Config) -> str:
    until = " until plateaus" if config.schedule.when == "plateau" else ""
    return f"layers={'-'.join(map(str, config.schedule.layers))}{until}"
