"""Whether a run can fit into the memory of this machine at all."""

import os

import torch

from apollo_cli import files
from apollo_cli.errors import ConfigError
from apollo_cli.growth.plan import Plan
from apollo_cli.training.device import Device

_DOUBT = 2  # the plan's figure is an estimate: what needs less than twice the memory is tried


def refuse_what_cannot_fit(plan: Plan, device: Device) -> None:
    """Refuses a run before it takes memory that is not there.

    Raises:
        ConfigError: a stage surely needs more than the device has.
    """
    available = total_bytes(device)
    needed = max(stage.memory_bytes for stage in plan.stages)
    if available is not None and needed > _DOUBT * available:
        raise ConfigError(
            [
                f"a stage needs about {files.in_units(needed)} of memory and {device.name} has "
                f"{files.in_units(available)}: make batch.micro (or batch.size), data.seq_len, data.vocab_size, "
                "model.hidden, model.ffn or model.layers smaller; plan=true shows the need of each stage"
            ]
        )


def total_bytes(device: Device) -> int | None:
    """All memory of the device; None where it cannot be asked."""
    if device.device.type == "cuda":
        return torch.cuda.mem_get_info(device.device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
