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

from apollo_cli.data import network
from apollo_cli.data.readers import ARCHIVES, first_line
from apollo_cli.data.sources import Part, Source, file_states
from apollo_cli.errors import DataError
from apollo_cli.files import in_units

_Key = tuple[str, str | None, str]  # path, configuration, split
_FORMATS = {"arrow", "csv", "json", "parquet", "text"} | {"cache"}  # cache: prepared by datasets from one of them


@dataclass(frozen=True)
class Hub(Source):
    """Datasets of the Hugging Face hub (or local folders in its layouts), one after another.

    Attributes:
        paths: names or folders.
        names: the configuration of each; None if it has only one.
        split: for training.
        streaming: read while downloading, no further than a run needs, and keep only the packed rows on the disk.
        text_field: the column that holds the text.
        validation_split: the split for validation; None if some documents of `split` are to be held out.
    """

    paths: tuple[str, ...]
    names: tuple[str | None, ...]
    split: str = "train"
    streaming: bool = False
    text_field: str = "text"
    validation_split: str | None = None
    _builders: dict[tuple[str, str | None], Any] = field(default_factory=dict, compare=False, repr=False)
    _opened: dict[_Key, Any] = field(default_factory=dict, compare=False, repr=False)
    _progress: list[int] = field(default_factory=list, compare=False, repr=False)  # rows read, rows in all

    def title(self) -> str:
        return f"dataset {', '.join(self.paths)}"

    def identity(self) -> dict[str, Any]:
        """Names, the versions on the hub of what is not streamed, and the states of the files of folders."""
        splits = [split for split in (self.split, self.validation_split) if split]
        keys = [key for split in splits for key in self._keys(split)]
        return {
            "paths": self.paths,
            "names": self.names[: len(self.paths)],
            "splits": splits,
            "text_field": self.text_field,
            "versions": None if self.streaming else [self._builder(key).hash for key in keys],
            "files": [file_states(_files_in(Path(path))) for path in self.paths if Path(path).is_dir()],
        }

    def edition(self) -> list[str] | None:
        """The versions on the hub of what is streamed: not in `identity`, so that packed rows are found offline."""
        if not self.streaming or all(Path(path).is_dir() for path in self.paths):
            return None
        return [self._builder(key).hash for key in self._keys(self.split)]

    def check_readable(self) -> None:
        """Requests every dataset and its splits from the hub or its cache, and checks the column if it is known."""
        for split in filter(None, (self.split, self.validation_split)):
            for key in self._keys(split):
                info = self._builder(key).info
                if info.features is not None and self.text_field not in info.features:
                    raise self._no_column(key[0], info.features)
                if info.splits and split.isidentifier() and split not in info.splits:
                    raise DataError(f"dataset {key[0]!r} has no split {split!r} (it has: {', '.join(info.splits)})")

    def download(self, say: Callable[[str], None]) -> None:
        """Downloads and prepares what is not streamed and not in the library's cache, with its progress bars."""
        for key in [] if self.streaming else self._keys(self.split):
            if not Path(self._builder(key).cache_dir).exists():
                say(f"downloading and preparing dataset {key[0]}")
                self._prepare(key, bars=sys.stderr.isatty())

    def parts(self) -> list[Part]:
        if len(self.paths) < 2:
            return [Part(self, None)]
        pairs = zip(self.paths, self.names, strict=True)
        return [Part(replace(self, paths=(path,), names=(name,)), None) for path, name in pairs]

    @property
    def is_streamed(self) -> bool:
        return self.streaming

    def documents(self) -> Iterator[str]:
        return self._read(self.split)

    def validation(self) -> Iterator[str] | None:
        return self._read(self.validation_split) if self.validation_split else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the split with all their columns, dataset by dataset."""
        for key in self._keys(self.split):
            yield from self._rows(key)

    def fraction_read(self) -> float | None:
        return self._progress[0] / max(1, self._progress[1]) if self._progress else None

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
        """The rows of a dataset; turns every error of the library's readers into a DataError."""
        dataset = self._open(key)
        self._progress[:] = [] if self.streaming else [0, len(dataset)]
        try:
            for row in dataset:
                if self._progress:
                    self._progress[0] += 1
                yield row
        except Exception as error:
            raise DataError(f"dataset {key[0]!r} cannot be read: {first_line(_cause(error))}") from error

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
        """The library's object for a dataset, made without a download of its rows."""
        from datasets import load_dataset_builder
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        path, name, _ = key
        if (path, name) not in self._builders:
            with _opening(path):
                if path in _PACKAGED_DATASETS_MODULES:  # it would read all files of the working directory
                    raise DataError(
                        f"data.path={path} is a format, not a dataset: for files use data=text data.files=..."
                    )
                if not Path(path).is_dir():
                    network.go_offline_if_needed()
                builder = load_dataset_builder(path, name)
                _refuse_unsafe(path, builder)
            self._builders[path, name] = builder
        return self._builders[path, name]

    def _no_column(self, path: str, columns: Iterable[str]) -> DataError:
        return DataError(
            f"{path}: no column {self.text_field!r} (it has: {', '.join(columns)}); set data.text_field"
        )


@contextmanager
def _opening(path: str) -> Iterator[None]:
    """Turns every error of the library into a DataError about this dataset."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cause = _cause(error)
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "Not enough disk space" in str(cause):  # which datasets finds before it begins
            raise _full(path) from error
        hint = f"{network.what_to_do(path)}, or put text into files and use data=text data.files=..."
        if Path(path).is_dir():
            hint = "put its text into files and use data=text data.files=..."
        elif Path(path).is_file():
            hint = f"it is a file: type data=text data.files={path}"
        raise DataError(f"dataset {path!r} cannot be opened: {first_line(cause)}; {hint}") from error


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.absolute().rglob("*") if path.is_file())


def _refuse_unsafe(path: str, builder: Any) -> None:
    """Refuses a dataset that may run code, unpack archives, or read files elsewhere, before a row is read."""
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
        if Path(file).suffix.lower() in ARCHIVES:
            raise DataError(f"dataset {path!r} holds the archive {file}: extract it, then name the folder")


def _full(path: str) -> DataError:
    """The error for a disk that the library filled, after it removed the unfinished files."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    free = {str(folder): _free_bytes(Path(folder)) for folder in (config.HF_DATASETS_CACHE, HF_HUB_CACHE)}
    fullest = min(free, key=lambda folder: free[folder])
    space = in_units(free[fullest])
    return DataError(
        f"dataset {path!r}: the disk of {fullest} is full; {space} are free there, and more than {space} are "
        "needed. Set the environment variable HF_HOME to a folder with more space, or type data.streaming=true, "
        "which keeps only the packed rows"
    )


def _free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def _cause(error: Exception) -> Exception:
    """The innermost cause, because datasets wraps the errors of its readers."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error
