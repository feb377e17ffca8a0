"""Distribution of rows: to metrics.jsonl first, then to the console and the listeners."""

from collections.abc import Sequence
from typing import Any

from apollo_cli.tracking.console import Console
from apollo_cli.tracking.metrics_file import MetricsFile

Row = dict[str, Any]


class Listener:
    """Takes rows beside metrics.jsonl."""

    page = ""  # address where the run is shown; empty if none is known

    def row(self, row: Row) -> None:
        """Takes one row."""

    def close(self, status: str, summary: dict[str, Any]) -> None:
        """Takes summary.json; `status` is completed, interrupted or failed."""


class Tracker:
    """Hands every row to all, in the same form; without `metrics`, as beside the main process, to none."""

    def __init__(self, metrics: MetricsFile | None, console: Console, listeners: Sequence[Listener] = ()) -> None:
        self.metrics, self.console, self.listeners = metrics, console, listeners

    def row(self, row: Row) -> None:
        if self.metrics is None:
            return
        self.metrics.append(row)
        self.console.row(row)
        for listener in self.listeners:
            listener.row(row)

    def say(self, text: str) -> None:
        self.console.say(text)

    def step(self, columns: Row) -> None:
        """Moves the live bar to the state in these columns."""
        self.console.step(columns)

    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl, all of it synced to disk."""
        return self.metrics.sync() if self.metrics else 0

    @property
    def page(self) -> str:
        """Address where the run is shown; empty if none is known."""
        return next((listener.page for listener in self.listeners if listener.page), "")

    def close(self, status: str, summary: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener.close(status, summary)
        if self.metrics:
            self.metrics.close()
