"""Run directories, read back."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from apollo_cli.errors import DataError


@dataclass(frozen=True)
class RunFiles:
    """A run directory; each file is read when first asked for."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml, flat: {"sampler.k": 2, ...}."""
        path = self.folder / "config.yaml"
        return dict(_flat("", yaml.safe_load(path.read_text(encoding="utf-8")))) if path.exists() else {}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; a run that is not done has the status `running`."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"status": "running"}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, without a last line that is still being written.

        Raises:
            DataError: there is no such file.
        """
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            raise DataError(f"{self.folder}: not a run directory (no metrics.jsonl in it)")
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value
