"""Checkpoints: whole or not there, checked by content, the newest few kept."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from apollo_cli import files
from apollo_cli.errors import CheckpointError

FORMAT = 1


@dataclass
class Progress:
    """Where a run is; all of it is in every checkpoint.

    Attributes:
        step: optimizer updates done.
        flops: model FLOPs done, exact.
        train_seconds: in steps alone: no evaluation, checkpoints, start-up.
        total_seconds: since the first start, without the time between an interruption and its resume.
        loss_sum: of the micro-steps since the last training row.
        loss_count: how many those are.
        logged_train_seconds: `train_seconds` at the last training row.
        logged_flops: `flops` there.
        logged_step: `step` there.
        losses: the newest `train/loss` and `eval/...` values.
        metrics_bytes: length of metrics.jsonl.
        data: fingerprint of the corpus.
        run_id: of the run in W&B.
    """

    step: int = 0
    flops: int = 0
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    logged_train_seconds: float = 0.0
    logged_flops: int = 0
    logged_step: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    metrics_bytes: int = 0
    data: str = ""
    run_id: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: `layers` blocks of weights, AdamW's state by name, torch's RNG, progress."""

    layers: int
    weights: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    rng: dict[str, Tensor]
    progress: Progress


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_00001234/` and `latest`, a file with the newest one's name."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint under a temporary name, syncs it, renames it, drops the oldest."""
        final = self.folder / f"step_{checkpoint.progress.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(checkpoint.weights, temporary / "model.safetensors")
        torch.save({"optimizer": checkpoint.optimizer, "rng": checkpoint.rng}, temporary / "state.pt")
        contents = ("model.safetensors", "state.pt")
        meta = {
            "format": FORMAT,
            "layers": checkpoint.layers,
            "progress": asdict(checkpoint.progress),
            "sha256": {name: _digest(temporary / name) for name in contents},
        }
        meta["sha256_of_meta"] = _digest_of_meta(meta)
        for name in contents:
            files.sync_file(temporary / name)
        files.write_json(temporary / "meta.json", meta)
        for path in self._newest_first():
            if path.name >= final.name:  # a damaged one that a resume passed over: this run writes it again
                shutil.rmtree(path)
        temporary.rename(final)
        files.write_text(self.folder / "latest", final.name + "\n")
        for old in self._newest_first()[self.keep :]:
            shutil.rmtree(old)
        return final

    def load_newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint; None where none was ever written.

        Args:
            say: takes a line about each damaged one that is passed over.

        Raises:
            CheckpointError: there are some and all are damaged.
        """
        problems = []
        for path in self._newest_first():
            try:
                return _load(path)
            except CheckpointError as error:
                problems.append(str(error))
                say(f"{error}; trying the one before")
        if problems:
            raise CheckpointError("no checkpoint can be read:\n" + "\n".join(f"  - {p}" for p in problems))
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"), reverse=True)


def _load(path: Path) -> Checkpoint:
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if meta.pop("sha256_of_meta") != _digest_of_meta(meta):
            raise CheckpointError(f"checkpoint {path}: meta.json is damaged (its checksum differs)")
        for name, expected in meta["sha256"].items():
            if _digest(path / name) != expected:
                raise CheckpointError(f"checkpoint {path}: {name} is damaged (its checksum differs)")
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        return Checkpoint(
            layers=meta["layers"],
            weights=load_file(path / "model.safetensors"),
            optimizer=state["optimizer"],
            rng=state["rng"],
            progress=Progress(**meta["progress"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error!r}") from error
    except (RuntimeError, UnpicklingError, SafetensorError) as error:  # whole, yet not written by us
        raise CheckpointError(f"checkpoint {path} holds something that is refused: {_first_line(error)}") from error


def _digest_of_meta(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
