"""Where documents come from: this machine's documentation, text files, or a dataset of a hub."""

import ast
import bz2
import gzip
import json
import lzma
import sys
import sysconfig
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from apollo_cli.errors import DataError


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

    def identity(self) -> dict[str, Any]:
        """The versions decide the text."""
        return {"python": sys.version.split()[0], **{name: _version(name) for name in DOCUMENTED_PACKAGES}}

    def documents(self) -> Iterator[str]:
        """The language reference, then modules by path."""
        yield from _documentation()


@cache  # read twice: for the tokenizer and for the rows
def _documentation() -> list[str]:
    from pydoc_data.topics import topics

    paths = sysconfig.get_paths()
    roots = [Path(paths["stdlib"])]
    for name in DOCUMENTED_PACKAGES:
        roots += [
            folder
            for site in dict.fromkeys((paths["purelib"], paths["platlib"]))
            if (folder := Path(site) / _FOLDERS.get(name, name)).is_dir()
        ]
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
    """

    patterns: tuple[str, ...]
    document: str = "blank_line"
    text_field: str = "text"

    def paths(self) -> list[Path]:
        """The files, sorted within each pattern.

        Raises:
            DataError: a pattern matches nothing.
        """
        if not self.patterns:
            raise DataError("data.files is empty: name your files, for example 'data.files=[\"corpus/*.txt\"]'")
        found: dict[Path, None] = {}
        for pattern in self.patterns:
            literal = Path(pattern).expanduser()
            matches = sorted(glob(str(literal), recursive=True))  # noqa: PTH207 - takes absolute patterns too
            if literal.is_file():  # its name may hold brackets
                matches = [str(literal)]
            files = [Path(match).resolve() for match in matches if Path(match).is_file()]
            if not files:
                raise DataError(f"data.files: no file matches {pattern!r} (looked from {Path.cwd()})")
            found |= dict.fromkeys(files)
        return list(found)

    def identity(self) -> dict[str, Any]:
        """Paths, sizes and times of change, and how they are read."""
        files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths()]
        return {"files": files, "document": self.document, "text_field": self.text_field}

    def documents(self) -> Iterator[str]:
        """File by file."""
        for path in self.paths():
            yield from self._documents_of(path)

    def _documents_of(self, path: Path) -> Iterator[str]:
        suffixes = [s for s in path.suffixes if s not in (".gz", ".xz", ".bz2", ".zst")]
        kind = suffixes[-1] if suffixes else ".txt"
        if kind == ".parquet":
            yield from _parquet_column(path, self.text_field)
        elif kind in (".jsonl", ".json"):
            yield from _json_lines(path, self.text_field)
        else:
            yield from _split(_lines(path), self.document)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file that may be compressed, strictly UTF-8, a byte-order mark dropped."""
    number = 0
    try:
        with _open_binary(path) as stream:
            for number, line in enumerate(stream, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise DataError(
            f"{path}, line {number}, byte {error.start + 1}: 0x{bad:02x} is not UTF-8. Convert the file, for "
            f"example: iconv -f latin1 -t utf-8 {path.name}"
        ) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        unreachable = isinstance(error, OSError) and error.errno is not None
        what = "cannot be read" if unreachable else f"damaged or cut off after line {number}"
        raise DataError(f"{path}: {what} ({error})") from error


def _open_binary(path: Path) -> IO[bytes]:
    """Opens a file by its ending; each of these readers notices a stream that is cut off."""
    if path.suffix == ".zst":
        import pyarrow

        return BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")


def _split(lines: Iterator[str], document: str) -> Iterator[str]:
    """Lines to documents: `line`, `blank_line`, or the whole `file`."""
    waiting: list[str] = []
    for line in lines:
        blank = not line.strip()
        if not blank or document == "file":
            waiting.append(line)
        if waiting and (document == "line" or (document == "blank_line" and blank)):
            yield "".join(waiting).strip()
            waiting = []
    if text := "".join(waiting).strip():
        yield text


def _json_lines(path: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); one object a line is read") from error
        if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
            known = ", ".join(row) if isinstance(row, dict) else "no fields"
            raise DataError(
                f"{path}, line {number}: no text in the field {text_field!r} (it has: {known}); set data.text_field"
            )
        try:
            row[text_field].encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}, line {number}: half of a surrogate pair is not text ({error})") from error
        yield row[text_field]


def _parquet_column(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path)
        if column not in table.schema_arrow.names:
            raise DataError(
                f"{path}: no column {column!r} (it has: {', '.join(table.schema_arrow.names)}); set data.text_field"
            )
        if "string" not in str(kind := table.schema_arrow.field(column).type):
            raise DataError(f"{path}: the column {column!r} holds {kind}, not text; set data.text_field")
        for batch in table.iter_batches(columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error})") from error


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
            for row in self._open(i):
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

    def _open(self, i: int) -> Any:
        from datasets import disable_progress_bars, load_dataset

        path = self.paths[i]
        if i not in self._opened:
            disable_progress_bars()
            try:
                self._opened[i] = load_dataset(path, self.names[i], split=self.split, streaming=self.streaming)
            except Exception as error:  # every backend has errors of its own
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise DataError(
                    f"dataset {path!r} cannot be opened: {reason}. Without a network, put text into files and "
                    "use data=text data.files=..."
                ) from error
        return self._opened[i]
