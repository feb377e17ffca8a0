"""Checkpoints on disk: written whole or not at all, verified by checksums, the newest few and the best one kept.

A checkpoint is a folder: `model.safetensors` has the weights, `optimizer.safetensors` the optimizer's state,
`state.pt` the states of random number generators, `meta.json` the counters and the checksums of the other files.
Where a model is sharded over N processes, each of them writes its rows as `model-00001-of-0000N.safetensors` and so
on.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from apollo_cli import files
from apollo_cli.errors import CheckpointError, StorageError, first_line
from apollo_cli.training.distributed.group import ALONE, ProcessGroup
from apollo_cli.training.distributed.sharded_files import TensorFiles
from apollo_cli.training.state import Checkpoint, TrainerState

FORMAT = 1
BEST = "best"  # a file with the name of the checkpoint of the lowest validation loss
_PIECE = 1 << 22  # bytes with a checksum of their own, so that all cores can verify one file
_HUGE = 1e300  # more than any number of a run, and a float


class _NewerFormat(CheckpointError):
    """A checkpoint that this version cannot read."""


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_00001234/`; the files `latest` and `best` name one of them.

    The newest `keep` stay. If `in_shards`, each process writes its part of the tensors, else the main one all.
    """

    def __init__(
        self, folder: Path, keep: int, processes: ProcessGroup = ALONE, *, in_shards: bool = False
    ) -> None:
        self.folder, self.keep, self.is_main = folder, keep, processes.is_main
        self.writers = processes if in_shards else ALONE
        self.removal = Thread()  # of old checkpoints, which takes as long as a write, while training continues

    def save(self, checkpoint: Checkpoint, *, is_best: bool = False) -> Path:
        """Writes a checkpoint under a temporary name, syncs it, renames it, removes the oldest.

        If `is_best` it takes the place of the best one, which stays however many are written after it. A
        StorageError if it could not be written; the earlier checkpoints are untouched then.
        """
        final = self.folder / f"step_{checkpoint.state.step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        if not (self.is_main or self.writers.env):
            return final
        try:
            if self.is_main:
                self.wait_for_removal()  # its space may be needed
                with files.writing(self.folder, 0):
                    self._make_folder()
                with files.writing(final, checkpoint.num_bytes):
                    files.remove(temporary)
                    temporary.mkdir()
            sums = self._write_tensors(checkpoint, temporary, final)
            if self.is_main:
                with files.writing(final, checkpoint.num_bytes):
                    _write_meta(checkpoint, temporary, self.writers.world_size, sums)
                    # first: a run that is killed between the two gets here again and writes this checkpoint
                    if is_best:
                        files.write_text(self.folder / BEST, final.name + "\n")
                    self._publish(temporary, final)
        finally:
            if self.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
        if self.is_main:
            best = best_name(self.folder)
            self._drop([path for path in self._newest_first()[self.keep :] if path.name != best])
        return final

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir()  # not its parents: a run directory that was deleted is not made again
            files.sync(self.folder.parent)

    def _write_tensors(self, checkpoint: Checkpoint, folder: Path, final: Path) -> dict[str, list[str]]:
        """Writes the files of all processes; returns the checksums of each file.

        A StorageError if this process or another one could not write, or they have no common disk.
        """
        rank, world_size = self.writers.rank, self.writers.world_size
        self.writers.gather(None)  # rank 0 has made the folder
        written: dict[str, list[str]] | StorageError
        try:
            written = _write_files(checkpoint, folder, rank, world_size, final)
        except StorageError as error:
            written = error
        sums: dict[str, list[str]] = {}
        for each in (written, *self.writers.gather(written)):
            if isinstance(each, StorageError):
                raise each
            sums |= each
        if self.is_main and not all((folder / name).exists() for name in sums):
            raise StorageError(
                f"{folder}: not all {world_size} processes wrote there; with distributed=fsdp the run directory "
                "must be on a disk that all machines share"
            )
        return sums

    def _publish(self, temporary: Path, final: Path) -> None:
        for path in self._newest_first():  # damaged ones that a resume passed over are written again
            if _step(path) >= _step(final):
                shutil.rmtree(path)
        files.remove(final)  # a file of that name is no checkpoint
        temporary.rename(final)
        files.write_text(self.folder / "latest", final.name + "\n")  # syncs the folder, too

    def _drop(self, old: list[Path]) -> None:
        """Renames these checkpoints at once, and deletes them while training continues."""
        unfinished = [path.with_name(f".{path.name}.tmp") for path in old]
        with suppress(OSError):
            for path, name in zip(old, unfinished, strict=True):
                path.rename(name)
        self.removal = Thread(target=_remove, args=unfinished)
        self.removal.start()

    def wait_for_removal(self) -> None:
        if self.removal.is_alive():
            self.removal.join()

    def load_newest(self, say: Callable[[str], None], metrics_bytes: float = math.inf) -> Checkpoint | None:
        """The newest undamaged checkpoint whose rows are in metrics.jsonl; None if none was ever written.

        `say` takes a line about each checkpoint that is passed over; `metrics_bytes` is the length of metrics.jsonl
        now. A CheckpointError if there are checkpoints, and none can be used.
        """
        for unfinished in self.folder.glob(".step_*.tmp"):  # left by a process that was killed
            with suppress(OSError):
                files.remove(unfinished)
        problems = []
        for path in self._newest_first():
            try:
                checkpoint = _load(path)
                if (saved := checkpoint.state.metrics_bytes) > metrics_bytes:
                    raise CheckpointError(
                        f"checkpoint {path}: metrics.jsonl had {saved} bytes then and has {metrics_bytes} now, "
                        "rows are lost"
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


def load_checkpoint(folder: Path, name: str) -> Checkpoint:
    """The checkpoint of this name, or the `best` one; a CheckpointError if there is none, or it is damaged."""
    return _load(_named(folder, name))


def load_counters(folder: Path, name: str) -> tuple[int, float, TrainerState]:
    """Stored layers, share of the width, and counters of that checkpoint, whose other files are not read.

    A CheckpointError if there is none, or it is damaged.
    """
    with _readable(path := _named(folder, name, "init_from.checkpoint")):
        meta = _read_meta(path)
        return meta["layers"], float(meta["width"]), _checked_state(meta["state"])


def checkpoint_names(folder: Path) -> list[str]:
    """The names of the checkpoints in `checkpoints/`, in the order of their steps."""
    return sorted(path.name for path in folder.glob("step_*"))


def best_name(folder: Path) -> str | None:
    """The name of the best checkpoint in `checkpoints/`; None if none is kept."""
    with suppress(OSError, ValueError):
        name = (folder / BEST).read_text(encoding="utf-8").strip() if (folder / BEST).is_file() else ""
        return name if re.fullmatch(r"step_\d{8,20}", name) and (folder / name).is_dir() else None
    return None


def _named(folder: Path, name: str, key: str = "checkpoint") -> Path:
    known = checkpoint_names(folder)
    found = best_name(folder) if name == BEST else name
    if found is None:
        raise CheckpointError(
            f"{key}={name}: none is kept in {files.shown(folder)}; a run with checkpoint.best=true keeps it"
        )
    if found not in known:
        raise CheckpointError(f"{key}={name}: not in {files.shown(folder)}, which has {', '.join(known) or 'none'}")
    return folder / found


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _tensor_files(rank: int, world_size: int) -> tuple[str, str]:
    """The names of the files of one process: weights, the optimizer's state."""
    part = f"-{rank + 1:05d}-of-{world_size:05d}" if world_size > 1 else ""
    return f"model{part}.safetensors", f"optimizer{part}.safetensors"


def _write_files(
    checkpoint: Checkpoint, folder: Path, rank: int, world_size: int, final: Path
) -> dict[str, list[str]]:
    """Writes and syncs the files of this process, one while the one before is read again for its checksums.

    A StorageError if one could not be written.
    """
    model, optimizer = _tensor_files(rank, world_size)
    weights = {name: tensor for name, tensor in checkpoint.tensors.items() if "/" not in name}
    moments = {name: tensor for name, tensor in checkpoint.tensors.items() if "/" in name}
    writers: dict[str, Callable[[Path], None]] = {
        model: lambda path: save_file(weights, path),
        optimizer: lambda path: save_file(moments, path),
    }
    if not rank:
        writers["state.pt"] = lambda path: torch.save({"rng": checkpoint.rng}, path)
    try:
        with files.writing(final, checkpoint.num_bytes), ThreadPoolExecutor() as pool:
            if rank:
                folder.mkdir(parents=True, exist_ok=True)  # on another disk, which rank 0 then finds out
            written = {name: pool.submit(write, folder / name) for name, write in writers.items()}
            sums, synced = {}, []
            for name, done in written.items():
                done.result()
                synced.append(pool.submit(files.sync, folder / name))
                sums[name] = [pool.submit(_digest, folder / name, first) for first in _pieces(folder / name)]
            for done in synced:
                done.result()
            return {name: [each.result() for each in digests] for name, digests in sums.items()}
    except (SafetensorError, RuntimeError) as error:  # what the two libraries raise if the disk is full
        raise files.unwritable(final, checkpoint.num_bytes, error) from error


def _write_meta(checkpoint: Checkpoint, folder: Path, world_size: int, sums: Mapping[str, list[str]]) -> None:
    meta: dict[str, Any] = {
        "format": FORMAT,
        "layers": checkpoint.layers,
        "width": checkpoint.width,
        "shards": world_size,
        "state": asdict(checkpoint.state),
        "sha256": sums,
    }
    meta["sha256_of_meta"] = files.digest_of(meta)
    (folder / "meta.json").write_text(files.as_json(meta), encoding="utf-8")
    files.sync(folder / "meta.json")
    files.sync(folder)


def _load(path: Path) -> Checkpoint:
    """The checkpoint in a folder; its tensors are read when they are asked for.

    A CheckpointError if it is damaged, or of a newer format.
    """
    with _readable(path):
        meta = _read_meta(path)
        for name in _content(meta["shards"]):
            if [_digest(path / name, first) for first in _pieces(path / name)] != meta["sha256"][name]:
                raise CheckpointError(f"checkpoint {path}: {name} is damaged (its checksum differs)")
        return Checkpoint(
            layers=meta["layers"],
            width=float(meta["width"]),
            tensors=TensorFiles(path / name for name in _content(meta["shards"]) if name != "state.pt"),
            rng=torch.load(path / "state.pt", weights_only=True, map_location="cpu")["rng"],
            state=_checked_state(meta["state"]),
        )


def _read_meta(path: Path) -> dict[str, Any]:
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    if type(meta["format"]) is not int:
        raise CheckpointError(f"checkpoint {path}: meta.json is damaged (format is {meta['format']!r})")
    if meta["format"] > FORMAT:
        raise _NewerFormat(
            f"checkpoint {path}: a newer apollo-train wrote it (format {meta['format']}, this one reads up to "
            f"{FORMAT}); update apollo-train"
        )
    if meta.pop("sha256_of_meta") != files.digest_of(meta):
        raise CheckpointError(f"checkpoint {path}: meta.json is damaged (its checksum differs)")
    return meta


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises a CheckpointError for what reading the files of a checkpoint may raise."""
    try:
        yield
    except OSError as error:  # its text names the file
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error!r}") from error
    except (RuntimeError, UnpicklingError, SafetensorError) as error:  # undamaged, but not as we write it
        raise CheckpointError(f"checkpoint {path} holds something that is refused: {first_line(error)}") from error


def _content(shards: int) -> Iterator[str]:
    """The names of all files but meta.json."""
    yield "state.pt"
    for rank in range(shards):
        yield from _tensor_files(rank, shards)


def _checked_state(values: dict[str, Any]) -> TrainerState:
    """The state from plain values, which an untrusted checkpoint may have of any type."""
    state, fresh = TrainerState(**values), TrainerState()
    for key, value in vars(state).items():
        expected = type(getattr(fresh, key))
        kinds = (int, float) if expected is float else expected
        least = -_HUGE if key == "loss_sum" else 0
        if not isinstance(value, kinds) or (isinstance(value, int | float) and not least <= value < _HUGE):
            raise TypeError(f"state.{key} is {value!r:.100}")
    numbers = [
        *state.losses.values(),
        *state.best.values(),
        *state.stage_losses,
        *(number for growth in state.growths for number in growth.values()),
    ]
    if not all(n is None or (isinstance(n, int | float) and abs(n) < _HUGE) for n in numbers):
        raise TypeError("state has something else where finite numbers should be")
    if not all(type(end) is int for end in state.stage_ends):
        raise TypeError(f"state.stage_ends is {state.stage_ends!r:.100}")
    if not re.fullmatch("[0-9a-f]*", state.run_id):  # W&B names a folder by it
        raise TypeError(f"state.run_id is {state.run_id!r}")
    return state


def _pieces(path: Path) -> range:
    return range(0, path.stat().st_size, _PIECE)


def _digest(path: Path, first: int) -> str:
    with path.open("rb") as file:
        file.seek(first)
        return hashlib.sha256(file.read(_PIECE)).hexdigest()
