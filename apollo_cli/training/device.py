"""Where and how precisely to compute."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from apollo_cli.config.config import RunArgs
from apollo_cli.errors import ConfigError
from apollo_cli.training.distributed.group import ALONE, ProcessGroup


@dataclass(frozen=True)
class Device:
    """The device of a run.

    Attributes:
        device: for tensors.
        bf16: matrix products in bfloat16 under autocast; weights stay fp32.
        compile: compile each block.
        ranks: the processes that compute together, a device each.
    """

    device: torch.device
    bf16: bool
    compile: bool
    processes: ProcessGroup = ALONE

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @property
    def runs_ahead(self) -> bool:
        """Whether launching work returns before it is done, so that waiting for its numbers costs time."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Waits until the device has done what it was given, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def name(self) -> str:
        """For people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type} ({torch.get_num_threads()} threads)" if self.device.type == "cpu" else "mps"

    def compiles(self, blocks: Iterable[nn.Module]) -> None:
        """Has each compiled when it runs first, where the run compiles: once for all of them."""
        for block in blocks if self.compile else ():
            block.compile()

    def shared_by(self, run: RunArgs) -> int:
        """How many devices share each micro-step: those that compute together now, or that are to be started."""
        return self.processes.world_size if self.processes.place else run.devices or 1

    def sentence(self, run: RunArgs) -> str:
        """What was decided, and by whom."""
        precision = "bf16 products" if self.bf16 else "fp32"
        compiled = "blocks are compiled" if self.compile else "nothing is compiled"
        why = " (compile=auto: on CUDA alone, a CPU gains nothing from it)" if run.compile == "auto" else ""
        beside = f", with those of {self.processes.world_size - 1} more processes" if self.processes.place else ""
        return f"device: {self.name}{beside}, {precision}, {compiled}{why}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def choose(run: RunArgs, processes: ProcessGroup = ALONE) -> Device:
    """The device, precision and compilation that `auto` means here, or that were asked for.

    Raises:
        ConfigError: the device is not on this machine, or not one for each process.
    """
    name = run.device
    if name == "auto":
        has_mps = torch.backends.mps.is_available() and not processes.place
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    device = torch.device(name)
    if processes.place:
        if device.index is not None or device.type == "mps":
            problem = (
                f"device={name}: {processes.world_size} processes need one each; type device=cuda or device=cpu"
            )
            raise ConfigError([problem])
        if device.type == "cuda":
            one = torch.cuda.device_count() == 1  # srun may let each process see its own alone
            device = torch.device("cuda", 0 if one else processes.local_rank)
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present[device.type]:
        if processes.place and present[device.type]:
            raise ConfigError(
                [
                    f"device {device}: this machine has {present[device.type]}, and at least "
                    f"{processes.local_rank + 1} processes: start one for each device"
                ]
            )
        raise ConfigError([f"device={run.device}: not on this machine; type device=auto or device=cpu"])
    on_gpu = device.type == "cuda"
    return Device(
        device=device,
        # without hardware for it bf16 is hundreds of times slower, so auto never means it on a CPU
        bf16=run.precision == "bf16" or (run.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()),
        compile=on_gpu if run.compile == "auto" else run.compile,
        processes=processes,
    )
