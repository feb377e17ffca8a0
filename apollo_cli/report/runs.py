"""Runs read from run directories: complete ones, and compact ones without weights."""

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
from apollo_cli.report.glue_scores import GlueScores, read_glue_scores
from apollo_cli.run_directory import RunDirectory

Row = dict[str, Any]
ModelSize = tuple[int, float]  # stored layers, share of the width

_COLUMNS = ("step", "flops", "train_seconds", "layers")  # in every row
_OPTIONAL_COLUMNS = (
    *("eval/loss", "train/loss", "train/grad_norm", "width"),
    *("growth/from", "growth/to", "growth/width_from", "growth/width_to"),
)
MADE_WITH = ("device", "precision", "git_commit")  # in summary.json
_RUN_FILES = ("plan.json", "summary.json", "metrics.jsonl", "metrics.jsonl.gz")  # one of them beside config.yaml
_MAX_BYTES = 500_000_000  # of a metrics file; a run writes some thousand a minute
_MAX_LAYERS = 10_000


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
        return RunDirectory(self.folder).summary()

    @cached_property
    def plan(self) -> dict[str, Any]:
        return RunDirectory(self.folder).plan()

    @property
    def metrics_file(self) -> Path | None:
        """metrics.jsonl, or metrics.jsonl.gz of a compact run; None without rows."""
        path = RunDirectory(self.folder).metrics_file
        return next((path for path in (path, path.with_name(f"{path.name}.gz")) if path.is_file()), None)

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
                data = file.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(f"{files.shown(path)} is damaged: {error}") from error
        return [_row(path, number, line) for number, line in enumerate(data.split(b"\n")[:-1], 1)]


@dataclass(frozen=True)
class Run:
    """One run as a comparison needs it."""

    place: str  # the run directory, or ENTITY/PROJECT/ID in W&B
    config: dict[str, Any]  # flat: {"sampler.k": 2, ...}
    status: str  # completed, interrupted, failed or running
    data: str | None  # fingerprint of corpus and tokenizer; None without a summary
    evaluation_rows: int | None  # number of held-out rows; None without a summary
    depth_counts: dict[int, dict[int, int]]  # {stored layers: {depth: micro-steps}} of the plan; may be empty
    rows: Sequence[Row]  # of metrics.jsonl, each with step, flops, train_seconds and layers
    made_with: dict[str, str] = field(default_factory=dict)  # device, precision and git_commit, if recorded
    glue: GlueScores = field(default_factory=GlueScores)
    source_flops: float | None = 0  # cost of the model that the run was initialized from; None if unknown
    source_seconds: float = 0.0

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def target_layers(self) -> Any:
        """The target depth L."""
        return self.config.get("model.layers")

    @property
    def is_scratch(self) -> bool:
        """Whether all layers are stored from the first step and initialized at random."""
        has_one_stage = self.config.get("schedule.layers") == [self.target_layers]
        return has_one_stage and self.config.get("init_from.path") is None

    def is_whole(self, row: Row) -> bool:
        """Whether the row's model has all layers at the whole width."""
        return model_size(row) == (self.target_layers, 1)

    @property
    def evaluations(self) -> list[Row]:
        """The rows with a validation loss, those at a growth included; the cost of the source is added."""
        before = {"flops": self.source_flops or 0, "train_seconds": self.source_seconds}
        found = [row for row in self.rows if "eval/loss" in row]
        return [row | {key: row[key] + cost for key, cost in before.items()} for row in found]


def model_size(row: Row) -> ModelSize:
    """Stored layers and share of the width of a row's model; only runs that grow in width record the latter."""
    return row["layers"], row.get("width") or 1.0


def read_runs(words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs in run directories, folders of them, and globs, each once; and a note on those left out.

    Raises:
        DataError: lists every word without a run and every damaged file.
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
        run, place = RunFiles(folder), files.shown(folder)
        try:
            if run.metrics_file is None or not run.rows:
                empty.append(place)
            else:
                glue = read_glue_scores(folder)
                runs.append(make_run(place, run.config, run.summary, run.plan, run.rows, glue=glue))
        except ApolloError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return runs, [f"left out, without a row: {first_of(empty)}"] if empty else []


def printable(value: Any) -> str:
    """Untrusted text as one line without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def first_of(places: Sequence[str], count: int = 3) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(places) - count} more" if len(places) > count else ""
    return ", ".join(map(printable, places[:count])) + more


def make_run(
    place: str,
    config: dict[str, Any],
    summary: dict[str, Any],
    plan: dict[str, Any],
    rows: Sequence[Row],
    **more: Any,
) -> Run:
    """The run of a flat config and of the contents of summary.json, plan.json and metrics.jsonl, all untrusted.

    Raises:
        DataError: names what is damaged.
    """
    if problems := _config_problems(f"{place}/config.yaml", config):
        raise DataError("\n".join(problems))
    facts = summary["data"] if isinstance(summary.get("data"), dict) else {}
    data, evaluation_rows = facts.get("fingerprint"), facts.get("evaluation_rows")
    depth_counts, flops, seconds = _checked_plan(f"{place}/plan.json", plan)
    _check_rows(f"{place}/metrics.jsonl", rows)
    return Run(
        place=place,
        config=config,
        status=printable(summary.get("status")),
        data=data if isinstance(data, str) else None,
        evaluation_rows=evaluation_rows if type(evaluation_rows) is int else None,
        depth_counts=depth_counts,
        rows=rows,
        made_with={key: printable(summary[key]) for key in MADE_WITH if summary.get(key)},
        source_flops=flops,
        source_seconds=seconds,
        **more,
    )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"sampler.k": 2, ...}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _config_problems(place: str, config: dict[str, Any]) -> list[str]:
    found = []
    if config.get("model.kind") not in ("bert", "gpt"):
        found.append(f"{place}: model.kind is {config.get('model.kind')!r}, it should be bert or gpt")
    if type(config.get("model.layers")) is not int or not 0 < config["model.layers"] <= _MAX_LAYERS:
        found.append(f"{place}: model.layers is {config.get('model.layers')!r}, it should be a whole number")
    layers = config.get("schedule.layers")
    if not isinstance(layers, list) or not all(type(n) is int and n > 0 for n in layers):
        found.append(f"{place}: schedule.layers is {layers!r}, it should be a list of whole numbers")
    return found


def _checked_plan(place: str, plan: dict[str, Any]) -> tuple[dict[int, dict[int, int]], float | None, float]:
    """{stored layers: {depth: micro-steps}}, FLOPs and seconds of the source."""
    flops, seconds = plan.get("source_flops", 0), plan.get("source_seconds", 0.0)
    for value in (flops, seconds):
        if not isinstance(value, int | float | None) or (value is not None and not 0 <= value < math.inf):
            raise DataError(f"{place} is damaged: the cost of its source is {value!r}")
    depth_counts: dict[int, Counter[int]] = {}
    try:
        for stage in plan.get("stages", []):  # several may store as many layers
            counts = {int(depth): int(n) for depth, n in stage["depth_counts"].items() if n}
            depth_counts.setdefault(int(stage["layers"]), Counter()).update(counts)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{place} is damaged: its stages are not those of a plan") from error
    return {layers: dict(counts) for layers, counts in depth_counts.items()}, flops, seconds or 0.0


def _check_rows(place: str, rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows, 1):
        for column in _COLUMNS:
            if type(row.get(column)) not in (int, float) or not 0 <= row[column] < math.inf:
                raise DataError(f"{place}, line {number} is damaged: {column} is {row.get(column)!r}")
        for column in _OPTIONAL_COLUMNS:
            if not isinstance(row.get(column), int | float | None):
                raise DataError(f"{place}, line {number} is damaged: {column} is {row[column]!r}")


def _run_directories(word: str, problems: list[str]) -> list[Path]:
    """The run directories that a word means; unreadable folders are added to `problems`."""
    matches = [word] if Path(word).is_dir() else sorted(glob(word, recursive=True))  # noqa: PTH207 - may be absolute
    return [folder for match in matches if Path(match).is_dir() for folder in _below(Path(match), problems)]


def _below(place: Path, problems: list[str]) -> Iterator[Path]:
    """`place` if it is a run directory, else those below it; links are followed, runs are not entered."""

    def unreadable(error: OSError) -> None:
        problems.append(f"{files.shown(Path(error.filename))} cannot be read: {error.strerror}")

    seen = set()
    for folder, names, inside in os.walk(place, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        is_run = "config.yaml" in inside and not set(_RUN_FILES).isdisjoint(inside)
        if is_run and real not in seen:
            yield Path(folder)
        is_leaf = is_run or "glue.yaml" in inside  # a fine-tuning run
        names[:] = [] if is_leaf or real in seen else sorted(name for name in names if not name.startswith("."))
        seen.add(real)


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line, parse_int=_parse_int)
        if isinstance(row, dict):
            return row
        raise ValueError("it is no row")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{files.shown(path)}, line {number} is damaged: {error}") from error


def _parse_int(digits: str) -> int:
    """The integer, if a float can hold it too."""
    if len(digits) > 300:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)
