"""Distribution of rows: to metrics.jsonl first, then to the console and the listeners."""

from collections.abc import Sequence
from typing import Any, Protocol

from apollo_cli.tracking.console import Console
from apollo_cli.tracking.metrics_file import MetricsFile

Row = dict[str, Any]


class Listener(Protocol):
    """Takes rows beside metrics.jsonl."""

    def row(self, row: Row) -> None: ...

    def close(self, status: str, summary: Row) -> None:
        """Takes the final numbers; `status` is completed, interrupted or failed."""


class Tracker:
    """Hands every row to all, in the same form."""

    def __init__(self, metrics: MetricsFile, console: Console, listeners: Sequence[Listener]) -> None:
        self.metrics, self.console, self.listeners = metrics, console, listeners

    def row(self, row: Row) -> None:
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
        return self.metrics.sync()

    def close(self, status: str, summary: Row) -> None:
        for listener in self.listeners:
            listener.close(status, summary)
        self.metrics.close()


class NullTracker(Tracker):
    """Records nothing: the tracker of all processes but the main one."""

    def __init__(self) -> None:
        pass

    def row(self, row: Row) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def step(self, columns: Row) -> None:
        pass

    def metrics_bytes(self) -> int:
        return 0

    def close(self, status: str, summary: Row) -> None:
        pass
