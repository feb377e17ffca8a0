"""Checkpoints: whole or not there, checked by content, the newest few kept."""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from pickle import UnpicklingError
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from apollo_cli import files
from apollo_cli.errors import CheckpointError, StorageError
from apollo_cli.training.distributed import ALONE, Ranks

FORMAT = 6
_CONTENTS = ("model.safetensors", "optimizer.safetensors", "state.pt")
_CONTENTS_BEFORE_3 = ("model.safetensors", "state.pt")  # which had AdamW's state, too
_SHARDS = "shard-*.safetensors"  # of both, as torch names them
_PIECE = 1 << 22  # bytes that have a checksum of their own, so that all cores can sum up one file
_BLOCK = 1 << 18  # bytes read at once


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
    progress: Progress
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

        from apollo_cli.training import shards

        try:
            tensors = {name: torch.zeros(size) for name, size in shards.sizes(self.folder).items()}
            shards.read(tensors, self.folder, alone=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {self.folder} cannot be read: {_first_line(error)}") from error
        weights = {name: tensors.pop(name) for name in [*tensors] if "/" not in name}
        return replace(self, weights=weights, optimizer=_nested(tensors), in_shards=False)

    @property
    def num_bytes(self) -> int:
        """About what it takes on disk."""
        tensors = self.tensors.values()
        return sum(t.nbytes for t in tensors) + 1_000 * len(tensors)


class _NewerFormat(CheckpointError):
    """A checkpoint that this version cannot read."""


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_00001234/` and `latest`, a file with the newest one's name."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks = ALONE) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self.removal = Thread()  # of what is not kept, beside the steps that follow: that takes as long as a write

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint under a temporary name, syncs it, renames it, drops the oldest.

        Of several processes the first one does; of what is in shards the others add theirs.

        Raises:
            StorageError: it could not be written; what was there before still is.
        """
        final = self.folder / f"step_{checkpoint.progress.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        size = checkpoint.num_bytes
        if not self.ranks.is_first:
            if checkpoint.in_shards:
                with files.writing(final, size):
                    self._write_shards(checkpoint, temporary)
            return final
        self.settle()  # it may be its space that is needed
        try:
            with files.writing(self.folder, 0):
                self._make_folder()
            with files.writing(final, size):
                self._replace(final, temporary, checkpoint)
        except (SafetensorError, RuntimeError) as error:  # how the two libraries say that the disk is full
            raise files.unwritable(final, size, error) from error
        self._drop(self._newest_first()[self.keep :])
        return final

    def _drop(self, old: list[Path]) -> None:
        """Takes these away at once, and from the disk while training goes on."""
        unfinished = [path.with_name(f".{path.name}.tmp") for path in old]
        with suppress(OSError):
            for path, name in zip(old, unfinished, strict=True):
                path.rename(name)
        self.removal = Thread(target=_remove, args=unfinished)
        self.removal.start()

    def settle(self) -> None:
        """Waits until what is not kept is gone from the disk."""
        if self.removal.is_alive():
            self.removal.join()

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir()  # not its parents: a run directory that is gone stays gone
            files.sync_folder(self.folder.parent)

    def _replace(self, final: Path, temporary: Path, checkpoint: Checkpoint) -> None:
        try:
            self._write(checkpoint, temporary)
            for path in self._newest_first():  # damaged ones that a resume passed over come again
                if _step(path) >= checkpoint.progress.step:
                    shutil.rmtree(path)
            files.remove(final)  # no checkpoint, if it is still there: a file of that name
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        files.write_text(self.folder / "latest", final.name + "\n")  # syncs the folder, too

    def _write_shards(self, checkpoint: Checkpoint, folder: Path) -> None:
        """By all processes, once the first one has made the folder.

        Raises:
            StorageError: they do not write into the same one.
        """
        from apollo_cli.training import shards

        self.ranks.highest(0)  # none goes on before all are here
        shards.write(checkpoint.tensors, folder)
        # to the others it may have its final name by now
        if self.ranks.is_first and len(list(folder.glob(_SHARDS))) != self.ranks.size:
            raise StorageError(
                f"{folder}: not all {self.ranks.size} processes wrote there; with distributed=fsdp the run "
                "directory must be on a disk that all machines share"
            )

    def _write(self, checkpoint: Checkpoint, folder: Path) -> None:
        files.remove(folder)
        folder.mkdir()
        writers: dict[str, Callable[[Path], None]] = {
            "state.pt": lambda path: torch.save({"rng": checkpoint.rng}, path),
        }
        if checkpoint.in_shards:
            self._write_shards(checkpoint, folder)
            writers |= {path.name: lambda path: None for path in folder.glob(_SHARDS)}
        else:
            writers |= {
                "model.safetensors": lambda path: save_file(checkpoint.weights, path),
                "optimizer.safetensors": lambda path: save_file(_flat(checkpoint.optimizer), path),
            }
        with ThreadPoolExecutor() as pool:
            written = {name: pool.submit(write, folder / name) for name, write in writers.items()}
            sums, synced = {}, []
            for name, done in written.items():  # while one is summed up and synced, the next one is written
                done.result()
                synced.append(pool.submit(files.sync_file, folder / name))
                sums[name] = [pool.submit(_digest, folder / name, first) for first in _pieces(folder / name)]
            meta = {
                "format": FORMAT,
                "layers": checkpoint.layers,
                "width": checkpoint.width,
                "progress": asdict(checkpoint.progress),
                "sha256": {name: [each.result() for each in digests] for name, digests in sums.items()},
            }
            meta["sha256_of_meta"] = _digest_of_meta(meta)
            (folder / "meta.json").write_text(files.as_json(meta), encoding="utf-8")
            synced.append(pool.submit(files.sync_file, folder / "meta.json"))
            for done in synced:
                done.result()
        files.sync_folder(folder)

    def load_newest(self, say: Callable[[str], None], metrics_bytes: float = math.inf) -> Checkpoint | None:
        """The newest checkpoint that is whole and whose rows are there; None where none was ever written.

        Args:
            say: takes a line about each one that is passed over.
            metrics_bytes: length of metrics.jsonl now.

        Raises:
            CheckpointError: there are some and none can be used.
        """
        for unfinished in self.folder.glob(".step_*.tmp"):  # of a process that was killed
            with suppress(OSError):
                files.remove(unfinished)
        problems = []
        for path in self._newest_first():
            try:
                checkpoint = _load(path)
                if (seen := checkpoint.progress.metrics_bytes) > metrics_bytes:
                    raise CheckpointError(
                        f"checkpoint {path}: metrics.jsonl had {seen} bytes then and has {metrics_bytes} now, rows "
                        "are lost"
                    )
                return checkpoint
            except _NewerFormat:  # an older one would be a step back, and saving would delete this one
                raise
            except CheckpointError as error:
                problems.append(str(error))
                say(f"{error}; trying the one before")
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise CheckpointError(
                f"no checkpoint can be used:\n{listed}\nRestore what is lost from a copy, or begin a new run"
            )
        return None

    def _newest_first(self) -> list[Path]:
        named = [path for path in self.folder.glob("step_*") if path.name.removeprefix("step_").isdecimal()]
        found = [path for path in named if path.is_dir() and not path.is_symlink()]
        return sorted(found, key=_step, reverse=True)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _load(path: Path) -> Checkpoint:
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] > FORMAT:
            raise _NewerFormat(
                f"checkpoint {path}: a newer apollo-train wrote it (format {meta['format']}, this one reads up to "
                f"{FORMAT}); update apollo-train"
            )
        if meta.pop("sha256_of_meta") != _digest_of_meta(meta):
            raise CheckpointError(f"checkpoint {path}: meta.json is damaged (its checksum differs)")
        old = meta["format"] < 3
        in_shards = sorted(name for name in meta["sha256"] if fnmatch(name, _SHARDS))
        for name in _CONTENTS_BEFORE_3 if old else ["state.pt", *in_shards] if in_shards else _CONTENTS:
            if not _is_whole(path / name, meta["sha256"][name]):
                raise CheckpointError(f"checkpoint {path}: {name} is damaged (its checksum differs)")
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        progress = _progress(meta["progress"])
        width = float(meta.get("width", 1.0))  # from format 6 on
        known = Checkpoint(meta["layers"], {}, {}, state["rng"], progress, folder=path, width=width)
        if in_shards:
            return replace(known, in_shards=True)
        return replace(
            known,
            weights=load_file(path / "model.safetensors"),
            optimizer=state["optimizer"] if old else _nested(load_file(path / "optimizer.safetensors")),
        )
    except OSError as error:  # its text names the file
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error!r}") from error
    except (RuntimeError, UnpicklingError, SafetensorError) as error:  # whole, yet not written by us
        raise CheckpointError(f"checkpoint {path} holds something that is refused: {_first_line(error)}") from error


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


def _progress(values: dict[str, Any]) -> Progress:
    """Progress from plain values; a stranger's may be anything."""
    progress, fresh = Progress(**values), Progress()
    for key, value in vars(progress).items():
        expected = type(getattr(fresh, key))
        kinds = (int, float) if expected is float else expected
        if not isinstance(value, kinds) or (isinstance(value, int | float) and value < 0 and key != "loss_sum"):
            raise TypeError(f"progress.{key} is {value!r}")
    numbers = [*progress.losses.values(), *(number for growth in progress.growths for number in growth.values())]
    if not all(number is None or isinstance(number, int | float) for number in numbers):
        raise TypeError("progress has text where numbers should be")
    if not re.fullmatch("[0-9a-f]*", progress.run_id):  # W&B names a folder by it
        raise TypeError(f"progress.run_id is {progress.run_id!r}")
    return progress


def _digest_of_meta(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _is_whole(path: Path, sha256: list[str] | str) -> bool:
    """Whether a file is what its checksums say; before format 4 it had one."""
    if isinstance(sha256, str):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    return [_digest(path, first) for first in _pieces(path)] == sha256


def _pieces(path: Path) -> range:
    """Where the pieces of a file begin."""
    return range(0, path.stat().st_size, _PIECE)


def _digest(path: Path, first: int) -> str:
    """The checksum of the piece that begins there."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(first)
        for _ in range(_PIECE // _BLOCK):
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


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
