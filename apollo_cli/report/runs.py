"""Runs, read back from run directories: whole ones, and compact ones without weights."""

import gzip
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from apollo_cli import files
from apollo_cli.errors import ApolloError, DataError
from apollo_cli.report import glue_scores
from apollo_cli.report.glue_scores import GlueScores
from apollo_cli.run_directory import RunDirectory

Row = dict[str, Any]
Size = tuple[int, float]  # stored layers, and the share of the width

_NUMBERS = (  # where a row has them
    *("eval/loss", "train/loss", "train/grad_norm", "width"),
    *("growth/from", "growth/to", "growth/width_from", "growth/width_to"),
)
MADE_WITH = ("device", "precision", "git_commit")  # in summary.json
_FILES = ("plan.json", "summary.json", "metrics.jsonl", "metrics.jsonl.gz")  # a run has one, beside config.yaml
_COLUMNS = ("step", "flops", "train_seconds", "layers")  # of every row, and needed here
_LARGEST = 500_000_000  # bytes of a metrics file; ours have some thousand a minute
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class RunFiles:
    """A run directory; each file is read when first asked for."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml, flat: {"sampler.k": 2, ...}."""
        directory = RunDirectory(self.folder)
        return flat(directory.config()) if directory.is_claimed else {}

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json; a run that is not done has the status `running`."""
        return RunDirectory(self.folder).summary()

    @cached_property
    def plan(self) -> dict[str, Any]:
        """plan.json; empty where there is none."""
        return RunDirectory(self.folder).plan()

    @property
    def metrics_file(self) -> Path | None:
        """metrics.jsonl, or metrics.jsonl.gz of a compact run; None while there are no rows."""
        plain = RunDirectory(self.folder).metrics_file
        return next((path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()), None)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the metrics file, without a last line that is still being written.

        Raises:
            DataError: there is no such file, or a line of it is damaged.
        """
        path = self.metrics_file
        if path is None:
            raise DataError(f"{self.folder}: not a run directory (no metrics.jsonl in it)")
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                data = file.read(_LARGEST + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{files.shown(path)} is damaged: {error}") from error
        if len(data) > _LARGEST:
            raise DataError(f"{files.shown(path)} is damaged: more than {_LARGEST} bytes are not one of ours")
        return [_row(path, number, line) for number, line in enumerate(data.split(b"\n")[:-1], 1)]


@dataclass(frozen=True)
class Run:
    """One run as a comparison needs it.

    Attributes:
        place: its folder, or ENTITY/PROJECT/ID in W&B.
        config: flat: {"sampler.k": 2, ...}.
        status: completed, interrupted, failed or running.
        data: fingerprint of corpus and tokenizer; None while the run has not said it.
        evaluation_rows: how many held-out rows are measured; None as above.
        depth_counts: micro-steps at each depth, by stored layers, as planned; may be empty.
        rows: as in metrics.jsonl, every one with step, flops, train_seconds and layers.
        made_with: device, precision and git_commit, as far as the run has said them.
        glue: what `apollo-glue` measured.
        source_flops: that the model it began from took before; 0 without one, None where nobody knows.
        source_seconds: of training, likewise.
    """

    place: str
    config: dict[str, Any]
    status: str
    data: str | None
    evaluation_rows: int | None
    depth_counts: dict[int, dict[int, int]]
    rows: Sequence[Row]
    made_with: dict[str, str] = field(default_factory=dict)
    glue: GlueScores = field(default_factory=GlueScores)
    source_flops: float | None = 0
    source_seconds: float = 0.0

    @property
    def seed(self) -> Any:
        """Of weights, depths, row order and masks."""
        return self.config.get("seed")

    @property
    def target_layers(self) -> Any:
        """The target depth L."""
        return self.config.get("model.layers")

    @property
    def is_scratch(self) -> bool:
        """Whether all layers are stored from the first step, and new."""
        of_target = self.config.get("schedule.layers") == [self.target_layers]
        return of_target and self.config.get("init_from.path") is None

    def is_whole(self, row: Row) -> bool:
        """Whether the row is of a model with all layers at the whole width."""
        return size(row) == (self.target_layers, 1)

    @property
    def evaluations(self) -> list[Row]:
        """The rows with a validation loss, those of growth too; what the source took is counted in."""
        before = {"flops": self.source_flops or 0, "train_seconds": self.source_seconds}
        found = [row for row in self.rows if "eval/loss" in row]
        return [row | {key: row[key] + cost for key, cost in before.items()} for row in found]


def size(row: Row) -> Size:
    """Stored layers of a row's model and its share of the width, which stands there where that grows."""
    return row["layers"], row.get("width") or 1.0


def read(words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs that are meant by run directories, folders of them, and globs: each once; and what was left out.

    Raises:
        DataError: with all problems: a word means nothing, or a file is damaged.
    """
    problems: list[str] = []
    folders: dict[Path, Path] = {}
    for word in words:
        before = len(problems)
        found = _run_directories(word, problems)
        folders |= {folder.resolve(): folder for folder in found if folder.resolve() not in folders}
        if not found and len(problems) == before:
            problems.append(f"{word!r}: no run directory there (one has a config.yaml and a metrics.jsonl)")
    runs, empty = [], []
    for folder in folders.values():
        run_files = RunFiles(folder)
        try:
            if run_files.metrics_file is None or not run_files.rows:
                empty.append(files.shown(folder))
                continue
            runs.append(_run(run_files))
        except ApolloError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return runs, [f"left out, without a row: {few(empty)}"] if empty else []


def plain(text: Any) -> str:
    """Text of a stranger in one printable line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def few(places: Sequence[str]) -> str:
    """The first of these places, and how many more there are."""
    return ", ".join(map(plain, places[:3])) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def problems_of_config(place: str, config: dict[str, Any]) -> list[str]:
    """What a comparison needs of a config and does not find in this one; it may be a stranger's."""
    found = []
    if config.get("model.kind") not in ("bert", "gpt"):
        found.append(f"{place}: model.kind is {config.get('model.kind')!r}, it should be bert or gpt")
    if type(config.get("model.layers")) is not int or not 0 < config["model.layers"] <= _MOST_LAYERS:
        found.append(f"{place}: model.layers is {config.get('model.layers')!r}, it should be a whole number")
    layers = config.get("schedule.layers")
    if not isinstance(layers, list) or not all(type(n) is int and n > 0 for n in layers):
        found.append(f"{place}: schedule.layers is {layers!r}, it should be a list of whole numbers")
    return found


def measured_on(facts: Any) -> tuple[str | None, int | None]:
    """Fingerprint and evaluation rows as summary.json has them under `data`; None for what is not there."""
    facts = facts if isinstance(facts, dict) else {}
    data, rows = facts.get("fingerprint"), facts.get("evaluation_rows")
    return data if isinstance(data, str) else None, rows if type(rows) is int else None


def depth_counts(place: str, plan: dict[str, Any]) -> dict[int, dict[int, int]]:
    """{stored layers: {depth: micro-steps}} of a plan.json; empty where there is none.

    Raises:
        DataError: it is not a plan.
    """
    try:
        found: dict[int, Counter[int]] = {}
        for stage in plan.get("stages", []):  # several may store as many layers
            counts = {int(depth): int(n) for depth, n in stage["depth_counts"].items() if n}
            found.setdefault(int(stage["layers"]), Counter()).update(counts)
        return {layers: dict(counts) for layers, counts in found.items()}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{place} is damaged: its stages are not those of a plan") from error


def source_costs(place: str, plan: dict[str, Any]) -> tuple[float | None, float]:
    """FLOPs and seconds that the source of a run took, of its plan.json; plans of before have none.

    Raises:
        DataError: it is not a plan.
    """
    flops, seconds = plan.get("source_flops", 0), plan.get("source_seconds", 0.0)
    for value in (flops, seconds):
        if not isinstance(value, int | float | None) or (value is not None and not 0 <= value < math.inf):
            raise DataError(f"{place} is damaged: what its source took is {value!r}")
    return flops, seconds or 0.0


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested keys joined by dots: {"sampler.k": 2, ...}."""
    return dict(_flat("", values))


def checked(place: str, rows: Sequence[Row]) -> Sequence[Row]:
    """The same rows, each with the columns that every row has.

    Raises:
        DataError: names the first row that lacks one.
    """
    for number, row in enumerate(rows, 1):
        for column in _COLUMNS:
            if type(row.get(column)) not in (int, float) or not 0 <= row[column] < math.inf:
                raise DataError(f"{place}, line {number} is damaged: {column} is {row.get(column)!r}")
        for column in _NUMBERS:
            if not isinstance(row.get(column), int | float | None):
                raise DataError(f"{place}, line {number} is damaged: {column} is {row[column]!r}")
    return rows


def _run(source: RunFiles) -> Run:
    data, evaluation_rows = measured_on(source.summary.get("data"))
    assert source.metrics_file
    config_file = RunDirectory(source.folder).config_file
    if problems := problems_of_config(files.shown(config_file), source.config):
        raise DataError("\n".join(problems))
    plan_file = files.shown(RunDirectory(source.folder).plan_file)
    source_flops, source_seconds = source_costs(plan_file, source.plan)
    return Run(
        place=files.shown(source.folder),
        config=source.config,
        status=plain(source.summary.get("status")),
        data=data,
        evaluation_rows=evaluation_rows,
        depth_counts=depth_counts(plan_file, source.plan),
        rows=checked(files.shown(source.metrics_file), source.rows),
        made_with={key: plain(source.summary[key]) for key in MADE_WITH if source.summary.get(key)},
        glue=glue_scores.read(source.folder),
        source_flops=source_flops,
        source_seconds=source_seconds,
    )


def _run_directories(word: str, problems: list[str]) -> list[Path]:
    """The run directories that a word means, in the order of their names; unreadable folders are problems."""
    places = [Path(word)] if Path(word).is_dir() else _matches(word)
    return [folder for place in places for folder in _below(place, problems)]


def _matches(pattern: str) -> list[Path]:
    found = sorted(glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute
    return [Path(path) for path in found if Path(path).is_dir()]


def _below(place: Path, problems: list[str]) -> Iterator[Path]:
    """`place` if it is a run directory, else those below it, through links too; not those inside a run."""

    def unreadable(error: OSError) -> None:
        problems.append(f"{files.shown(Path(error.filename))} cannot be read: {error.strerror}")

    seen = set()
    for folder, names, inside in os.walk(place, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        is_run = "config.yaml" in inside and not set(_FILES).isdisjoint(inside)
        if is_run and real not in seen:
            yield Path(folder)
        is_leaf = is_run or "glue.yaml" in inside  # fine-tuning runs are no runs to compare
        names[:] = [] if is_leaf or real in seen else sorted(name for name in names if not name.startswith("."))
        seen.add(real)


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{files.shown(path)}, line {number} is damaged: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{files.shown(path)}, line {number} is damaged: it is no row")
    return row


def _whole(digits: str) -> int:
    """A whole number that a float can hold, too."""
    if len(digits) > 300:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value
