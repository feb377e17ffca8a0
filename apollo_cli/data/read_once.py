"""A stream is downloaded once, though a tokenizer is trained on it before it is packed."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from apollo_cli.data.sources import Documents


class ReadOnce:
    """Two passes over documents that are read once: a second download costs time and may give other documents.

    What the first pass takes is kept in an unnamed temporary file in `folder`. The second pass returns that, and
    then continues where the first one stopped.
    """

    def __init__(self, documents: Documents, folder: Path) -> None:
        self.taken, self.rest = TemporaryFile("w+", dir=folder), documents()  # noqa: SIM115 - closed by the second
        self.is_second = False

    def __call__(self) -> Iterator[str]:
        if self.is_second:
            with self.taken:
                self.taken.seek(0)
                yield from map(json.loads, self.taken)
            yield from self.rest
            return
        self.is_second = True
        for document in self.rest:
            self.taken.write(json.dumps(document) + "\n")
            yield document
