"""Run directories, read back."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from apollo_cli.errors import DataError
from apollo_cli.run_directory import RunDirectory


@dataclass(frozen=True)
class RunFiles:
    """A run directory; each file is read when first asked for."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml, flat: {"sampler.k": 2, ...}."""
        directory = RunDirectory(self.folder)
        return dict(flat("", directory.config())) if directory.is_claimed else {}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; a run that is not done has the status `running`."""
        return RunDirectory(self.folder).summary()

    @cached_property
    def plan(self) -> dict[str, Any]:
        """plan.json."""
        return RunDirectory(self.folder).plan()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, without a last line that is still being written.

        Raises:
            DataError: there is no such file.
        """
        path = RunDirectory(self.folder).metrics_file
        if not path.exists():
            raise DataError(f"{self.folder}: not a run directory (no metrics.jsonl in it)")
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested keys, by their dotted names below `prefix`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value
