"""Other forms of the rows, as local files: TensorBoard's, and a table of CSV."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apollo_cli import files
from apollo_cli.config.training import TrackingArgs
from apollo_cli.tracking.tracker import Listener, Row


class TensorBoardFiles(Listener):
    """Writes the curves for `tensorboard --logdir` by a thread of TensorBoard's own; the axis is the step.

    From `step` on rows of an interrupted run are replaced; `rows` are those of that step, which it drops as well.
    """

    def __init__(self, folder: Path, step: int, rows: Iterable[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=step)
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> None:
        for key, value in row.items():
            if value is not None and key != "step":
                self.writer.add_scalar(key, value, row["step"])

    def close(self, status: str, summary: dict[str, Any]) -> None:
        self.writer.close()


class CsvFile(Listener):
    """Writes metrics.csv at the end: the rows of metrics.jsonl, and a column for each key that one of them has."""

    def __init__(self, run_dir: Path) -> None:
        self.source, self.path = run_dir / "metrics.jsonl", run_dir / "metrics.csv"

    def close(self, status: str, summary: dict[str, Any]) -> None:
        rows = _rows(self.source)
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        with files.writing(self.path, text.tell()):
            files.write_text(self.path, text.getvalue())


def _rows(metrics: Path) -> list[Row]:
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def open_writers(tracking: TrackingArgs, run_dir: Path, step: int) -> list[Listener]:
    """The writers that the config chooses; a resumed run begins at `step`, with metrics.jsonl as it was there."""
    found: list[Listener] = []
    if tracking.tensorboard:
        rows = [row for row in _rows(run_dir / "metrics.jsonl") if row["step"] >= step]
        found.append(TensorBoardFiles(run_dir / "tensorboard", step, rows))
    return [*found, CsvFile(run_dir)] if tracking.csv else found
