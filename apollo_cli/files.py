"""Files that are whole or not there: written beside, synced, renamed."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apollo_cli.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)  # and made by this process: nothing is written through a link that stands there
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as indented JSON in one step."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Indented, for people to read."""
    return json.dumps(value, indent=2) + "\n"


def remove(path: Path) -> None:
    """Deletes whatever is called so, if anything; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """Says in one message why `path`, of about `size` bytes, could not be written.

    Raises:
        StorageError: names the path, and the space that is needed where that is the reason.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(path, size, error) from error


def unwritable(path: Path, size: int, error: Exception) -> StorageError:
    """The error for a file of about `size` bytes that could not be written."""
    if getattr(error, "errno", None) == errno.ENOENT or not path.parent.is_dir():
        return StorageError(f"{shown(path.parent)} is gone, or what was in it: {path.name} cannot be written there")
    free = shutil.disk_usage(path.parent).free
    if getattr(error, "errno", None) in _FULL or "No space left" in str(error) or free < size:
        return StorageError(
            f"{shown(path)}: the disk is full; {in_units(size)} are needed and {in_units(free)} are free"
        )
    return StorageError(f"{shown(path)} cannot be written: {getattr(error, 'strerror', None) or error}")


def in_units(size: int) -> str:
    """Bytes as people read them: 12.3 MB."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def shown(path: Path) -> str:
    """The path as a person would type it from here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def command(name: str) -> str:
    """A command of this installation as a person would type it from here."""
    beside = Path(sys.executable).with_name(name)
    return shown(beside) if shutil.which(name) is None and beside.exists() else name


def in_order(name: str) -> tuple[list[tuple[float, str]], str]:
    """A key to sort names by, so that cell 10 comes after cell 2 and k=1.5 after k=1."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], name


def sync_file(path: Path) -> None:
    """Has the disk take what was written to `path`."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Has the disk take the names in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def remove_if_empty(place: Path) -> Iterator[None]:
    """Removes `place` and its parents at the end as far as they were not there at the beginning and are empty."""
    made = [folder for folder in (place, *place.parents) if not os.path.lexists(folder)]
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError, ValueError):  # not empty, or never made
                folder.rmdir()
