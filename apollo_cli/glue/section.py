"""The typed schema of `apollo-glue`, and its command line: words over the values of conf/glue.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, Field

from apollo_cli.config.config import DEVICE, RunArgs
from apollo_cli.config.hydra_syntax import compose_values, parse_overrides
from apollo_cli.config.schema import List, Names, Section, Seed, Size, Whole, closest, validate
from apollo_cli.config.training import BudgetArgs, CheckpointArgs, EvalArgs, LogArgs, OptimArgs, TrackingArgs
from apollo_cli.errors import ConfigError
from apollo_cli.glue.tasks import TASKS, GlueTask

ALL = "all"
PATH_KEYS = ("run", "model", "out", "resume", "glue.data_dir")  # taken literally, outside Hydra's grammar
OVERRIDABLE_SECTIONS = ("tracking", "checkpoint", "on_nonfinite")  # cannot change the result of a resumed run
_LIST_KEYS = ("task", "seed", "optim.lr")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class GlueArgs(Section):
    """The keys without a group."""

    run: str | None
    model: str | None
    task: Names
    seed: Annotated[tuple[Seed, ...], List, BeforeValidator(_as_list), Field(min_length=1)]
    out: str | None
    resume: str | None
    device: Annotated[str, DEVICE]
    precision: Literal["auto", "fp32", "bf16"]
    on_nonfinite: Literal["stop", "skip"]


class GlueRecipe(Section):
    """`glue`: the data, and how a model is trained on it."""

    data_dir: str | None
    epochs: Whole
    max_length: Annotated[Size, Field(ge=8)]
    dropout: Annotated[float, Field(ge=0, lt=1)]


class GlueBatchArgs(Section):
    """`batch`: rows per step."""

    size: Size


class OptimGrid(OptimArgs):
    """`optim`, with several learning rates."""

    lr: Annotated[  # type: ignore[assignment]
        tuple[Annotated[float, Field(gt=0)], ...], List, BeforeValidator(_as_list), Field(min_length=1)
    ]
    schedule: Literal["cosine", "linear", "wsd", "constant"]
    knots: None = None
    at_growth: Literal["continue"] = "continue"

    def at(self, lr: float) -> OptimArgs:
        """The same with one learning rate."""
        return OptimArgs(**self.model_dump() | {"lr": lr})


@dataclass(frozen=True)
class CellConfig:
    """One fine-tuning run, in the sections that the trainer reads; `raw` goes to config.yaml and W&B."""

    run: RunArgs
    optim: OptimArgs
    budget: BudgetArgs
    eval: EvalArgs
    checkpoint: CheckpointArgs
    log: LogArgs
    tracking: TrackingArgs
    raw: dict[str, Any]


@dataclass(frozen=True)
class GlueConfig:
    """A whole valid config; `raw` is the same as plain values, as written to glue.yaml."""

    args: GlueArgs
    glue: GlueRecipe
    batch: GlueBatchArgs
    optim: OptimGrid
    checkpoint: CheckpointArgs
    log: LogArgs
    tracking: TrackingArgs
    raw: dict[str, Any]

    @property
    def tasks(self) -> list[GlueTask]:
        """The selected tasks, each once, in the order of GLUE."""
        return [task for name, task in TASKS.items() if name in self.args.task or ALL in self.args.task]

    @property
    def data_dir(self) -> Path | None:
        """The folder of the original files; None for the hub."""
        return Path(self.glue.data_dir).expanduser() if self.glue.data_dir else None

    @property
    def recipe(self) -> dict[str, Any]:
        """The values that decide a score, beside task, learning rate and seed."""
        optim = {key: value for key, value in self.raw["optim"].items() if key != "lr"}
        recipe = {key: value for key, value in self.raw["glue"].items() if key != "data_dir"}
        return {"glue": recipe, "batch": self.raw["batch"], "optim": optim}

    def cell(self, task: GlueTask, lr: float, seed: int, rows: int) -> CellConfig:
        """The fine-tuning run of a task with this learning rate and seed, on `rows` training rows."""
        steps_per_epoch = -(-rows // self.batch.size)
        return CellConfig(
            run=RunArgs(
                seed=seed,
                name=f"{task.name}_lr{lr:g}_seed{seed}",
                device=self.args.device,
                devices=None,
                precision=self.args.precision,
                compile=False,  # the lengths change from step to step
                on_nonfinite=self.args.on_nonfinite,
                plan=False,
                resume=None,
            ),
            optim=self.optim.at(lr),
            budget=BudgetArgs(steps=self.glue.epochs * steps_per_epoch, tokens=None, flops=None, seconds=None),
            eval=EvalArgs(every=steps_per_epoch, rows=rows),
            checkpoint=self.checkpoint,
            log=self.log,
            tracking=self.tracking,
            raw={"task": task.name, "lr": lr, "seed": seed, **self.recipe},
        )


_SECTIONS: dict[str, type[Section]] = {
    "glue": GlueRecipe,
    "batch": GlueBatchArgs,
    "optim": OptimGrid,
    "checkpoint": CheckpointArgs,
    "log": LogArgs,
    "tracking": TrackingArgs,
}


def parse_glue(raw: Mapping[str, Any]) -> GlueConfig:
    """A valid config from plain values.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems: list[str] = []
    plain = {key: value for key, value in raw.items() if key not in _SECTIONS}
    sections: dict[str, Any] = {"args": validate(GlueArgs, "", plain, problems)}
    for name, section in _SECTIONS.items():
        values = raw.get(name)
        if not isinstance(values, Mapping):
            problems.append(f"{name}: missing, it must be a group of keys")
            continue
        sections[name] = validate(section, f"{name}.", values, problems)
    problems += _task_problems(_as_list(plain.get("task")))
    if bool(plain.get("run")) == bool(plain.get("model")):
        problems.append(
            "type either run=RUN_DIR, a run of apollo-train, or model=FOLDER, a model in transformers' format"
        )
    if problems:
        raise ConfigError(problems)
    return GlueConfig(**sections, raw=dict(raw))


def _task_problems(names: Sequence[Any]) -> list[str]:
    known = [*TASKS, ALL]
    if not names:
        return [f"task is empty: name some of {', '.join(known)}"]
    return [
        f"task={name}: no such task{closest(str(name).lower(), known)}; GLUE has {', '.join(TASKS)}, and task=all"
        for name in names
        if name not in known
    ]


def compose_words(words: Sequence[str]) -> dict[str, Any]:
    """The plain values of conf/glue.yaml with these words applied.

    Raises:
        ConfigError: a word is not KEY=VALUE, or its key does not exist.
    """
    problems: list[str] = []
    parts = [word.partition("=") for word in words]
    paths = {key: None if value in ("", "null") else value for key, _, value in parts if key in PATH_KEYS}
    known = [
        f"{name}.{key}" if key else name
        for name, value in compose_values([], "glue").items()
        for key in (value if isinstance(value, dict) else [""])
    ]
    overrides = []
    for override in parse_overrides(["".join(part) for part in parts if part[0] not in PATH_KEYS], problems):
        key, _, value = (override.input_line or "").lstrip("+").partition("=")
        if key not in [*known, "tracking"]:
            problems.append(f"{key}: no such key{closest(key, known)}")
        elif override.is_sweep_override() and key not in _LIST_KEYS:
            problems.append(f"{key}={value}: takes one value; several are for {', '.join(_LIST_KEYS)}")
        overrides.append(f"{key}=[{value}]" if override.is_sweep_override() else override.input_line or "")
    if problems:
        raise ConfigError(problems)
    try:
        values = compose_values(overrides, "glue")
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([str(error).strip().splitlines()[0]]) from error
    for path_key, path in paths.items():
        section, _, leaf = path_key.rpartition(".")
        (values[section] if section else values)[leaf] = path
    return values


def resumed_values(words: Sequence[str], typed: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a resumed command with the sections typed beside `resume=`.

    Args:
        words: as typed.
        typed: the values that they compose.
        saved: the values of the resumed command.

    Raises:
        ConfigError: a word could change the result.
    """
    sections = {word.partition("=")[0].partition(".")[0] for word in words} - {"resume"}
    if refused := sorted(sections - set(OVERRIDABLE_SECTIONS)):
        keys, allowed = ", ".join(refused), ", ".join(OVERRIDABLE_SECTIONS)
        raise ConfigError([f"{keys}: a resumed command keeps its own values; only {allowed} may be typed too"])
    return {**saved, **{section: typed[section] for section in sections}}
