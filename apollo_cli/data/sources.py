"""Where documents come from: the interface of every source, the documentation on this machine, and text files."""

import ast
import os
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from glob import glob
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from apollo_cli.data.readers import KINDS, Reading, kind_of, read_documents, refuse_unsuitable
from apollo_cli.errors import DataError

Documents = Callable[[], Iterator[str]]  # starts a new pass over a source
_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # no text in these


class Source(ABC):
    """A corpus as documents."""

    streaming: bool = False  # whether it is read only as far as a run needs

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """The documents, in the same order every time; a row without text gives an empty one."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the documents, for the cache: equal identities mean equal documents."""

    def edition(self) -> Any:
        """The version of a remote source that `identity` does not include; None where it includes all."""
        return None

    def check_readable(self) -> None:
        """Opens everything and looks at its beginning, before any long work; raises a DataError."""
        return

    def download(self, say: Callable[[str], None]) -> None:
        """Downloads what is needed as a whole; `say` takes a line of progress."""
        return

    def validation(self) -> Iterator[str] | None:
        """The documents given for validation; None if a share of the others is to be held out."""
        return None

    def parts(self) -> "list[Part]":
        """The sources that are packed one after another."""
        return [Part(self, None)]

    def title(self) -> str:
        """Its name in messages."""
        return "the corpus"

    def remarks(self) -> list[str]:
        """Lines about the last pass, for the user."""
        return []

    def fraction_read(self) -> float | None:
        """The fraction of it that the current pass has read; None if unknown."""
        return None


class Part(NamedTuple):
    """A source within a mixture."""

    source: Source
    weight: float | None  # share of the training rows; None, for all parts alike, means every row once an epoch


def interleaved(weights: list[float | None], documents: list[Documents]) -> Iterator[str]:
    """The documents of all parts, mixed by their weights in characters, until each is exhausted."""
    iterators = {i: read() for i, read in enumerate(documents)}
    taken = [0.0] * len(documents)  # characters, divided by the weight
    while iterators:
        i = min(iterators, key=lambda i: taken[i])
        document = next(iterators[i], None)
        if document is None:
            del iterators[i]
        else:
            taken[i] += len(document) / (weights[i] or 1)
            yield document


# torch has as much again, but parsing it would take as long as the rest together
DOCUMENTED_PACKAGES = ("numpy", "matplotlib", "datasets", "wandb", "rich", "omegaconf", "hydra-core")
_FOLDERS = {"hydra-core": "hydra"}
_NOT_PROSE = {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "vendor", "proto"}


@dataclass(frozen=True)
class PyDocs(Source):
    """English prose that every installation of this program has, so that nothing is downloaded.

    The language reference in `pydoc_data`, and the docstrings of the standard library and of our pinned
    dependencies. Each topic and each docstring is a document.
    """

    def title(self) -> str:
        return "the documentation on this machine"

    def identity(self) -> dict[str, Any]:
        return {"python": sys.version.split()[0], **{name: version(name) for name in DOCUMENTED_PACKAGES}}

    def documents(self) -> Iterator[str]:
        yield from _documentation()


@cache  # read twice: for the tokenizer and for the rows
def _documentation() -> list[str]:
    """The language reference, then the docstrings of all modules, sorted by path."""
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
_CONTAINERS = (*_DOCUMENTED, ast.If)  # definitions may stand under a condition


def _docstrings(path: Path) -> list[str]:
    """The docstrings of a module, its classes and functions, in order; none if it does not parse."""
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
            waiting += reversed([n for n in node.body if isinstance(n, _CONTAINERS)])
        elif isinstance(node, ast.If):
            waiting += reversed(node.body)
    return texts


@dataclass(frozen=True)
class TextFiles(Source):
    """Files, read as `read_documents` says."""

    # paths or globs; `**` matches folders; a folder stands for files of known kinds in it
    patterns: tuple[str, ...]
    document: str = "blank_line"
    text_field: str = "text"
    errors: str = "strict"
    validation_patterns: tuple[str, ...] = ()  # files that `patterns` match, too, are only for validation
    _readings: dict[Path, Reading] = field(default_factory=dict, compare=False, repr=False)  # the last of each file

    def paths(self) -> list[Path]:
        """The files for training, sorted within each pattern; a DataError for none, or for one that is no text."""
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
        paths = self.paths()
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return f"{paths[0]}{more}"

    def identity(self) -> dict[str, Any]:
        return {
            "files": file_states(self.paths()),
            "validation_files": file_states(self._validation_paths()),
            "document": self.document,
            "text_field": self.text_field,
            "errors": self.errors,
        }

    def check_readable(self) -> None:
        for path in [*self._validation_paths(), *self.paths()]:
            next(read_documents(path, "line", self.text_field, self.errors, Reading(0)), None)

    def documents(self) -> Iterator[str]:
        return self._read(self.paths())

    def validation(self) -> Iterator[str] | None:
        return self._read(self._validation_paths()) if self.validation_patterns else None

    def _read(self, paths: list[Path]) -> Iterator[str]:
        self._readings.update({path: Reading(path.stat().st_size) for path in paths})
        for path in paths:
            yield from read_documents(path, self.document, self.text_field, self.errors, self._readings[path])

    def fraction_read(self) -> float | None:
        readings = self._readings.values()
        return sum(one.position for one in readings) / max(1, sum(one.size for one in readings))

    def remarks(self) -> list[str]:
        replaced = [one for one in self._readings.values() if one.replaced_bytes]
        if not replaced:
            return []
        num_bytes, num_lines = sum(r.replaced_bytes for r in replaced), sum(r.replaced_lines for r in replaced)
        return [
            f"data.errors=replace: {num_bytes:,} bytes in {num_lines:,} lines of {len(replaced):,} files were not "
            "UTF-8 and became U+FFFD"
        ]


def _matches(key: str, patterns: tuple[str, ...]) -> list[Path]:
    """The files that match, each once; a DataError with `key` if a pattern matches none, or no text file."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        literal = os.path.expanduser(pattern)  # noqa: PTH111 - of an unknown user it stays as it is
        matches = sorted(glob(literal, recursive=True))  # noqa: PTH207 - takes absolute patterns too
        if os.path.lexists(literal):  # its name may contain brackets
            matches = [literal]
        files = [
            file
            for match in map(Path, matches)
            for file in (_files_in(match) if os.path.isdir(match) else [match])  # noqa: PTH112 - never raises
        ]
        if matches and not files:
            raise DataError(f"{key}: {pattern} is a directory without a file of {', '.join(KINDS)}")
        if not files:
            started = f"(looked from {Path.cwd()}; a run that is resumed, from the folder where it began)"
            relative = not pattern.startswith(("/", "~"))
            raise DataError(f"{key}: no file matches {pattern!r}{f' {started}' if relative else ''}")
        for file in files:
            refuse_unsuitable(file)
        found |= dict.fromkeys(file.resolve() for file in files)
    return list(found)


def _files_in(folder: Path) -> list[Path]:
    """The files of known kinds in a folder and those below it, sorted.

    Hidden ones are left out, and those with which `datasets` describes what it has saved.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if kind_of(path) in KINDS
        and path.name not in _OF_DATASETS
        and not path.is_dir()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def file_states(paths: list[Path]) -> list[list[Any]]:
    """Path, size and time of the last change of each file: a file that changed has another state."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
