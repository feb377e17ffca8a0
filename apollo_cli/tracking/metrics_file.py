"""metrics.jsonl: the append-only rows of a run."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from apollo_cli import files
from apollo_cli.errors import CheckpointError, StorageError


class MetricsFile:
    """Appends one flat object a line to a file, which is made if missing.

    `keep_bytes` is its length at the checkpoint of a resumed run; later rows are dropped: they are computed again.

    Raises:
        CheckpointError: the file is shorter than at the checkpoint.
        StorageError: it cannot be written to.
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path, self.size = path, keep_bytes
        before = path.stat().st_size if path.exists() else 0
        if before < keep_bytes:
            raise CheckpointError(
                f"{path} has {before} bytes, but {keep_bytes} when the checkpoint was written: rows are lost; "
                "restore the file from a copy, or begin a new run"
            )
        with files.writing(path, 1000):
            self.file = path.open("ab+", buffering=0)  # a row is written by one call
            self.file.seek(keep_bytes)
            self.dropped_rows = self.file.read().count(b"\n")
            self.file.truncate(keep_bytes)

    def append(self, row: dict[str, Any]) -> None:
        """Writes a row at once, so that a killed process loses none; a StorageError leaves no part of it."""
        line = (json.dumps(row) + "\n").encode()
        if not os.fstat(self.file.fileno()).st_nlink:
            gone = self.path if self.path.parent.is_dir() else self.path.parent
            raise StorageError(f"cannot write {self.path.name}: {files.shown(gone)} no longer exists")
        with files.writing(self.path, len(line)):
            if self.file.write(line) != len(line):
                self.file.truncate(self.size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += len(line)

    def sync(self) -> int:
        """Syncs all rows to disk; returns the length in bytes."""
        with files.writing(self.path, self.size):
            os.fsync(self.file.fileno())
        return self.size

    def close(self) -> None:
        self.file.close()
