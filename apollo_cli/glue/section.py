"""The config of `apollo-glue`: conf/glue.yaml, or that of a resumed command, with the typed words applied."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, Field

from apollo_cli import files
from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.config.config import DEVICE, RunArgs
from apollo_cli.config.schema import List, Section, Seed, Size, Whole, validate
from apollo_cli.config.training import AdamWArgs, LogArgs, OptimArgs, TrackingArgs
from apollo_cli.errors import CheckpointError, ConfigError
from apollo_cli.glue.tasks import TASKS, GlueTask
from apollo_cli.run_directory import read_keys

VALUES, FORMAT = "glue.yaml", 1  # a folder of results has the values of its command
ALL = "all"
OVERRIDABLE_SECTIONS = ("tracking", "checkpoint", "on_nonfinite")  # cannot change the result of a resumed run
_PATH_KEYS = ("run", "model", "out", "resume", "glue.data_dir")  # taken literally
_LIST_KEYS = ("task", "seed", "optim.lr")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _in_lower_case(names: Any) -> Any:
    return [name.lower() if isinstance(name, str) else name for name in _as_list(names)]


class GlueRecipe(Section):
    """`glue`: the data, and how a model is trained on it."""

    data_dir: str | None
    epochs: Whole
    max_length: Annotated[Size, Field(ge=8)]
    dropout: Annotated[float, Field(ge=0, lt=1)]


class GlueBatchArgs(Section):
    """`batch`: rows per step."""

    size: Size


class GlueCheckpointArgs(Section):
    """`checkpoint`: steps between checkpoints, and how many are kept."""

    every: Whole
    keep: Whole


class OptimGrid(AdamWArgs):
    """`optim`: AdamW with several learning rates."""

    lr: Annotated[  # type: ignore[assignment]
        tuple[Annotated[float, Field(gt=0)], ...], List, BeforeValidator(_as_list), Field(min_length=1)
    ]
    schedule: Literal["cosine", "linear", "wsd", "constant"]

    def at(self, lr: float) -> OptimArgs:
        return OptimArgs(**self.model_dump() | {"lr": lr, "knots": None, "at_growth": "continue"})


class GlueConfig(Section):
    """A whole valid config."""

    run: str | None
    model: str | None
    task: Annotated[
        tuple[Literal[(*TASKS, ALL)], ...],  # type: ignore[valid-type]
        List, BeforeValidator(_in_lower_case), Field(min_length=1),
    ]  # fmt: skip
    seed: Annotated[tuple[Seed, ...], List, BeforeValidator(_as_list), Field(min_length=1)]
    out: str | None
    resume: str | None
    device: Annotated[str, DEVICE]
    precision: Literal["auto", "fp32", "bf16"]
    on_nonfinite: Literal["stop", "skip"]
    glue: GlueRecipe
    batch: GlueBatchArgs
    optim: OptimGrid
    checkpoint: GlueCheckpointArgs
    log: LogArgs
    tracking: TrackingArgs

    def rule_problems(self) -> Iterable[str]:
        for _, section in self:
            if isinstance(section, Section):
                yield from section.rule_problems()

    @classmethod
    def located(cls, prefix: str, detail: Any) -> tuple[str, list[str]]:
        """The dotted key of a pydantic error, and the known keys of its section."""
        section, *names = [part for part in detail["loc"] if isinstance(part, str)]
        inner = cls.model_fields[section].annotation if names else cls
        known: list[str] = list(inner.model_fields)  # type: ignore[union-attr]
        return ".".join([section, *names]), [f"{section}.{name}" for name in known] if names else known

    @property
    def tasks(self) -> list[GlueTask]:
        """The selected tasks, each once, in the order of GLUE."""
        return [task for name, task in TASKS.items() if name in self.task or ALL in self.task]

    @property
    def data_dir(self) -> Path | None:
        """The folder of the original files; None for the hub."""
        return Path(self.glue.data_dir) if self.glue.data_dir else None

    @property
    def plain(self) -> dict[str, Any]:
        """The plain values, as written to glue.yaml."""
        return self.model_dump(mode="json")

    @property
    def recipe(self) -> dict[str, Any]:
        """The values that decide a score, beside task, learning rate and seed."""
        plain = self.plain
        del plain["glue"]["data_dir"], plain["optim"]["lr"]
        return {section: plain[section] for section in ("glue", "batch", "optim")}

    @property
    def run_args(self) -> RunArgs:
        """What decides the device; nothing is compiled, for the lengths change from step to step."""
        chosen = {key: getattr(self, key) for key in ("device", "precision", "on_nonfinite")}
        return RunArgs(seed=0, name="glue", devices=None, compile=False, plan=False, resume=None, **chosen)


def parse_glue(values: Mapping[str, Any]) -> GlueConfig:
    """A valid config from plain values; a ConfigError has every problem that was found."""
    problems: list[str] = []
    config = validate(GlueConfig, "", values, problems)
    if bool(values.get("run")) == bool(values.get("model")):
        problems.append(
            "type either run=RUN_DIR, a run of apollo-train, or model=FOLDER, a model in transformers' format"
        )
    if problems or config is None:
        raise ConfigError(*problems)
    return config


def compose_words(words: Sequence[str]) -> dict[str, Any]:
    """The plain values of conf/glue.yaml, or of the command that `resume=` names, with these words applied.

    Raises:
        ConfigError: a word is not KEY=VALUE, or could change the result of a resumed command.
        CheckpointError: there is no command to resume.
    """
    problems: list[str] = []
    typed = [(word, *word.partition("=")[::2]) for word in words]
    resumed = next((text for _, key, text in typed if key == "resume" and text), None)
    values = saved_values(Path(resumed)) if resumed else _default_values()
    for word, key, text in typed:
        section, _, leaf = key.rpartition(".")
        if "=" not in word:
            problems.append(f"{word}: not understood; type KEY=VALUE")
        elif key == "tracking" and text in ("wandb", "local", "tensorboard"):
            values["tracking"] = _tracking(text)
        elif isinstance(values.get(key), dict):
            instead = (
                "tracking=wandb, tracking=local or tracking=tensorboard"
                if key == "tracking"
                else f"{key}.KEY=VALUE"
            )
            problems.append(f"{word}: {key} is a group of keys; type {instead}")
        elif isinstance(place := values.setdefault(section, {}) if section else values, dict):
            try:
                place[leaf] = _parsed(key, text)
            except (yaml.YAMLError, OmegaConfBaseException):
                problems.append(f"{word}: not understood; lists are 'KEY=[1,2]' in quotes")
        else:
            problems.append(f"{word}: {section} has no keys; type {section}=VALUE")
    sections = {key.partition(".")[0] for _, key, _ in typed} - {"resume", *OVERRIDABLE_SECTIONS}
    if resumed and sections:
        keys, allowed = ", ".join(sorted(sections)), ", ".join(OVERRIDABLE_SECTIONS)
        problems.append(f"{keys}: a resumed command keeps its own values; only {allowed} may be typed too")
    if problems:
        raise ConfigError(*problems)
    return values | {"resume": None}


def saved_values(out: Path) -> dict[str, Any]:
    """The plain values of the command that created these results; a CheckpointError if there is none of ours."""
    path = out / VALUES
    if not path.is_file():
        raise CheckpointError(f"resume={out}: not a folder of fine-tuning runs (no {VALUES} in it)")
    values = read_keys(path)
    if values.pop("format", None) != FORMAT:
        raise CheckpointError(f"{files.shown(path)}: written by another version of apollo-glue")
    values.pop("weights", None)
    return values | {"out": str(out), "resume": None}


def _default_values() -> dict[str, Any]:
    """conf/glue.yaml with the tracking that its defaults name."""
    values = read_keys(conf_folder() / VALUES)
    (tracking,) = (each["tracking"] for each in values.pop("defaults") if isinstance(each, dict))
    return values | {"tracking": _tracking(tracking)}


def _tracking(name: str) -> dict[str, Any]:
    folder = conf_folder() / "tracking"
    values = read_keys(folder / "_common.yaml") | read_keys(folder / f"{name}.yaml")
    del values["defaults"]
    return values


def _parsed(key: str, text: str) -> Any:
    """The value of what is typed: YAML, several values as a list, a path as it stands."""
    if key in _PATH_KEYS:
        return None if text in ("", "null") else str(Path(text).expanduser())
    as_list = key in _LIST_KEYS and not text.startswith("[")
    value = OmegaConf.from_dotlist([f"value=[{text}]" if as_list else f"value={text}"])
    return OmegaConf.to_container(value)["value"]  # type: ignore[index, call-overload]
