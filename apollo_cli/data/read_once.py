"""A stream is downloaded once, though a tokenizer is trained on it before it is packed."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from apollo_cli.data.sources import Documents


class ReadOnce:
    """Two passes over documents that are read once: a second download costs time and may give other documents.

    What the first pass takes is kept in an unnamed temporary file in `folder`. The second pass returns that, and
    then continues where the first one stopped.
    """

    def __init__(self, documents: Documents, folder: Path) -> None:
        self.documents, self.folder = documents, folder
        self._taken: tuple[IO[str], Iterator[str]] | None = None  # by the first pass, and the rest

    def __call__(self) -> Iterator[str]:
        if self._taken is None:
            file = TemporaryFile("w+", dir=self.folder)  # noqa: SIM115 - closed by the second pass
            self._taken = file, self.documents()
            return _recorded(*self._taken)
        taken, self._taken = self._taken, None
        return _continued(*taken)


def _recorded(file: IO[str], documents: Iterator[str]) -> Iterator[str]:
    for document in documents:
        file.write(json.dumps(document) + "\n")
        yield document


def _continued(file: IO[str], rest: Iterator[str]) -> Iterator[str]:
    with file:
        file.seek(0)
        yield from map(json.loads, file)
    yield from rest
