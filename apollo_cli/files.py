"""Atomic files (written beside, synced, renamed), and paths, sizes and names as text."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from apollo_cli.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)  # it may be a link of another user, and "x" refuses to write through one
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def digest_of(value: Any) -> str:
    """The SHA-256 of a value of JSON, in hexadecimal."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def missing(folder: Path) -> list[Path]:
    """The folder and its parents, as far as they do not exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those of these folders that are empty, in their order."""
    for folder in folders:
        with suppress(OSError, ValueError):  # not empty, never made, or no name that a folder may have
            folder.rmdir()


def remove(path: Path) -> None:
    """Deletes the file, link or folder at `path`, if any; the target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """Turns an OSError inside, while `path` of about `size` bytes is written, into a StorageError."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, size, error) from error


def unwritable(path: Path, size: int, error: Exception) -> StorageError:
    """The error for a file of about `size` bytes, with its path and cause, on a full disk the space needed."""
    if getattr(error, "errno", None) == errno.ENOENT or not path.parent.is_dir():
        return StorageError(f"cannot write {path.name}: directory {shown(path.parent)} no longer exists")
    free = shutil.disk_usage(path.parent).free
    if getattr(error, "errno", None) in _FULL or "No space left" in str(error) or free < size:
        return StorageError(
            f"{shown(path)}: the disk is full; {in_units(size)} are needed and {in_units(free)} are free"
        )
    return StorageError(f"cannot write {shown(path)}: {getattr(error, 'strerror', None) or error}")


def in_units(size: int) -> str:
    """A number of bytes as text, for example 12.3 MB."""
    from rich.filesize import decimal  # help pages do without rich

    return decimal(size)


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 layer, 12 layers."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def shown(path: Path) -> str:
    """The path relative to the working directory where it is inside it, else absolute."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def command(name: str) -> str:
    """A command of this installation as it is typed here: its name if it is on PATH, else its path."""
    beside = Path(sys.executable).with_name(name)
    return shown(beside) if shutil.which(name) is None and beside.exists() else name


def in_order(name: str) -> tuple[list[tuple[float, str]], str]:
    """A natural sort key: k=2, k=10 and k=1.5 are ordered by their numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], name


def sync(path: Path) -> None:
    """Flushes the content of a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
