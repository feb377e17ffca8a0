"""One fan-out: every row goes to the local file first, then to whoever else listens."""

from collections.abc import Sequence
from typing import Any, Protocol

from apollo_cli.tracking.console import Console
from apollo_cli.tracking.metrics_file import MetricsFile

Row = dict[str, Any]


class Listener(Protocol):
    """Something that takes rows beside metrics.jsonl."""

    def row(self, row: Row) -> None:
        """Takes one row."""

    def close(self, status: str, summary: Row) -> None:
        """Takes the final numbers; `status` is completed, interrupted or failed."""


class Tracker:
    """Hands every row on, in the same form to all."""

    def __init__(self, metrics: MetricsFile, console: Console, listeners: Sequence[Listener]) -> None:
        self.metrics, self.console, self.listeners = metrics, console, listeners

    def row(self, row: Row) -> None:
        """A row for everybody."""
        self.metrics.append(row)
        self.console.row(row)
        for listener in self.listeners:
            listener.row(row)

    def say(self, text: str) -> None:
        """One line for people."""
        self.console.say(text)

    def step(self, standing: Row) -> None:
        """Where the run stands; for the progress display alone."""
        self.console.step(standing)

    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl, all of it safely on disk."""
        return self.metrics.sync()

    def close(self, status: str, summary: Row) -> None:
        """Ends the run for everybody."""
        for listener in self.listeners:
            listener.close(status, summary)
        self.metrics.close()


class NullTracker(Tracker):
    """Of a process whose rows are those of the first one, which records them."""

    def __init__(self) -> None:
        pass

    def row(self, row: Row) -> None:
        """The first one's to record."""

    def say(self, text: str) -> None:
        """The first one's to say."""

    def step(self, standing: Row) -> None:
        """The first one's to show."""

    def metrics_bytes(self) -> int:
        """Of no file."""
        return 0

    def close(self, status: str, summary: Row) -> None:
        """Nothing was opened."""
