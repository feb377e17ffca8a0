"""Datasets of the Hugging Face hub as a source, or local folders in its layouts."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apollo_cli.data import network
from apollo_cli.data.readers import ARCHIVES, nothing_in
from apollo_cli.data.sources import Part, Source, file_states
from apollo_cli.errors import DataError, first_line

_Key = tuple[str, str | None, str | None]  # path, configuration, revision
_FORMATS = {"arrow", "csv", "json", "parquet", "text"} | {"cache"}  # cache: prepared by datasets from one of them


@dataclass(frozen=True)
class Hub(Source):
    """Datasets of the Hugging Face hub (or local folders in its layouts), one after another.

    A streamed one is read while downloading, no further than a run needs, and only its packed rows are kept.
    """

    paths: tuple[str, ...]  # names or folders
    names: tuple[str | None, ...]  # the configuration of each; None if it has only one
    split: str = "train"
    streaming: bool = False
    text_field: str = "text"
    validation_split: str | None = None  # None if some documents of `split` are to be held out
    revisions: tuple[str | None, ...] = ()  # commit, branch or tag of each; None, or no entry, is the newest commit
    # what to type where there is no way to the hub, for messages
    instead: str = field(default="put text into files and use data=text data.files=...", compare=False)
    _builders: dict[_Key, Any] = field(default_factory=dict, compare=False, repr=False)
    _progress: list[int] = field(default_factory=list, compare=False, repr=False)  # rows read, rows in all

    def title(self) -> str:
        return f"dataset {', '.join(self.paths)}"

    def identity(self) -> dict[str, Any]:
        """Names, the versions on the hub of what is not streamed, and the states of the files of folders."""
        splits = self._splits()
        return {
            "paths": self.paths,
            "names": self.names[: len(self.paths)],
            "splits": splits,
            "text_field": self.text_field,
            "versions": None
            if self.streaming
            else [self._builder(key).hash for _ in splits for key in self._keys()],
            "files": [file_states(_files_in(Path(path))) for path in self.paths if Path(path).is_dir()],
            **({"revisions": self.revisions} if any(self.revisions) else {}),
        }

    def edition(self) -> list[str] | None:
        """The versions on the hub of what is streamed: not in `identity`, so that packed rows are found offline."""
        if not self.streaming or all(Path(path).is_dir() for path in self.paths):
            return None
        return [self._builder(key).hash for key in self._keys()]

    def check_readable(self) -> None:
        """Requests every dataset and its splits from the hub or its cache, and checks the column if it is known."""
        for key in self._keys():
            info = self._builder(key).info
            if info.features is not None and self.text_field not in info.features:
                raise nothing_in(key[0], "column", self.text_field, info.features)
            for split in self._splits():
                if info.splits and split.isidentifier() and split not in info.splits:
                    raise DataError(f"dataset {key[0]!r} has no split {split!r} (it has: {', '.join(info.splits)})")

    def download(self, say: Callable[[str], None]) -> None:
        """Downloads and prepares what is not streamed and not in the library's cache, with its progress bars."""
        for key in [] if self.streaming else self._keys():
            if not Path(self._builder(key).cache_dir).exists():
                say(f"downloading and preparing dataset {key[0]}")
                self._open(key, self.split)

    def parts(self) -> list[Part]:
        if len(keys := self._keys()) < 2:
            return [Part(self, None)]
        return [Part(replace(self, paths=(p,), names=(n,), revisions=(r,)), None) for p, n, r in keys]

    def documents(self) -> Iterator[str]:
        return self._read(self.split)

    def validation(self) -> Iterator[str] | None:
        return self._read(self.validation_split) if self.validation_split else None

    def rows(self) -> Iterator[dict[str, Any]]:
        for key in self._keys():
            yield from self._rows(key, self.split)

    def fraction_read(self) -> float | None:
        return self._progress[0] / max(1, self._progress[1]) if self._progress else None

    def _read(self, split: str) -> Iterator[str]:
        for key in self._keys():
            for row in self._rows(key, split):
                if self.text_field not in row:
                    raise nothing_in(key[0], "column", self.text_field, row)
                text = row[self.text_field]
                if isinstance(text, bytes):
                    with _errors_of(key, "cannot be read", self.instead):
                        text = text.decode()
                if not isinstance(text, str | None):
                    raise DataError(f"{key[0]}: the column {self.text_field!r} holds no text; set data.text_field")
                yield text or ""

    def _rows(self, key: _Key, split: str) -> Iterator[dict[str, Any]]:
        dataset = self._open(key, split)
        self._progress[:] = [] if self.streaming else [0, len(dataset)]
        with _errors_of(key, "cannot be read", self.instead):
            for row in dataset:
                if self._progress:
                    self._progress[0] += 1
                yield row

    def _splits(self) -> list[str]:
        return [split for split in (self.split, self.validation_split) if split]

    def _keys(self) -> list[_Key]:
        if not self.paths:
            raise DataError(
                "data.path is empty: name a dataset of the hub, for example data.path=roneneldan/TinyStories"
            )
        revisions = self.revisions if any(self.revisions) else (None,) * len(self.paths)
        return list(zip(self.paths, self.names, revisions, strict=False))

    def _open(self, key: _Key, split: str) -> Any:
        builder = self._builder(key)
        with _errors_of(key, "cannot be opened", self.instead):
            if self.streaming:
                return builder.as_streaming_dataset(split)
            builder.download_and_prepare()
            return builder.as_dataset(split)

    def _builder(self, key: _Key) -> Any:
        """The library's object for a dataset, made without a download of its rows."""
        from datasets import disable_progress_bars, load_dataset_builder
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
        from huggingface_hub import HfApi, constants

        path, name, revision = key
        if key not in self._builders:
            if path in _PACKAGED_DATASETS_MODULES:  # it would read all files of the working directory
                raise DataError(
                    f"data.path={path} is a format, not a dataset: for files use data=text data.files=..."
                )
            if not sys.stderr.isatty():
                disable_progress_bars()
            with _errors_of(key, "cannot be opened", self.instead):
                if not Path(path).is_dir():
                    network.go_offline_if_needed()
                    if revision and not constants.HF_HUB_OFFLINE:  # else the library takes what its cache has
                        revision = HfApi().dataset_info(path, revision=revision).sha
                builder = load_dataset_builder(path, name, revision=revision)
                _refuse_unsafe(path, builder)
            if re.fullmatch("[0-9a-f]{7,40}", revision or "") and not builder.hash.startswith(revision):
                raise DataError(f"data.revision={revision}: of {path!r} only {builder.hash} is in the cache")
            self._builders[key] = builder
        return self._builders[key]


@contextmanager
def _errors_of(key: _Key, problem: str, instead: str) -> Iterator[None]:
    """Turns every error of the library into a DataError: the dataset `problem` (cannot be opened, or read)."""
    path, _, revision = key
    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, Exception):  # datasets wraps the errors of its readers
            cause = cause.__cause__
        hint = f"; {network.what_to_do(path)}, or {instead}"
        if "scripts are no longer supported" in str(cause):
            hint = (
                ": a script of others is not run. Name another version of the dataset, or try "
                "data.revision=refs/convert/parquet, which the hub makes of many (of large ones only a part)"
            )
        elif getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "enough disk space" in str(cause):
            hint = (
                ". Set the environment variable HF_HOME to a folder with more space, or type data.streaming=true, "
                "which keeps only the packed rows"
            )
        elif Path(path).is_file():
            hint = f"; it is a file: type data=text data.files={path}"
        elif Path(path).is_dir() or problem == "cannot be read":
            hint = "; put its text into files and use data=text data.files=..."
        of = f" of data.revision={revision}" if revision else ""
        raise DataError(f"dataset {path!r}{of} {problem}: {first_line(cause)}{hint}") from error


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
