"""Where and how precisely to compute."""

import platform
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from apollo_cli.config.config import RunArgs
from apollo_cli.errors import ConfigError
from apollo_cli.training.distributed.group import ALONE, ProcessGroup


@dataclass(frozen=True)
class Device:
    """The device of a run."""

    device: torch.device  # for tensors
    bf16: bool  # matrix products in bfloat16 under autocast; weights stay fp32
    compile: bool  # compile each block
    processes: ProcessGroup = ALONE  # of the run, one device each
    graphs: bool = False  # replay micro-steps and updates as CUDA graphs

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """That of matrix products."""
        return "bf16" if self.bf16 else "fp32"

    @property
    def runs_ahead(self) -> bool:
        """Whether launching work returns before it is done, so that waiting for its result costs time."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Waits until the device has done its work, so that a clock can measure it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type} ({torch.get_num_threads()} threads)" if self.device.type == "cpu" else "mps"

    def compile_blocks(self, blocks: Iterable[nn.Module]) -> None:
        """If the run compiles, has each block compiled when it runs first, with one graph for all."""
        for block in blocks if self.compile else ():
            block.compile()

    def shared_by(self, run: RunArgs) -> int:
        """How many devices share each micro-step: those of the running processes, or those to be launched."""
        return self.processes.world_size if self.processes.env else run.devices or 1

    def needs_launch(self, run: RunArgs) -> bool:
        """Whether other processes are to be started, which train instead of this one."""
        return self.shared_by(run) > self.processes.world_size

    def sentence(self, run: RunArgs) -> str:
        """A line for the console: device, precision, compilation, and why."""
        precision = "bf16 products" if self.bf16 else "fp32"
        compiled = "blocks are compiled" if self.compile else "nothing is compiled"
        why = " (compile=auto: on CUDA alone, a CPU gains nothing from it)" if run.compile == "auto" else ""
        others = self.processes.world_size - 1
        beside = f", with those of {others} more process{'es' * (others != 1)}" if self.processes.env else ""
        return f"device: {self.name}{beside}, {precision}, {compiled}{why}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def choose(run: RunArgs, processes: ProcessGroup = ALONE) -> Device:
    """The device, precision and compilation of a config; `auto` depends on this machine.

    A ConfigError if the device is not on this machine, or there is not one for each process.
    """
    if processes.env and run.devices not in (None, processes.world_size):
        raise ConfigError(
            f"devices={run.devices}: {processes.world_size} processes were started already; leave it out"
        )
    name = run.device
    if name == "auto":
        has_mps = torch.backends.mps.is_available() and not processes.env
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    device = torch.device(name)
    if processes.env:
        if device.index is not None or device.type == "mps":
            problem = (
                f"device={name}: {processes.world_size} processes need one each; type device=cuda or device=cpu"
            )
            raise ConfigError(problem)
        if device.type == "cuda":
            one = torch.cuda.device_count() == 1  # srun may show each process its own device only
            device = torch.device("cuda", 0 if one else processes.local_rank)
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present[device.type]:
        if processes.env and present[device.type]:
            raise ConfigError(
                f"device {device}: this machine has {present[device.type]}, and at least "
                f"{processes.local_rank + 1} processes: start one for each device"
            )
        raise ConfigError(f"device={run.device}: not on this machine; type device=auto or device=cpu")
    on_gpu = device.type == "cuda"
    if run.compile == "graphs" and not on_gpu:
        raise ConfigError(f"compile=graphs: {device} has no CUDA graphs; type compile=auto")
    return Device(
        device=device,
        bf16=run.precision == "bf16" or (run.precision == "auto" and multiplies_in_bf16(device)),
        compile=on_gpu if run.compile == "auto" else bool(run.compile),
        processes=processes,
        graphs=run.compile == "graphs",
    )


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether a GPU or an x86 CPU multiplies in bf16; others were not measured."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))


def emulates_bf16(device: torch.device) -> bool:
    """Whether it is an x86 CPU without bf16, where such a product takes hundreds of times longer."""
    is_x86 = device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and not multiplies_in_bf16(device)
