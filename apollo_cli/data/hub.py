"""Datasets of the Hugging Face hub as a source, or local folders in its layouts."""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apollo_cli.data import network, readers
from apollo_cli.data.sources import Part, Source, states
from apollo_cli.errors import DataError
from apollo_cli.files import in_units

_Key = tuple[str, str | None, str]  # path, configuration, split


@dataclass(frozen=True)
class Hub(Source):
    """Datasets of the Hugging Face hub (or local folders in its layouts), one after another.

    Attributes:
        paths: names or folders.
        names: the configuration of each; None where it has only one.
        split: which split to train on.
        streaming: read while downloading, no further than a run needs, and keep nothing on disk but the packed
            rows.
        text_field: the column that holds the text.
        validation_split: the split for validation; None where some documents of `split` are to be held out.
    """

    paths: tuple[str, ...]
    names: tuple[str | None, ...]
    split: str = "train"
    streaming: bool = False
    text_field: str = "text"
    validation_split: str | None = None
    _builders: dict[tuple[str, str | None], Any] = field(default_factory=dict, compare=False, repr=False)
    _opened: dict[_Key, Any] = field(default_factory=dict, compare=False, repr=False)
    _passed: list[int] = field(default_factory=list, compare=False, repr=False)  # rows read, rows in all

    def title(self) -> str:
        """Their names."""
        return f"dataset {', '.join(self.paths)}"

    def identity(self) -> dict[str, Any]:
        """Names, the version on the hub of what is not streamed, and the files of what is a folder."""
        splits = self._splits()
        keys = [key for split in splits for key in self._keys(split)]
        return {
            "paths": self.paths,
            "names": self.names[: len(self.paths)],
            "splits": splits,
            "text_field": self.text_field,
            "versions": None if self.streaming else [self._builder(key).hash for key in keys],
            "files": [states(_files_of(Path(path))) for path in self.paths if Path(path).is_dir()],
        }

    def edition(self) -> list[str] | None:
        """Of what is streamed from the hub its versions there: a stream that was packed is found without asking."""
        if not self.streaming or all(Path(path).is_dir() for path in self.paths):
            return None
        return [self._builder(key).hash for key in self._keys(self.split)]

    def reach(self) -> None:
        """Asks the hub, or its cache, for every dataset and its splits, and for the column where that is known."""
        for key in [key for split in self._splits() for key in self._keys(split)]:
            builder, split = self._builder(key), key[-1]
            columns = builder.info.features
            if columns is not None and self.text_field not in columns:
                raise self._no_column(key[0], columns)
            known = builder.info.splits
            if known and split.isidentifier() and split not in known:
                raise DataError(f"dataset {key[0]!r} has no split {split!r} (it has: {', '.join(known)})")

    def fetch(self, say: Callable[[str], None]) -> None:
        """Downloads and prepares what is not streamed and not in the cache of the library yet, with its bars."""
        for key in [] if self.streaming else self._keys(self.split):
            if not Path(self._builder(key).cache_dir).exists():
                say(f"downloading and preparing dataset {key[0]}")
                self._prepare(key, bars=sys.stderr.isatty())

    def parts(self) -> list[Part]:
        """Each dataset for itself."""
        if len(self.paths) < 2:
            return [Part(self, None)]
        pairs = zip(self.paths, self.names, strict=True)
        return [Part(replace(self, paths=(path,), names=(name,)), None) for path, name in pairs]

    @property
    def is_endless(self) -> bool:
        """What is streamed is read no further than a run needs."""
        return self.streaming

    def documents(self) -> Iterator[str]:
        """Dataset by dataset, row by row."""
        return self._read(self.split)

    def validation(self) -> Iterator[str] | None:
        """The split that is given for it."""
        return self._read(self.validation_split) if self.validation_split else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the split with all their columns, dataset by dataset."""
        for path, name in zip(self.paths, self.names, strict=False):
            yield from self._rows((path, name, self.split))

    def share_read(self) -> float | None:
        """By rows; unknown while streaming."""
        return self._passed[0] / max(1, self._passed[1]) if self._passed else None

    def _read(self, split: str) -> Iterator[str]:
        for key in self._keys(split):
            for row in self._rows(key):
                if self.text_field not in row:
                    raise self._no_column(key[0], row)
                text = row[self.text_field]
                if not isinstance(text, str | None):
                    raise DataError(f"{key[0]}: the column {self.text_field!r} holds no text; set data.text_field")
                yield text or ""

    def _rows(self, key: _Key) -> Iterator[dict[str, Any]]:
        """The rows of a dataset; every backend has errors of its own."""
        dataset = self._open(key)
        self._passed[:] = [] if self.streaming else [0, len(dataset)]
        try:
            for row in dataset:
                if self._passed:
                    self._passed[0] += 1
                yield row
        except Exception as error:
            raise DataError(f"dataset {key[0]!r} cannot be read: {_reason(error)}") from error

    def _splits(self) -> list[str]:
        return [split for split in (self.split, self.validation_split) if split]

    def _keys(self, split: str) -> list[_Key]:
        if not self.paths:
            raise DataError(
                "data.path is empty: name a dataset of the hub, for example data.path=roneneldan/TinyStories"
            )
        return [(path, name, split) for path, name in zip(self.paths, self.names, strict=False)]

    def _open(self, key: _Key) -> Any:
        if key not in self._opened:
            if not self.streaming:
                self._prepare(key, bars=False)
            builder, split = self._builder(key), key[-1]
            with _opening(key[0]):
                opened = builder.as_streaming_dataset(split) if self.streaming else builder.as_dataset(split)
            self._opened[key] = opened
        return self._opened[key]

    def _prepare(self, key: _Key, *, bars: bool) -> None:
        from datasets import disable_progress_bars, enable_progress_bars

        (enable_progress_bars if bars else disable_progress_bars)()
        builder = self._builder(key)
        with _opening(key[0]):
            builder.download_and_prepare()

    def _builder(self, key: _Key) -> Any:
        """What the library knows of a dataset before it downloads it."""
        from datasets import load_dataset_builder

        path, name, _ = key
        if (path, name) not in self._builders:
            with _opening(path):
                if path in _formats():
                    raise DataError(
                        f"data.path={path} is a format, not a dataset: for files use data=text data.files=..."
                    )
                if not Path(path).is_dir():
                    network.look_into_the_cache_alone()
                builder = load_dataset_builder(path, name)
                _refuse_doubtful(path, builder)
            self._builders[path, name] = builder
        return self._builders[path, name]

    def _no_column(self, path: str, columns: Iterable[str]) -> DataError:
        return DataError(
            f"{path}: no column {self.text_field!r} (it has: {', '.join(columns)}); set data.text_field"
        )


@contextmanager
def _opening(path: str) -> Iterator[None]:
    """Turns whatever the library raises into a DataError about this dataset."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if _says_full(_cause(error)):
            raise _full(path) from error
        raise DataError(f"dataset {path!r} cannot be opened: {_reason(error)}; {_hint(path)}") from error


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.absolute().rglob("*") if path.is_file())


def _hint(path: str) -> str:
    """What to do about a dataset that cannot be opened, as words that go on a sentence."""
    if Path(path).is_dir():
        return "put its text into files and use data=text data.files=..."
    if Path(path).is_file():
        return f"it is a file: type data=text data.files={path}"
    return f"{network.what_to_do(path)}, or put text into files and use data=text data.files=..."


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
        if Path(file).suffix.lower() in readers.ARCHIVES:
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
    return readers.first_line(_cause(error))
