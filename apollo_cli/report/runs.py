"""Runs read from run directories and checked: they may be damaged, unfinished or of strangers."""

import math
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypeAlias

from pydantic import AliasPath, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from apollo_cli import files
from apollo_cli.config.schema import flat
from apollo_cli.errors import ApolloError, DataError, one_line
from apollo_cli.glue.tasks import TASKS
from apollo_cli.growth.samplers import is_scratch
from apollo_cli.models.model_config import Kind
from apollo_cli.run_directory import RunDirectory

Row = dict[str, Any]
ModelSize = tuple[int, float]  # stored layers, share of the width

ROWS_AROUND = 12  # training rows on either side of a growth that are kept
GLUE_FILE = Path("glue") / "results.json"  # in a run directory, written by apollo-glue
MADE_WITH = ("device", "precision", "git_commit")  # in summary.json
_RUN_FILES = ("plan.json", "summary.json", "metrics.jsonl")  # one of them beside config.yaml
_MAX_LINE = 1_000_000  # bytes of a row, which has some hundred

_Layers = Annotated[int, Field(ge=0, le=10_000)]
_Step = Annotated[int, Field(ge=0, lt=2**63)]
_Cost = Annotated[float, Field(ge=0, le=1e40, allow_inf_nan=False)]
_Loss: TypeAlias = float | None  # None or NaN where it was not finite


class _Config(BaseModel):
    model_config = ConfigDict(strict=True)
    kind: Kind = Field(alias="model.kind")
    layers: _Layers = Field(alias="model.layers")
    stages: list[_Layers] = Field(alias="schedule.layers")


class _Stage(BaseModel):
    layers: _Layers
    depth_counts: dict[_Layers, Annotated[int, Field(ge=0)]]


class _Plan(BaseModel):
    source_flops: _Cost | None = 0
    source_seconds: _Cost | None = 0
    stages: list[_Stage] = []


class GlueTaskResults(BaseModel):
    """The part of a task in results.json of `apollo-glue`."""

    mean: Annotated[float, Field(ge=-1, le=1)]  # over fine-tuning seeds
    frequent: float | None = None  # score of always answering the most frequent label
    rates: Any = None
    data: Any = None


class GlueScores(BaseModel):
    """The results that `apollo-glue` left in a run directory; empty where it was not fine-tuned."""

    tasks: dict[Literal[tuple(TASKS)], GlueTaskResults] = {}  # type: ignore[valid-type]
    recipe: Any = None
    loss: Annotated[float, Field(allow_inf_nan=False)] | None = Field(  # validation loss of the fine-tuned weights
        default=None, validation_alias=AliasPath("pretrained", "eval/loss")
    )

    def recipe_of(self, task: str) -> str:
        """How, at which learning rates and on which rows it was fine-tuned."""
        return repr((self.recipe, self.tasks[task].rates, self.tasks[task].data))


_Columns = TypedDict(  # of a row; others are left out
    "_Columns",
    {
        "step": Required[_Step],
        "flops": Required[_Cost],
        "train_seconds": Required[_Cost],
        "layers": Required[_Layers],
        "width": _Loss,
        "optimizer_flops": _Cost,
        "gated": bool | None,
        "eval/loss": _Loss,
        "train/loss": _Loss,
        "train/grad_norm": _Loss,
        "growth/from": _Layers,
        "growth/to": _Layers,
        "growth/width_from": _Loss,
        "growth/width_to": _Loss,
    },
    total=False,
)
ROW: TypeAdapter[Any] = TypeAdapter(_Columns)


@dataclass(frozen=True)
class Run:
    """One run as a comparison needs it."""

    place: str  # the run directory, or ENTITY/PROJECT/ID in W&B
    config: dict[str, Any]  # flat: {"sampler.k": 2, ...}
    status: str  # completed, interrupted, failed or running
    data: str | None  # fingerprint of corpus and tokenizer; None without a summary
    evaluation_rows: int | None  # number of held-out rows; None without a summary
    depth_counts: dict[int, dict[int, int]]  # {stored layers: {depth: micro-steps}} of the plan; may be empty
    rows: Sequence[Row]  # of metrics.jsonl: all evaluations, and the training rows around growths
    made_with: dict[str, str] = field(default_factory=dict)  # device, precision and git_commit, if recorded
    glue: GlueScores = field(default_factory=GlueScores)
    source_flops: float | None = 0  # cost of the model that the run was initialized from; None if unknown
    source_seconds: float = 0.0
    frequency_loss: float | None = None  # of always answering by frequency; None if it was not measured

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def target_layers(self) -> Any:
        """The target depth L."""
        return self.config.get("model.layers")

    @property
    def is_scratch(self) -> bool:
        """Whether it trains all layers in every step, from random weights."""
        keys = ("schedule.layers", "model.layers", "sampler.kind", "init_from.path")
        return is_scratch(*map(self.config.get, keys))

    @property
    def shape(self) -> tuple[Any, ...]:
        """The target depth, and the sizes of a layer."""
        sizes = ("kind", "hidden", "heads", "ffn", "kv_heads", "tied")
        return self.target_layers, *(self.config.get(f"model.{key}") for key in sizes)

    @property
    def blocks(self) -> tuple[Any, ...]:
        """What a layer computes; models with equal blocks differ in their number at most. Older runs say less."""
        norm, parametrization = self.config.get("model.norm", "post"), self.config.get("model.parametrization")
        return *self.shape[1:], norm, parametrization or "standard"

    def is_whole(self, row: Row) -> bool:
        """Whether the row's model has all layers at the whole width, and no gates that are still opening."""
        return model_size(row) == (self.target_layers, 1) and not row.get("gated")

    @cached_property
    def evaluations(self) -> list[Row]:
        """The rows with a validation loss, those at a growth included.

        The cost of the source and the optimizer's own FLOPs are added.
        """
        found = []
        for row in self.rows:
            if "eval/loss" in row:
                flops = row["flops"] + (row.get("optimizer_flops") or 0) + (self.source_flops or 0)
                found.append(row | {"flops": flops, "train_seconds": row["train_seconds"] + self.source_seconds})
        return found


def model_size(row: Row) -> ModelSize:
    """Stored layers and share of the width of a row's model; only runs that grow in width record the latter."""
    return row["layers"], row.get("width") or 1.0


def read_runs(words: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs in run directories, folders of them, and globs, each once; and notes on what is left out."""
    problems: list[str] = []
    folders: dict[Path, Path] = {}
    for word in words:
        before = len(problems)
        found = list(_run_directories(word, problems))
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
        if not found and len(problems) == before:
            problems.append(f"{word!r}: no run directory there (one has a config.yaml and a metrics.jsonl)")
    runs, empty = [], []
    for folder in folders.values():
        try:
            run = _read_run(folder)
        except ApolloError as error:
            problems.append(str(error))
            continue
        if run.rows:
            runs.append(run)
        else:
            empty.append(run.place)
    notes = [f"left out: {one_line(problem)}" for problem in problems]
    return runs, [*notes, *([f"left out, for nothing has been trained there: {first_of(empty)}"] if empty else [])]


def _read_run(folder: Path) -> Run:
    directory, place, scores = RunDirectory(folder), files.shown(folder), folder / GLUE_FILE
    config, summary, plan = flat(directory.config()), directory.summary(), directory.plan()
    rows = read_rows(directory.metrics_file) if directory.metrics_file.is_file() else ()
    text = scores.read_bytes() if scores.is_file() else b"{}"
    glue = checked(f"{place}/{GLUE_FILE}", GlueScores.model_validate_json, text)
    return make_run(place, config, summary, plan, rows, glue)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a metrics.jsonl, without a last line that is still being written; a DataError for damage."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
                if line.endswith(b"\n"):
                    yield checked(f"{files.shown(path)}, line {number}", ROW.validate_json, line)
                elif len(line) == _MAX_LINE:
                    raise DataError(f"{files.shown(path)}, line {number} is damaged: it has no end")
    except OSError as error:
        raise DataError(f"{files.shown(path)} cannot be read: {error.strerror}") from error


def first_of(places: Sequence[str], count: int = 3) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(places) - count} more" if len(places) > count else ""
    return ", ".join(map(one_line, places[:count])) + more


def make_run(
    place: str,
    config: dict[str, Any],
    summary: dict[str, Any],
    plan: dict[str, Any],
    rows: Iterable[Row],
    glue: GlueScores = GlueScores(),  # noqa: B008 - never changed
) -> Run:
    """The run of a flat config and the contents of its files, all untrusted; a DataError names what is damaged."""
    checked(f"{place}/config.yaml", _Config.model_validate, config)
    facts = summary["data"] if isinstance(summary.get("data"), dict) else {}
    data, evaluation_rows = facts.get("fingerprint"), facts.get("evaluation_rows")
    by_frequency = summary.get("frequency_loss")
    planned = checked(f"{place}/plan.json", _Plan.model_validate, plan)
    depth_counts: dict[int, Counter[int]] = defaultdict(Counter)
    for stage in planned.stages:  # several may store as many layers
        depth_counts[stage.layers].update({depth: n for depth, n in stage.depth_counts.items() if n})
    return Run(
        place=place,
        config=_plain(config),
        status=one_line(summary.get("status")),
        data=data if isinstance(data, str) else None,
        evaluation_rows=evaluation_rows if type(evaluation_rows) is int else None,
        depth_counts={layers: dict(counts) for layers, counts in depth_counts.items()},
        rows=_around_growths(rows),
        made_with={key: one_line(summary[key]) for key in MADE_WITH if summary.get(key)},
        glue=glue,
        source_flops=planned.source_flops,
        source_seconds=planned.source_seconds or 0.0,
        frequency_loss=by_frequency if isinstance(by_frequency, float) and math.isfinite(by_frequency) else None,
    )


def _plain(value: Any) -> Any:
    """A value of YAML as a config has it; what no config has, such as bytes or a number of 400 digits, as text."""
    if isinstance(value, list):
        return list(map(_plain, value))
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if value is None or isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return f"{value:#x}" if isinstance(value, int) else repr(value)


def checked(place: str, validate: Any, value: Any) -> Any:
    """The value as a method of pydantic validates it; a DataError with `place` if it is damaged."""
    try:
        return validate(value)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{place} is damaged: {key + ': ' if key else ''}{first['msg']}") from error


def _around_growths(rows: Iterable[Row]) -> list[Row]:
    """All evaluations, and of each model size the first and the last training rows."""
    evaluations: list[Row] = []
    first: dict[ModelSize, list[Row]] = defaultdict(list)
    last: dict[ModelSize, deque[Row]] = defaultdict(lambda: deque(maxlen=ROWS_AROUND))
    for row in rows:
        size = model_size(row)
        if "eval/loss" in row:
            evaluations.append(row)
        elif len(first[size]) < ROWS_AROUND:
            first[size].append(row)
        else:
            last[size].append(row)
    return [*evaluations, *(row for size in first for row in (*first[size], *last[size]))]


def _run_directories(word: str, problems: list[str]) -> Iterator[Path]:
    """The run directories that a word means: one, a folder or a glob; adds unreadable folders to `problems`.

    Links are followed once, and runs are not entered.
    """

    def unreadable(error: OSError) -> None:
        problems.append(f"{files.shown(Path(error.filename))} cannot be read: {error.strerror}")

    seen = set()
    matches = [word] if Path(word).is_dir() else sorted(glob(word, recursive=True))  # noqa: PTH207 - may be absolute
    for place in filter(os.path.isdir, matches):
        for folder, names, inside in os.walk(place, onerror=unreadable, followlinks=True):
            real = os.path.realpath(folder)
            is_run = "config.yaml" in inside and not set(_RUN_FILES).isdisjoint(inside)
            if is_run and real not in seen:
                yield Path(folder)
            is_leaf = is_run or "glue.yaml" in inside or real in seen  # glue.yaml: of fine-tuning runs
            names[:] = [] if is_leaf else sorted(name for name in names if not name.startswith("."))
            seen.add(real)
