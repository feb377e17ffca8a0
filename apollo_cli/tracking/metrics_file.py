"""metrics.jsonl: append-only rows, the truth about a run."""

import json
import os
from pathlib import Path
from typing import Any

from apollo_cli.errors import CheckpointError


class MetricsFile:
    """Appends one flat object a line.

    Args:
        path: the file; made if missing.
        keep_bytes: where a resumed run goes on; rows after it are dropped, for they will come again.

    Raises:
        CheckpointError: the file is shorter than what the checkpoint saw.
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        size = path.stat().st_size if path.exists() else 0
        if size < keep_bytes:
            raise CheckpointError(f"{path} has {size} bytes, but {keep_bytes} when the checkpoint was written")
        self.file = path.open("ab+")
        self.file.seek(keep_bytes)
        self.dropped_rows = self.file.read().count(b"\n")
        self.file.truncate(keep_bytes)

    def append(self, row: dict[str, Any]) -> None:
        """Writes a row at once, so that a killed process loses none."""
        self.file.write((json.dumps(row) + "\n").encode())
        self.file.flush()

    def sync(self) -> int:
        """Has the disk take all rows; returns the length in bytes."""
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
