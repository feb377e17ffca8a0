"""The typed schema of `apollo-glue`, and its command line: what is typed over the values in conf/glue.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, Field

from apollo_cli.config.conf_folder import CONF
from apollo_cli.config.config import DEVICE, RunArgs
from apollo_cli.config.schema import Decay, List, Names, Section, Seed, Share, Size, Whole, closest, validate
from apollo_cli.config.training import BudgetArgs, CheckpointArgs, EvalArgs, LogArgs, OptimArgs, TrackingArgs
from apollo_cli.errors import ConfigError
from apollo_cli.glue.tasks import TASKS, GlueTask

ALL = "all"
PLACES = ("run", "model", "out", "resume", "glue.data_dir")  # paths, taken as they are typed
OVERRIDABLE_SECTIONS = (
    "tracking",
    "checkpoint",
    "on_nonfinite",
)  # cannot change the result of a run that can go on
_LISTS = ("task", "seed", "optim.lr")


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class GlueArgs(Section):
    """The keys without a group."""

    run: str | None
    model: str | None
    task: Names
    seed: Annotated[tuple[Seed, ...], List, BeforeValidator(_listed), Field(min_length=1)]
    out: str | None
    resume: str | None
    device: Annotated[str, DEVICE]
    precision: Literal["auto", "fp32", "bf16"]
    on_nonfinite: Literal["stop", "skip"]


class GlueRecipe(Section):
    """`glue`: the data, and how long a model learns from it."""

    data_dir: str | None
    epochs: Whole
    max_length: Annotated[Size, Field(ge=8)]
    dropout: Annotated[float, Field(ge=0, lt=1)]


class GlueBatchArgs(Section):
    """`batch`."""

    size: Size


class OptimGrid(Section):
    """`optim`: as apollo-train's, with several learning rates."""

    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], List, BeforeValidator(_listed), Field(min_length=1)]
    schedule: Literal["cosine", "linear", "wsd", "constant"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    decay: Annotated[float, Field(gt=0, le=1)]
    final_lr: Share
    betas: Annotated[tuple[Decay, Decay], List]
    eps: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0, le=1000)]
    clip: Annotated[float, Field(ge=0)]

    def at(self, lr: float) -> OptimArgs:
        """With one of the learning rates."""
        return OptimArgs(**self.model_dump(exclude={"lr"}), lr=lr, knots=None, at_growth="continue")


@dataclass(frozen=True)
class CellConfig:
    """What a fine-tuning run is, in the sections that the training loop reads. `raw` is for config.yaml and W&B."""

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
    """A whole valid config. `raw` is the same as plain values, as written to glue.yaml."""

    asked: GlueArgs
    glue: GlueRecipe
    batch: GlueBatchArgs
    optim: OptimGrid
    checkpoint: CheckpointArgs
    log: LogArgs
    tracking: TrackingArgs
    raw: dict[str, Any]

    @property
    def tasks(self) -> list[GlueTask]:
        """Those that are asked for, each once, in the order of GLUE."""
        return [task for name, task in TASKS.items() if name in self.asked.task or ALL in self.asked.task]

    @property
    def data_dir(self) -> Path | None:
        """Of the original files; None for the hub."""
        return Path(self.glue.data_dir).expanduser() if self.glue.data_dir else None

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides a score beside task, learning rate and seed."""
        optim = {key: value for key, value in self.raw["optim"].items() if key != "lr"}
        recipe = {key: value for key, value in self.raw["glue"].items() if key != "data_dir"}
        return {"glue": recipe, "batch": self.raw["batch"], "optim": optim}

    def cell(self, task: GlueTask, lr: float, seed: int, rows: int) -> CellConfig:
        """The run of a task with this learning rate and seed, on so many training rows."""
        steps_per_epoch = -(-rows // self.batch.size)
        name = f"{task.name}_lr{lr:g}_seed{seed}"
        asked = self.asked
        return CellConfig(
            run=RunArgs(
                seed=seed,
                name=name,
                device=asked.device,
                devices=None,
                precision=asked.precision,
                compile=False,  # the lengths change from step to step
                on_nonfinite=asked.on_nonfinite,
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


def parse(raw: Mapping[str, Any]) -> GlueConfig:
    """A valid config from plain values.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems: list[str] = []
    plain = {key: value for key, value in raw.items() if key not in _SECTIONS}
    sections: dict[str, Any] = {"asked": validate(GlueArgs, "", plain, problems)}
    for name, section in _SECTIONS.items():
        values = raw.get(name)
        if not isinstance(values, Mapping):
            problems.append(f"{name}: missing, it must be a group of keys")
            continue
        sections[name] = validate(section, f"{name}.", values, problems)
    problems += _problems_of_asked(plain)
    if problems:
        raise ConfigError(problems)
    return GlueConfig(**sections, raw=dict(raw))


def _problems_of_asked(plain: Mapping[str, Any]) -> list[str]:
    """What is wrong with names of tasks, and with what is to be fine-tuned."""
    known, named = [*TASKS, ALL], _listed(plain.get("task"))
    found = [
        f"task={name}: no such task{closest(str(name).lower(), known)}; GLUE has {', '.join(TASKS)}, and task=all"
        for name in named
        if name not in known
    ]
    if not named:
        found.append(f"task is empty: name some of {', '.join(known)}")
    if bool(plain.get("run")) == bool(plain.get("model")):
        found.append(
            "type either run=RUN_DIR, a run of apollo-train, or model=FOLDER, a model in transformers' format"
        )
    return found


def compose_words(words: Sequence[str]) -> dict[str, Any]:
    """The plain values of conf/glue.yaml with what is typed.

    Raises:
        ConfigError: a word that is no KEY=VALUE, or names no key.
    """
    problems: list[str] = []
    places = {key: value for key, value in (_place(word) for word in words) if key}
    overrides = [made for word in words if not _place(word)[0] and (made := _override(word, problems))]
    known = _leaves("", _composed([]))
    for key in (override.partition("=")[0].lstrip("+") for override in overrides):
        if key not in known and key != "tracking":
            problems.append(f"{key}: no such key{closest(key, known)}")
    if problems:
        raise ConfigError(problems)
    try:
        values = _composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([str(error).strip().splitlines()[0]]) from error
    for key, value in places.items():
        section, _, leaf = key.rpartition(".")
        (values[section] if section else values)[leaf] = value
    return values


def beside_resume(words: Sequence[str], typed: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the command that is resumed, with what may be typed beside `resume=`.

    Args:
        words: as they are typed.
        typed: the values that they compose.
        before: those of the command that is resumed.

    Raises:
        ConfigError: something could change the result.
    """
    sections = {word.partition("=")[0].partition(".")[0] for word in words} - {"resume"}
    if unfit := sorted(sections - set(OVERRIDABLE_SECTIONS)):
        can = ", ".join(OVERRIDABLE_SECTIONS)
        raise ConfigError(
            [f"{', '.join(unfit)}: what is resumed goes on as it was asked for; only {can} may be typed, too"]
        )
    return {**before, **{section: typed[section] for section in sections}}


def _place(word: str) -> tuple[str, str | None]:
    """The key and the path of a word that names a place, which may hold what Hydra cannot read; else empty."""
    key, _, value = word.partition("=")
    return (key, None if value in ("", "null") else value) if key in PLACES else ("", None)


def _override(word: str, problems: list[str]) -> str:
    """The word as Hydra takes it: several values of a key that has a list are one list."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        problems.append(f"{word}: not understood; type KEY=VALUE, lists as KEY=A,B")
        return ""
    if not override.is_sweep_override():
        return word
    key, _, values = word.partition("=")
    if key not in _LISTS:
        problems.append(f"{word}: one value is possible; several are for {', '.join(_LISTS)}")
    return f"{key}=[{values}]"


def _composed(overrides: list[str]) -> dict[str, Any]:
    with initialize_config_module(CONF, version_base="1.3"):
        return OmegaConf.to_container(compose("glue", overrides), resolve=True)  # type: ignore[return-value]


def _leaves(prefix: str, values: Mapping[str, Any]) -> list[str]:
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += _leaves(f"{name}.", value) if isinstance(value, Mapping) else [name]
    return found
