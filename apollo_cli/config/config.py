"""The whole config: its sections, the keys without a group, and the rules between sections.

All default values are in `conf/`. `parse` reports every problem in one error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

from apollo_cli.config.data import DATA_FAMILY, DataArgs, completed, is_streamed
from apollo_cli.config.growth import (
    EXPANDER_FAMILY,
    SAMPLER_FAMILY,
    ExpanderArgs,
    InitFromArgs,
    SamplerArgs,
    ScheduleArgs,
    growth_problems,
    plateau_problems,
    with_numbers_of_layers,
)
from apollo_cli.config.model import MODEL_FAMILY, ModelArgs, with_sizes
from apollo_cli.config.schema import Section, Seed, Whole, Word, as_typed, matching, member, validate
from apollo_cli.config.training import (
    BatchArgs,
    BudgetArgs,
    CheckpointArgs,
    DistributedArgs,
    EvalArgs,
    LogArgs,
    OptimArgs,
    TrackingArgs,
    growth_rate_problems,
)
from apollo_cli.errors import ConfigError
from apollo_cli.growth import plugins
from apollo_cli.growth.expanders import Ligo
from apollo_cli.models.model_config import ModelConfig

_NAME = matching(
    r"^\w[\w.+=-]{0,199}$",
    "should be at most 200 letters, digits and any of _ . + = -, and begin with a letter, a digit or _, because it "
    "names a folder",
)
DEVICE = matching(r"^(auto|cpu|mps|cuda(:\d{1,3})?)$", "should be auto, cpu, mps, cuda or cuda:N")
PlanDevice = Literal["h200", "h100", "a100", "l40s", "rtx4090", "v100"]  # GPUs whose speed is known
MOST_DEVICES = 64  # in one machine


class RunArgs(Section):
    """The keys without a group."""

    seed: Seed
    name: Annotated[Word, _NAME]
    device: Annotated[str, DEVICE]
    devices: Annotated[Whole, Field(le=MOST_DEVICES)] | None
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", True, False, "graphs"]
    on_nonfinite: Literal["stop", "skip"]
    plan: bool
    plan_device: PlanDevice | None = None  # absent in older runs
    resume: str | None
    profile: bool = False  # absent in older runs

    def rule_problems(self) -> Iterator[str]:
        if self.resume is not None:
            yield "resume: a run is resumed with its own config; type only apollo-train resume=RUN_DIR"


@dataclass(frozen=True)
class Config:
    """A valid config; `raw` has the same plain values, as in config.yaml."""

    run: RunArgs
    model: ModelArgs
    sampler: SamplerArgs
    expander: ExpanderArgs
    schedule: ScheduleArgs
    init_from: InitFromArgs
    data: DataArgs
    optim: OptimArgs
    budget: BudgetArgs
    batch: BatchArgs
    eval: EvalArgs
    checkpoint: CheckpointArgs
    log: LogArgs
    tracking: TrackingArgs
    distributed: DistributedArgs
    raw: dict[str, Any]

    def in_precision(self, precision: Literal["fp32", "bf16"]) -> "Config":
        """The same config with this precision, as it is recorded where `auto` took it."""
        run = self.run.model_copy(update={"precision": precision})
        return replace(self, run=run, raw={**self.raw, "precision": precision})

    @property
    def model_config(self) -> ModelConfig:
        return self.model.build(self.data.vocab_size, self.data.seq_len)


_OF_KINDS = {"model": MODEL_FAMILY, "sampler": SAMPLER_FAMILY, "expander": EXPANDER_FAMILY, "data": DATA_FAMILY}
FAMILIES: dict[str, tuple[type[Section], ...]] = {
    name: _OF_KINDS.get(name, (cls,)) for name, cls in get_type_hints(Config).items() if name not in ("run", "raw")
}


@cache
def fields_of_keys() -> tuple[tuple[str, FieldInfo], ...]:
    """Every key with its field in the schema, once for each kind of its group that has it."""
    sections: dict[str, tuple[type[Section], ...]] = {"": (RunArgs,)}
    sections |= {f"{name}.": family for name, family in FAMILIES.items()}
    return tuple(
        (prefix + key, field)
        for prefix, family in sections.items()
        for cls in family
        for key, field in cls.model_fields.items()
    )


@cache
def text_keys() -> frozenset[str]:
    """The keys whose value is a text, or a list of texts."""
    return frozenset(
        key for key, field in fields_of_keys() if field.annotation in (str, str | None, tuple[str, ...])
    )


def parse(raw: Mapping[str, Any]) -> Config:
    """A valid config from Hydra's resolved values, or those of a config.yaml; a ConfigError has all problems."""
    problems: list[str] = []
    model, data = raw.get("model"), raw.get("data")
    if isinstance(model, Mapping):
        raw = {**raw, "model": with_sizes(model)}
    if isinstance(data, Mapping):
        kind = model.get("kind") if isinstance(model, Mapping) else None
        raw = {**raw, "data": completed(data, kind)}
    raw = with_numbers_of_layers(raw)
    plain = {key: value for key, value in raw.items() if key not in FAMILIES and key != "experiment"}
    sections: dict[str, Any] = {"run": validate(RunArgs, "", plain, problems)}
    for name, family in FAMILIES.items():
        if not isinstance(raw.get(name), Mapping):
            keys = ", ".join(dict.fromkeys(key for cls in family for key in cls.model_fields))
            remedy = f"type {name}.KEY=VALUE, with a KEY of {keys}"
            problems.append(
                f"{name}: missing, it must be a group of keys"
                if (value := raw.get(name)) is None
                else f"{name}={as_typed(value)}: {name} is a group of keys; {remedy}"
            )
            sections[name] = None
            continue
        cls = member(name, family, raw[name], problems)
        if cls is None and name in ("sampler", "expander"):
            problems += plugins.BROKEN
        elif taken := plugins.TAKEN.get(f"{name}={raw[name].get('kind')}"):
            problems.append(taken)
        sections[name] = validate(cls, f"{name}.", raw[name], problems) if cls else None
    problems += _joint_problems(sections)
    if problems:
        raise ConfigError(*problems)
    return Config(**sections, raw=dict(raw))


def _joint_problems(sections: Mapping[str, Any]) -> Iterator[str]:
    """Messages of the rules between sections; one is skipped where one of its sections is not valid."""
    model, expander, schedule = sections["model"], sections["expander"], sections["schedule"]
    budget, optim, data = sections["budget"], sections["optim"], sections["data"]
    if schedule:
        stages = growth_problems(schedule, sections["sampler"], expander, sections["init_from"], model)
        yield from stages or plateau_problems(schedule, expander, budget, optim)
        if optim and not stages:
            yield from growth_rate_problems(optim, schedule.growth_shares)
        by_loss = schedule.when == "plateau" and budget and budget.flops is not None
        if by_loss and data and is_streamed(data):
            yield (
                "data.streaming=true: with schedule.when=plateau and budget.flops the number of steps is known "
                "only after the last growth, and a stream is packed for a number of steps; type budget.steps"
            )
    if sections["distributed"] and sections["distributed"].kind == "fsdp":
        if expander and isinstance(expander.build(), Ligo):
            yield (
                f"distributed=fsdp: the map of expander={expander.kind} is learned on whole weights; take "
                "distributed=ddp"
            )
        if optim and optim.kind == "muon":
            yield (
                "distributed=fsdp: optim.kind=muon orthogonalizes whole matrices, of which each device has only "
                "some rows; take distributed=ddp or optim=adamw"
            )
