"""Where documents come from: this machine's documentation, or text files; others have a module of their own."""

import ast
import os
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from apollo_cli.data import readers
from apollo_cli.data.readers import Reading
from apollo_cli.errors import DataError


class Source(ABC):
    """A corpus as documents."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """The documents, in the same order every time; a row without text is a blank one.

        Raises:
            DataError: something cannot be read; the message says what and where.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the documents, for the cache: equal identities mean equal documents."""

    def edition(self) -> Any:
        """What tells one state of a source that is somebody else's from a later one; None where `identity` does."""
        return None

    def reach(self) -> None:
        """Refuses what cannot be read, as far as a look at each beginning shows, before anything long begins.

        Raises:
            DataError: says what and where.
        """
        return

    def fetch(self, say: Callable[[str], None]) -> None:
        """Gets what is to be downloaded whole, and says so."""
        return

    def validation(self) -> Iterator[str] | None:
        """The documents that are given for validation; None where some of the others are to be held out."""
        return None

    def sample(self) -> Iterator[str]:
        """The documents in an order whose beginning has something of every part."""
        parts = self.parts()
        return self.documents() if len(parts) == 1 else _interleaved(parts)

    def parts(self) -> "list[Part]":
        """What is packed apart; most sources are one part."""
        return [Part(self, None)]

    @property
    def is_endless(self) -> bool:
        """Whether it is too large to be read whole: then as much is packed as a run needs."""
        return False

    def title(self) -> str:
        """What a message calls it."""
        return "the corpus"

    def remarks(self) -> list[str]:
        """What the last reading noticed, as lines of progress."""
        return []

    def share_read(self) -> float | None:
        """How much of it the reading that is under way has passed, from 0 to 1; None where nobody knows."""
        return None


class Part(NamedTuple):
    """A source within a mixture.

    Attributes:
        source: where its documents come from.
        weight: its share of the training rows; None, for all parts alike, means every row once an epoch.
    """

    source: Source
    weight: float | None


def _interleaved(parts: list[Part]) -> Iterator[str]:
    """The documents of all parts, by their weights in characters, until each has come to its end."""
    waiting = {i: part.source.documents() for i, part in enumerate(parts)}
    given = [0.0] * len(parts)  # characters, divided by the weight
    while waiting:
        i = min(waiting, key=lambda i: given[i])
        document = next(waiting[i], None)
        if document is None:
            del waiting[i]
        else:
            given[i] += len(document) / (parts[i].weight or 1)
            yield document


# torch has as much again, but parsing it would take as long as the rest together
DOCUMENTED_PACKAGES = ("numpy", "matplotlib", "datasets", "wandb", "rich", "omegaconf", "hydra-core")
_FOLDERS = {"hydra-core": "hydra"}
_NOT_PROSE = {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "vendor", "proto"}


@dataclass(frozen=True)
class PyDocs(Source):
    """English prose that is on every machine that runs this program, so that nothing is downloaded.

    The language reference in `pydoc_data`, and the docstrings of the standard library and of our pinned
    dependencies. Each topic and each docstring is a document.
    """

    def title(self) -> str:
        """Where it is."""
        return "the documentation on this machine"

    def identity(self) -> dict[str, Any]:
        """The versions decide the text."""
        return {"python": sys.version.split()[0], **{name: _version(name) for name in DOCUMENTED_PACKAGES}}

    def documents(self) -> Iterator[str]:
        """The language reference, then modules by path."""
        yield from _documentation()


@cache  # read twice: for the tokenizer and for the rows
def _documentation() -> list[str]:
    from pydoc_data.topics import topics

    roots = [Path(sysconfig.get_paths()["stdlib"])]
    for name in DOCUMENTED_PACKAGES:
        spec = find_spec(_FOLDERS.get(name, name))  # wherever it is imported from: some environments see others
        roots += map(Path, (spec and spec.submodule_search_locations) or ())
    documents = [topics[topic] for topic in sorted(topics)]
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if _NOT_PROSE.isdisjoint(path.relative_to(root).parts):
                documents += _docstrings(path)
    return documents


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_HOLDERS = (*_DOCUMENTED, ast.If)  # definitions may stand under a condition


def _docstrings(path: Path) -> list[str]:
    """The docstrings of a module, its classes and functions, in order; none when it does not parse."""
    try:
        source = path.read_text(encoding="utf-8")
        if '"""' not in source and "'''" not in source:
            return []
        waiting: list[ast.AST] = [ast.parse(source)]
    except (OSError, SyntaxError, ValueError):
        return []
    texts = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, _DOCUMENTED):
            if (text := ast.get_docstring(node)) and not text.isspace():
                texts.append(text)
            waiting += reversed([n for n in node.body if isinstance(n, _HOLDERS)])
        elif isinstance(node, ast.If):
            waiting += reversed(node.body)
    return texts


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class TextFiles(Source):
    """Files: txt, jsonl, json, csv, tsv, parquet and arrow, each also compressed as .gz, .xz, .bz2 or .zst.

    Attributes:
        patterns: paths or globs; `**` matches folders.
        document: where a document of a .txt file ends: `blank_line`, `line` (or `row`) or `file`; in other files
            every row is one, but with `file` they are one together.
        text_field: the field or column that holds the text, where there are such.
        errors: bytes that are not UTF-8 are refused (`strict`) or become U+FFFD (`replace`).
        validation_patterns: the files for validation; those that `patterns` match, too, are for validation alone.
    """

    patterns: tuple[str, ...]
    document: str = "blank_line"
    text_field: str = "text"
    errors: str = "strict"
    validation_patterns: tuple[str, ...] = ()
    _readings: dict[Path, Reading] = field(default_factory=dict, compare=False, repr=False)
    _under_way: list[Path] = field(default_factory=list, compare=False, repr=False)

    def paths(self) -> list[Path]:
        """The files for training, sorted within each pattern.

        Raises:
            DataError: a pattern matches nothing, or something that is no file of text.
        """
        if not self.patterns:
            raise DataError("data.files is empty: name your files, for example 'data.files=[\"corpus/*.txt\"]'")
        found = _matches("data.files", self.patterns)
        given = set(self._validation_paths())
        if left := [path for path in found if path not in given]:
            return left
        raise DataError("data.validation_files has all files that data.files names: none is left for training")

    def _validation_paths(self) -> list[Path]:
        return _matches("data.validation_files", self.validation_patterns)

    def title(self) -> str:
        """The first file, and how many more."""
        paths = self.paths()
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return f"{paths[0]}{more}"

    def identity(self) -> dict[str, Any]:
        """Paths, sizes and times of change, and how they are read."""
        return {
            "files": states(self.paths()),
            "validation_files": states(self._validation_paths()),
            "document": self.document,
            "text_field": self.text_field,
            "errors": self.errors,
        }

    def reach(self) -> None:
        """Opens every file, and takes its first line or row."""
        for path in [*self._validation_paths(), *self.paths()]:
            next(readers.documents(path, "line", self.text_field, self.errors, Reading(0)), None)

    def documents(self) -> Iterator[str]:
        """File by file."""
        return self._read(self.paths())

    def validation(self) -> Iterator[str] | None:
        """Those of the files that are given for it."""
        return self._read(self._validation_paths()) if self.validation_patterns else None

    def _read(self, paths: list[Path]) -> Iterator[str]:
        self._under_way[:] = paths
        self._readings.update((path, Reading(path.stat().st_size)) for path in paths)
        for path in paths:
            yield from readers.documents(path, self.document, self.text_field, self.errors, self._readings[path])

    def share_read(self) -> float | None:
        """By the sizes of the files as they lie on the disk."""
        readings = [self._readings[path] for path in self._under_way]
        return sum(one.position for one in readings) / max(1, sum(one.size for one in readings))

    def remarks(self) -> list[str]:
        """What was replaced, in one line."""
        replaced = [one for one in self._readings.values() if one.replaced_bytes]
        if not replaced:
            return []
        num_bytes, num_lines = sum(r.replaced_bytes for r in replaced), sum(r.replaced_lines for r in replaced)
        return [
            f"data.errors=replace: {num_bytes:,} bytes in {num_lines:,} lines of {len(replaced):,} files were not "
            "UTF-8 and became U+FFFD"
        ]


def _matches(key: str, patterns: tuple[str, ...]) -> list[Path]:
    """The files of globs, each once."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        literal = os.path.expanduser(pattern)  # noqa: PTH111 - of an unknown user it stays as it is
        matches = sorted(glob(literal, recursive=True))  # noqa: PTH207 - takes absolute patterns too
        if os.path.lexists(literal):  # its name may hold brackets
            matches = [literal]
        files = [Path(match) for match in matches if not os.path.isdir(match)]  # noqa: PTH112 - never raises
        if not files:
            raise _nothing_in(key, pattern, bool(matches))
        for file in files:
            readers.refuse_unsuitable(file)
        found |= dict.fromkeys(file.resolve() for file in files)
    return list(found)


def states(paths: list[Path]) -> list[list[Any]]:
    """What tells that a file is another one: path, size, time of the last change."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _nothing_in(key: str, pattern: str, folders: bool) -> DataError:
    if folders:
        example = str(Path(pattern) / "*.txt")
        return DataError(f"{key}: {pattern} is a directory: name its files, for example '{key}=[\"{example}\"]'")
    message = f"{key}: no file matches {pattern!r}"
    if not pattern.startswith(("/", "~")):
        message += f" (looked from {Path.cwd()}; a run that is resumed, from the folder where it began)"
    return DataError(message)
