"""The rows of a task, from the original TSV files or from the hub."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apollo_cli import files
from apollo_cli.data.hub import Hub
from apollo_cli.errors import DataError
from apollo_cli.glue.tasks import HUB, GlueTask, Split

_MAX_SCORE = 5.0  # similarity in STS-B
_UNSURE = "-"  # MNLI's label where annotators did not agree
_NO_LABEL = -1  # the hub's label of test rows

_Row = tuple[int, Mapping[str, Any]]  # line number, cells by column: sentence1, sentence2, label, index


@dataclass(frozen=True)
class Examples:
    """The rows of a split."""

    texts: list[tuple[str, ...]]  # one or two sentences per row
    labels: np.ndarray  # (rows,), numbers of labels as int64, or similarities as float32; empty for a test split
    indices: list[str]  # of each row in a submission
    left_out: int  # number of rows without a sentence or a label

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.texts).encode("utf-8", "surrogatepass"))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]


def read_examples(task: GlueTask, split: Split, data_dir: Path | None) -> Examples:
    """The examples of a split, from the original files in `data_dir` or, if None, from the hub.

    A DataError if a file, column or label is missing or invalid, with its line.
    """
    labelled = split not in task.splits.test
    if data_dir is None:
        return _collect(task, _hub_rows(task, split), f"dataset {HUB!r}, {task.name}, {split.hub}", labelled)
    path = data_dir / task.title / split.file
    return _collect(task, _file_rows(task, path, labelled), files.shown(path), labelled)


def note_on_rows(task: GlueTask, split: Split, examples: Examples) -> str | None:
    found = []
    if len(examples.texts) != split.rows:
        found.append(f"has {len(examples.texts):,} of the {split.rows:,} published rows")
    if examples.left_out:
        found.append(f"is without {files.counted(examples.left_out, 'row')} that lacked a sentence or a label")
    return f"note: {task.title} {split.name} {' and '.join(found)}" if found else None


def _collect(task: GlueTask, rows: Iterator[_Row], where: str, labelled: bool) -> Examples:
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    indices: list[str] = []
    left_out = 0
    for line, cells in rows:
        sentences = [cells.get(f"sentence{i}") for i in range(len(task.columns))]
        label = cells.get("label")
        if None in sentences or (labelled and label in (None, "", _UNSURE, _NO_LABEL)):
            left_out += 1
            continue
        texts.append(tuple(map(str, sentences)))
        indices.append(str(cells["index"] if cells.get("index") is not None else len(indices)))
        if labelled:
            labels.append(_label(task, label, f"{where}, line {line}"))
    if not texts:
        raise DataError(f"{where}: no row with {'a label' if labelled else 'sentences'} is in it")
    return Examples(texts, np.array(labels, dtype=np.int64 if task.labels else np.float32), indices, left_out)


def _label(task: GlueTask, label: Any, where: str) -> float:
    """The number of a label, which the hub's rows hold already, or a similarity."""
    if not task.labels:
        with suppress(TypeError, ValueError):
            if 0 <= (score := float(label)) <= _MAX_SCORE:
                return score
        raise DataError(f"{where}: the score {label!r} should be a number from 0 to {_MAX_SCORE:g}")
    if isinstance(label, int) and 0 <= label < len(task.labels):
        return label
    if label not in task.labels:
        raise DataError(f"{where}: the label {label!r} should be one of {', '.join(task.labels)}")
    return task.labels.index(label)


def _file_rows(task: GlueTask, path: Path, labelled: bool) -> Iterator[_Row]:
    """Tab-separated cells, without quoting; only a line feed ends a line."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # MRPC's files begin with a byte-order mark
    except OSError as error:
        raise DataError(
            f"{task.title}: {files.shown(path)} cannot be read ({error.strerror}); glue.data_dir must be a folder "
            f"with the original files of GLUE, in it {task.title}/{path.name}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{files.shown(path)}: not UTF-8 at byte {error.start}") from error
    rows = [(number, line.removesuffix("\r").split("\t")) for number, line in enumerate(lines, 1) if line.strip()]
    header: Sequence[str] = task.headless if labelled and task.headless else rows.pop(0)[1] if rows else ()
    columns = {f"sentence{i}": column for i, column in enumerate(task.columns)}
    columns |= {"label": task.label} if labelled else {"index": task.index}
    if missing := [column for column in columns.values() if column not in header and column != task.index]:
        raise DataError(
            f"{files.shown(path)}: no column {', '.join(map(repr, missing))} "
            f"(it has: {', '.join(header) or 'none'})"
        )
    at = {name: header.index(column) for name, column in columns.items() if column in header}
    for number, cells in rows:
        yield number, {name: cells[i] for name, i in at.items() if i < len(cells)}


def _hub_rows(task: GlueTask, split: Split) -> Iterator[_Row]:
    instead = f"type glue.data_dir=DIR, a folder with the original files, {task.title}/{split.file} among them"
    source = Hub((HUB,), (task.name,), split.hub, instead=instead)
    for number, row in enumerate(source.rows(), 1):
        if missing := [column for column in (*task.hub_columns, "label") if column not in row]:
            raise DataError(
                f"dataset {HUB!r}, {task.name}: no column {', '.join(missing)} (it has: {', '.join(row)})"
            )
        cells = {f"sentence{i}": row[column] for i, column in enumerate(task.hub_columns)}
        yield number, {**cells, "label": row["label"], "index": row.get("idx")}
