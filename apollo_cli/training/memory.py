"""Memory of a run: the number of pieces of a micro-batch, the peak, the check that a run fits."""

import ctypes
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from apollo_cli import files
from apollo_cli.errors import ConfigError
from apollo_cli.growth.plan import Plan
from apollo_cli.models.activation_memory import ActivationMemory
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch
from apollo_cli.training.device import Device

MIN_TOKENS = 1024  # of a piece: fewer do not keep a processor busy
CPU_ACTIVATIONS = 420_000_000  # bytes; more at once is no faster
# Measured at nano and mini on Linux (benchmarks/SPEED.md): Python, torch and all libraries; and the size of the
# heap over that of its tensors, where gradients that are kept from piece to piece fragment it.
_PROCESS, _HEAP_IN_PIECES = 400_000_000, 1.17
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_TOLERANCE = 2  # the plan's number is an estimate: a run that needs less than twice the memory is tried


def activation_limit(device: Device) -> int:
    """Bytes of activations to keep at once: of a GPU half of its memory, beside the training state."""
    return CPU_ACTIVATIONS if device.device.type == "cpu" else total_bytes(device) // 2


def keep_freed_memory(device: Device) -> None:
    """On a CPU, has glibc keep up to 512 MiB for the next tensors: faults of new pages take a tenth of a step."""
    if device.device.type == "cpu":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, 1 << 25)  # the largest that it takes
            mallopt(_TRIM_THRESHOLD, 1 << 29)


def num_pieces(memory: ActivationMemory, rows: int, seq_len: int, depth: int, limit: int) -> int:
    """The number of equal pieces of a micro-batch that runs `depth` layers.

    Activations are kept for each layer that runs; those of a piece stay below `limit` bytes. An early stage whose
    stored layers are shared over all L keeps no more than the last stage, so sharing parts nothing by itself.
    Gradients add up, so the step is the same. A power of two, so that few sizes occur; no piece is too small to be
    fast.
    """
    tokens = rows * seq_len
    kept, count = tokens * depth * memory.bytes_per_layer, 1
    while kept > count * limit and rows % (2 * count) == 0 and tokens >= 2 * count * MIN_TOKENS:
        count *= 2
    return count


def pieces_of(batch: Batch, model_config: ModelConfig, depth: int, device: Device, limit: int) -> Sequence[Batch]:
    """The equal pieces of a micro-batch that runs `depth` layers of this model, see `num_pieces`."""
    memory = ActivationMemory(model_config, device.device.type, device.bf16)
    rows, seq_len = batch.tokens.shape
    return batch.chunks(num_pieces(memory, rows, seq_len, depth, limit))


def check_fits_in_memory(plan: Plan, device: Device) -> None:
    """Raises a ConfigError for a run that needs far more memory than the device has."""
    available = total_bytes(device)
    needed = max(stage.memory_bytes for stage in plan.stages)
    if needed > _TOLERANCE * available:
        raise ConfigError(
            f"a stage needs about {files.in_units(needed)} of memory and {device.name} has "
            f"{files.in_units(available)}: make batch.micro (or batch.size), data.seq_len, data.vocab_size, "
            "model.hidden, model.ffn or model.layers smaller; plan=true shows the need of each stage"
        )


def total_bytes(device: Device) -> int:
    """Memory of the device."""
    on_gpu = device.device.type == "cuda"
    return torch.cuda.mem_get_info(device.device)[1] if on_gpu else psutil.virtual_memory().total


def process_bytes(device: Device, tensors: int, pieces: int) -> int:
    """Estimate of `peak_bytes` from the bytes of all tensors."""
    if device.device.type == "cuda":
        return tensors
    return _PROCESS + (tensors if pieces == 1 else round(_HEAP_IN_PIECES * tensors))


def peak_bytes(device: Device) -> int:
    """Peak memory of this process since `reset_peak`, or since its start where the system cannot reset it."""
    if device.device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak(device: Device) -> None:
    """Resets `peak_bytes`, where the system can."""
    if device.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device.device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
