"""Where documents come from: this machine's documentation, text files, or a dataset of a hub."""

import ast
import errno
import os
import shutil
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apollo_cli.data import reading
from apollo_cli.data.reading import Replaced
from apollo_cli.errors import DataError
from apollo_cli.files import in_units


class Source(ABC):
    """A corpus as documents."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """The documents, in the same order every time.

        Raises:
            DataError: something cannot be read; the message says what and where.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the documents, for the cache: equal identities mean equal documents."""

    def title(self) -> str:
        """What a message calls it."""
        return "the corpus"

    def remarks(self) -> list[str]:
        """What the last reading noticed, as lines of progress."""
        return []


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
    """Files: txt and jsonl, each also compressed as .gz, .xz, .bz2 or .zst, and parquet.

    Attributes:
        patterns: paths or globs; `**` matches folders.
        document: what a document of a .txt file is: `blank_line`, `line` or `file`.
        text_field: the field (jsonl) or column (parquet) that holds the text.
        errors: bytes that are not UTF-8 are refused (`strict`) or become U+FFFD (`replace`).
    """

    patterns: tuple[str, ...]
    document: str = "blank_line"
    text_field: str = "text"
    errors: str = "strict"
    _replaced: dict[Path, Replaced] = field(default_factory=dict, compare=False, repr=False)

    def paths(self) -> list[Path]:
        """The files, sorted within each pattern.

        Raises:
            DataError: a pattern matches nothing, or something that is no file of text.
        """
        if not self.patterns:
            raise DataError("data.files is empty: name your files, for example 'data.files=[\"corpus/*.txt\"]'")
        found: dict[Path, None] = {}
        for pattern in self.patterns:
            literal = os.path.expanduser(pattern)  # noqa: PTH111 - of an unknown user it stays as it is
            matches = sorted(glob(literal, recursive=True))  # noqa: PTH207 - takes absolute patterns too
            if os.path.lexists(literal):  # its name may hold brackets
                matches = [literal]
            files = [Path(match) for match in matches if not os.path.isdir(match)]  # noqa: PTH112 - never raises
            if not files:
                raise _nothing_in(pattern, bool(matches))
            for file in files:
                reading.refuse_unsuitable(file)
            found |= dict.fromkeys(file.resolve() for file in files)
        return list(found)

    def title(self) -> str:
        """The first file, and how many more."""
        paths = self.paths()
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return f"{paths[0]}{more}"

    def identity(self) -> dict[str, Any]:
        """Paths, sizes and times of change, and how they are read."""
        files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths()]
        return {
            "files": files,
            "document": self.document,
            "text_field": self.text_field,
            "errors": self.errors,
        }

    def documents(self) -> Iterator[str]:
        """File by file."""
        for path in self.paths():
            self._replaced[path] = replaced = Replaced()
            yield from reading.documents(path, self.document, self.text_field, self.errors, replaced)

    def remarks(self) -> list[str]:
        """What was replaced, in one line."""
        replaced = [one for one in self._replaced.values() if one.bytes]
        if not replaced:
            return []
        num_bytes, num_lines = sum(one.bytes for one in replaced), sum(one.lines for one in replaced)
        return [
            f"data.errors=replace: {num_bytes:,} bytes in {num_lines:,} lines of {len(replaced):,} files were not "
            "UTF-8 and became U+FFFD"
        ]


def _nothing_in(pattern: str, folders: bool) -> DataError:
    if folders:
        example = str(Path(pattern) / "*.txt")
        return DataError(
            f"data.files: {pattern} is a directory: name its files, for example 'data.files=[\"{example}\"]'"
        )
    message = f"data.files: no file matches {pattern!r}"
    if not pattern.startswith(("/", "~")):
        message += f" (looked from {Path.cwd()}; a run that is resumed, from the folder where it began)"
    return DataError(message)


@dataclass(frozen=True)
class Hub(Source):
    """Datasets of the Hugging Face hub (or local folders in its layouts), one after another.

    Attributes:
        paths: names or folders.
        names: the configuration of each; None where it has only one.
        split: which split to read.
        streaming: read while downloading, and keep nothing on disk but the packed rows.
        text_field: the column that holds the text.
    """

    paths: tuple[str, ...]
    names: tuple[str | None, ...]
    split: str = "train"
    streaming: bool = False
    text_field: str = "text"
    _opened: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    def title(self) -> str:
        """Their names."""
        return f"dataset {', '.join(self.paths)}"

    def identity(self) -> dict[str, Any]:
        """Names, and the version on the hub of what is not streamed."""
        return {
            "paths": self.paths,
            "names": self.names[: len(self.paths)],
            "split": self.split,
            "text_field": self.text_field,
            "versions": None if self.streaming else [self._open(i)._fingerprint for i in range(len(self.paths))],
        }

    def documents(self) -> Iterator[str]:
        """Dataset by dataset, row by row."""
        if not self.paths:
            raise DataError(
                "data.path is empty: name a dataset of the hub, for example data.path=roneneldan/TinyStories"
            )
        for i, path in enumerate(self.paths):
            for row in self._rows(i):
                if self.text_field not in row:
                    raise DataError(
                        f"{path}: no column {self.text_field!r} (it has: {', '.join(row)}); set data.text_field"
                    )
                if (text := row[self.text_field]) is not None:
                    if not isinstance(text, str):
                        raise DataError(
                            f"{path}: the column {self.text_field!r} holds no text; set data.text_field"
                        )
                    yield text

    def _rows(self, i: int) -> Iterator[dict[str, Any]]:
        """The rows of a dataset; every backend has errors of its own."""
        dataset = self._open(i)
        try:
            yield from dataset
        except Exception as error:
            raise DataError(f"dataset {self.paths[i]!r} cannot be read: {_reason(error)}") from error

    def _open(self, i: int) -> Any:
        from datasets import disable_progress_bars, load_dataset_builder

        path = self.paths[i]
        if i not in self._opened:
            disable_progress_bars()
            try:
                if path in _formats():
                    raise DataError(
                        f"data.path={path} is a format, not a dataset: for files use data=text data.files=..."
                    )
                builder = load_dataset_builder(path, self.names[i])
                _refuse_doubtful(path, builder)
                if self.streaming:
                    self._opened[i] = builder.as_streaming_dataset(split=self.split)
                else:
                    builder.download_and_prepare()
                    self._opened[i] = builder.as_dataset(split=self.split)
            except DataError:
                raise
            except Exception as error:
                if _says_full(_cause(error)):
                    raise _full(path) from error
                hint = "Put its text" if Path(path).is_dir() else "Without a network, put text"
                raise DataError(
                    f"dataset {path!r} cannot be opened: {_reason(error)}. {hint} into files and use "
                    "data=text data.files=..."
                ) from error
        return self._opened[i]


_FORMATS = {
    "arrow",
    "csv",
    "json",
    "parquet",
    "text",
    "cache",
}  # cache: what datasets prepared from one of the others


def _formats() -> Iterable[str]:
    """Names that mean a format and all files of the working directory, not a dataset."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return _PACKAGED_DATASETS_MODULES


def _refuse_doubtful(path: str, builder: Any) -> None:
    """Refuses what may run code, unpack archives, or read files elsewhere, before a row is read."""
    format_ = type(builder).__module__.rpartition(".")[2]
    if format_ not in _FORMATS:
        raise DataError(
            f"dataset {path!r} holds {format_} files, and parquet, json, csv, arrow and text are read: convert "
            "them to one of these, or put the text into files and use data=text data.files=..."
        )
    folder = Path(path).absolute()
    for file in (str(file) for files in (builder.config.data_files or {}).values() for file in files):
        inside = (
            Path(os.path.normpath(file)).is_relative_to(folder) if folder.is_dir() else file.startswith("hf://")
        )
        if not inside or "::" in file:
            raise DataError(f"dataset {path!r} names {file}, which is not in it: take that out of its README.md")
        if Path(file).suffix.lower() in reading.ARCHIVES:
            raise DataError(f"dataset {path!r} holds the archive {file}: extract it, then name the folder")


def _full(path: str) -> DataError:
    """The message for a disk that the library has filled, and cleared again, with what it keeps of a dataset."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    free = {folder: _free(Path(folder)) for folder in (str(config.HF_DATASETS_CACHE), HF_HUB_CACHE)}
    fullest = min(free, key=lambda folder: free[folder])
    space = in_units(free[fullest])
    return DataError(
        f"dataset {path!r}: the disk of {fullest} is full; {space} are free there, and more than {space} are "
        "needed. Set the environment variable HF_HOME to a folder with more space, or type data.streaming=true, "
        "which keeps only the packed rows"
    )


def _says_full(error: Exception) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "Not enough disk space" in str(error)  # what datasets finds before it begins


def _free(folder: Path) -> int:
    """Bytes on the disk that the folder is on, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def _cause(error: Exception) -> Exception:
    """The last cause; datasets wraps what its readers say."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _reason(error: Exception) -> str:
    """The last cause in one line."""
    return reading.first_line(_cause(error))
