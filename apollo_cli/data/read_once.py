"""A stream is read from its origin once, though a tokenizer learns from it before it is packed."""

import struct
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from apollo_cli.data.mixture import Mixture
from apollo_cli.data.sources import Part, Source

_LENGTH = struct.Struct("<Q")  # bytes of the document that follows


def read_once(source: Source, folder: Path) -> Source:
    """The same source; what is endless in it is read once, though its documents are asked for twice."""
    return Mixture(
        tuple(
            Part(ReadOnce(part.source, folder), part.weight) if part.source.is_endless else part
            for part in source.parts()
        )
    )


class ReadOnce(Source):
    """A source whose second reading begins with what the first one took, and goes on where that one stopped.

    It is downloaded while it is read: twice would cost twice, and need not give the same. What the first reading
    takes, as much as a tokenizer learns from, lies in a nameless file in `folder` until the second one has it.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self.folder = source, folder
        self._taken: tuple[IO[bytes], Iterator[str]] | None = None  # and the rest

    def documents(self) -> Iterator[str]:
        """The documents of the source."""
        if self._taken is None:
            self._taken = TemporaryFile(dir=self.folder), self.source.documents()  # noqa: SIM115 - closed below
            return _kept(*self._taken)
        taken, self._taken = self._taken, None
        return _continued(*taken)

    def identity(self) -> dict[str, Any]:
        """That of the source."""
        return self.source.identity()

    def edition(self) -> Any:
        """That of the source."""
        return self.source.edition()

    def validation(self) -> Iterator[str] | None:
        """That of the source, which is asked for once."""
        return self.source.validation()

    @property
    def is_endless(self) -> bool:
        """It is."""
        return True

    def title(self) -> str:
        """That of the source."""
        return self.source.title()

    def remarks(self) -> list[str]:
        """Those of the source."""
        return self.source.remarks()

    def share_read(self) -> float | None:
        """That of the source."""
        return self.source.share_read()


def _kept(file: IO[bytes], documents: Iterator[str]) -> Iterator[str]:
    for document in documents:
        content = document.encode()
        file.write(_LENGTH.pack(len(content)) + content)
        yield document


def _continued(file: IO[bytes], rest: Iterator[str]) -> Iterator[str]:
    with file:
        file.seek(0)
        while length := file.read(_LENGTH.size):
            yield file.read(_LENGTH.unpack(length)[0]).decode()
    yield from rest
