"""Checkpoints: whole or not there, checked by content, the newest few kept."""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path
from pickle import UnpicklingError
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from apollo_cli import files
from apollo_cli.errors import CheckpointError, StorageError
from apollo_cli.training.distributed.group import ALONE, ProcessGroup
from apollo_cli.training.state import Checkpoint, TrainerState, _first_line, _flat, _nested

FORMAT = 6
_CONTENTS = ("model.safetensors", "optimizer.safetensors", "state.pt")
_CONTENTS_BEFORE_3 = ("model.safetensors", "state.pt")  # which had AdamW's state, too
_SHARDS = "shard-*.safetensors"  # of both, as torch names them
_PIECE = 1 << 22  # bytes that have a checksum of their own, so that all cores can sum up one file
_BLOCK = 1 << 18  # bytes read at once


class _NewerFormat(CheckpointError):
    """A checkpoint that this version cannot read."""


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_00001234/` and `latest`, a file with the newest one's name."""

    def __init__(self, folder: Path, keep: int, processes: ProcessGroup = ALONE) -> None:
        self.folder, self.keep, self.processes = folder, keep, processes
        self.removal = Thread()  # of what is not kept, beside the steps that follow: that takes as long as a write

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint under a temporary name, syncs it, renames it, drops the oldest.

        Of several processes the first one does; of what is in shards the others add theirs.

        Raises:
            StorageError: it could not be written; what was there before still is.
        """
        final = self.folder / f"step_{checkpoint.state.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        size = checkpoint.num_bytes
        if not self.processes.is_main:
            if checkpoint.in_shards:
                with files.writing(final, size):
                    self._write_shards(checkpoint, temporary)
            return final
        self.wait_for_removal()  # it may be its space that is needed
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

    def wait_for_removal(self) -> None:
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
                if _step(path) >= checkpoint.state.step:
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
        from apollo_cli.training.distributed import sharded_files

        self.processes.max(0)  # none goes on before all are here
        sharded_files.write(checkpoint.tensors, folder)
        # to the others it may have its final name by now
        if self.processes.is_main and len(list(folder.glob(_SHARDS))) != self.processes.world_size:
            raise StorageError(
                f"{folder}: not all {self.processes.world_size} processes wrote there; with distributed=fsdp the "
                "run directory must be on a disk that all machines share"
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
                "progress": asdict(checkpoint.state),
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
                if (seen := checkpoint.state.metrics_bytes) > metrics_bytes:
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
        saved = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        state = _progress(meta["progress"])
        width = float(meta.get("width", 1.0))  # from format 6 on
        known = Checkpoint(meta["layers"], {}, {}, saved["rng"], state, folder=path, width=width)
        if in_shards:
            return replace(known, in_shards=True)
        return replace(
            known,
            weights=load_file(path / "model.safetensors"),
            optimizer=saved["optimizer"] if old else _nested(load_file(path / "optimizer.safetensors")),
        )
    except OSError as error:  # its text names the file
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error!r}") from error
    except (RuntimeError, UnpicklingError, SafetensorError) as error:  # whole, yet not written by us
        raise CheckpointError(f"checkpoint {path} holds something that is refused: {_first_line(error)}") from error


def _progress(values: dict[str, Any]) -> TrainerState:
    """Progress from plain values; a stranger's may be anything."""
    state, fresh = TrainerState(**values), TrainerState()
    for key, value in vars(state).items():
        expected = type(getattr(fresh, key))
        kinds = (int, float) if expected is float else expected
        if not isinstance(value, kinds) or (isinstance(value, int | float) and value < 0 and key != "loss_sum"):
            raise TypeError(f"progress.{key} is {value!r}")
    numbers = [*state.losses.values(), *(number for growth in state.growths for number in growth.values())]
    if not all(number is None or isinstance(number, int | float) for number in numbers):
        raise TypeError("progress has text where numbers should be")
    if not re.fullmatch("[0-9a-f]*", state.run_id):  # W&B names a folder by it
        raise TypeError(f"progress.run_id is {state.run_id!r}")
    return state


def _digest_of_meta(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


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
