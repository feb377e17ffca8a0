"""The state of a run: counters, weights, moments and random number generators. Data only."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from apollo_cli.errors import CheckpointError


@dataclass
class TrainerState:
    """Where a run is; all of it is in every checkpoint.

    Attributes:
        step: optimizer updates done.
        flops: model FLOPs done, exact.
        train_seconds: in steps alone: no evaluation, checkpoints, start-up.
        total_seconds: since the first start, without the time between an interruption and its resume.
        loss_sum: of the micro-steps since the last training row.
        loss_count: how many those are.
        loss_max: the highest loss of a step since then.
        norm_max: the highest norm of a gradient since then, before it was clipped.
        skipped_steps: steps that were refused because something was not finite.
        skipped_in_a_row: those since the last update.
        growths: of each growth its step, layers, and validation loss on both sides.
        logged_train_seconds: `train_seconds` at the last training row.
        logged_flops: `flops` there.
        logged_step: `step` there.
        losses: the newest `train/loss` and `eval/...` values.
        metrics_bytes: length of metrics.jsonl.
        data: fingerprint of the corpus.
        run_id: of the run in W&B.
        planned_steps: length of the run; a budget in seconds does not give the same one twice. 0 if not known.
        devices: that shared its micro-steps.
    """

    step: int = 0
    flops: int = 0
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    loss_max: float = 0.0
    norm_max: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    growths: list[dict[str, Any]] = field(default_factory=list)
    logged_train_seconds: float = 0.0
    logged_flops: int = 0
    logged_step: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    metrics_bytes: int = 0
    data: str = ""
    run_id: str = ""
    planned_steps: int = 0
    devices: int = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        layers: stored blocks.
        weights: by name; empty where they are in shards on disk.
        optimizer: AdamW's state by name, likewise.
        rng: of torch.
        progress: where the run is.
        in_shards: no process has it all; each has some of every tensor.
        folder: where it was read.
        width: of the model, as a share of the target's.
    """

    layers: int
    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    rng: dict[str, Tensor]
    state: TrainerState
    in_shards: bool = False
    folder: Path = Path()
    width: float = 1.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Weights and AdamW's state, by one name each."""
        return self.weights | _flat(self.optimizer)

    def read(self) -> "Checkpoint":
        """With its tensors, whole, where they are in shards on disk.

        Raises:
            CheckpointError: they cannot be read.
        """
        if not self.in_shards:
            return self

        from apollo_cli.training.distributed import sharded_files

        try:
            tensors = {name: torch.zeros(size) for name, size in sharded_files.sizes(self.folder).items()}
            sharded_files.read(tensors, self.folder, alone=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {self.folder} cannot be read: {_first_line(error)}") from error
        weights = {name: tensors.pop(name) for name in [*tensors] if "/" not in name}
        return replace(self, weights=weights, optimizer=_nested(tensors), in_shards=False)

    @property
    def num_bytes(self) -> int:
        """About what it takes on disk."""
        tensors = self.tensors.values()
        return sum(t.nbytes for t in tensors) + 1_000 * len(tensors)


def _flat(optimizer: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """AdamW's state as `parameter/key`."""
    return {
        f"{name}/{key}": value.contiguous() for name, state in optimizer.items() for key, value in state.items()
    }


def _nested(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `_flat`."""
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        optimizer.setdefault(parameter, {})[key] = value.clone()  # AdamW works on it; the file may go meanwhile
    return optimizer


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Torch's generators, of the CPU and of `device`; only dropout draws from them after the weights are made."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(*_index(device))
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type], *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """CUDA has a generator for each device, mps has one."""
    return (device,) if device.type == "cuda" else ()
