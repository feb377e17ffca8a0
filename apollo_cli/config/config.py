"""The whole config: its sections, the keys without a group, and the rules that join them.

The values stand in `conf/`, none here. `parse` finds every problem before it complains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from apollo_cli.config import data as of_data
from apollo_cli.config import growth as of_growth
from apollo_cli.config import model as of_model
from apollo_cli.config import training as of_training
from apollo_cli.config.data import DataArgs
from apollo_cli.config.growth import ExpanderArgs, InitFromArgs, SamplerArgs, ScheduleArgs
from apollo_cli.config.model import ModelArgs
from apollo_cli.config.schema import Section, Seed, Whole, Word, matching, member, validate
from apollo_cli.config.training import (
    BatchArgs,
    BudgetArgs,
    CheckpointArgs,
    DistributedArgs,
    EvalArgs,
    LogArgs,
    OptimArgs,
    TrackingArgs,
)
from apollo_cli.errors import ConfigError
from apollo_cli.models.model_config import Initialization, ModelConfig

_NAME = matching(r"^\w[\w.+=-]*$", "should be letters, digits and any of _ . + = -, for it names a folder")
DEVICE = matching(r"^(auto|cpu|mps|cuda(:\d{1,3})?)$", "should be auto, cpu, mps, cuda or cuda:N")
MOST_DEVICES = 64  # of one machine


class RunArgs(Section):
    """The keys without a group."""

    seed: Seed
    name: Annotated[Word, _NAME]
    device: Annotated[str, DEVICE]
    devices: Annotated[Whole, Field(le=MOST_DEVICES)] | None
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", True, False]
    on_nonfinite: Literal["stop", "skip"]
    plan: bool
    resume: str | None


@dataclass(frozen=True)
class Config:
    """A whole valid config. `raw` is the same as plain values, as written to config.yaml."""

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

    @property
    def model_config(self) -> ModelConfig:
        """The sizes of the model, as the models take them."""
        return ModelConfig(
            kind=self.model.kind,
            vocabulary=self.data.vocab_size,
            positions=self.data.seq_len,
            hidden=self.model.hidden,
            heads=self.model.heads,
            ffn=self.model.ffn,
            layers=self.model.layers,
            dropout=self.model.dropout,
            init=Initialization(
                std=self.model.init_std,
                positions=self.model.init_positions,
                positions_std=self.model.init_positions_std,
                residual=self.model.init_residual,
            ),
        )


_FAMILIES: dict[str, tuple[type[Section], ...]] = {
    "model": of_model.FAMILY,
    "sampler": of_growth.SAMPLER_FAMILY,
    "expander": of_growth.EXPANDER_FAMILY,
    "schedule": (ScheduleArgs,),
    "init_from": (InitFromArgs,),
    "data": of_data.FAMILY,
    "optim": (OptimArgs,),
    "budget": (BudgetArgs,),
    "batch": (BatchArgs,),
    "eval": (EvalArgs,),
    "checkpoint": (CheckpointArgs,),
    "log": (LogArgs,),
    "tracking": (TrackingArgs,),
    "distributed": (DistributedArgs,),
}


def parse(raw: Mapping[str, Any]) -> Config:
    """A valid config from plain values (Hydra's, resolved, or those of a config.yaml).

    Raises:
        ConfigError: with every problem that was found.
    """
    problems: list[str] = []
    model, data = raw.get("model"), raw.get("data")
    if isinstance(data, Mapping):
        kind = model.get("kind") if isinstance(model, Mapping) else None
        raw = {**raw, "data": of_data.completed(data, kind)}
    raw = of_growth.with_numbers_of_layers(raw)
    plain = {key: value for key, value in raw.items() if key not in _FAMILIES and key != "experiment"}
    sections: dict[str, Any] = {"run": validate(RunArgs, "", plain, problems)}
    for name, family in _FAMILIES.items():
        if not isinstance(raw.get(name), Mapping):
            problems.append(f"{name}: missing, it must be a group of keys")
            sections[name] = None
            continue
        cls = member(name, family, raw[name], problems)
        sections[name] = validate(cls, f"{name}.", raw[name], problems) if cls else None
    problems += _joint_problems(sections)
    if problems:
        raise ConfigError(problems)
    return Config(**sections, raw=dict(raw))


def problems_of_name(name: Any) -> list[str]:
    """What is wrong with a `name`: it becomes a folder before the whole config can be checked."""
    try:
        parse({"name": name})
    except ConfigError as error:
        return [problem for problem in error.problems if problem.startswith("name")]
    return []


def _joint_problems(sections: Mapping[str, Any]) -> list[str]:
    """The rules between keys; a rule is skipped where one of its sections is not valid."""
    found: list[str] = []
    model, expander, schedule = sections["model"], sections["expander"], sections["schedule"]
    if model:
        found += of_model.model_problems(model)
    if schedule:
        found += of_growth.growth_problems(schedule, sections["sampler"], expander, sections["init_from"], model)
    if sections["run"] and sections["run"].resume is not None:
        found.append("resume continues a run with its own config: type apollo-train resume=RUN_DIR alone")
    if budget := sections["budget"]:
        found += of_training.problems_of_budget(budget)
    if batch := sections["batch"]:
        found += of_training.problems_of_batch(batch)
    if (spread := sections["distributed"]) and spread.kind == "fsdp" and expander and expander.build().learning:
        found.append(
            f"distributed=fsdp and expander={expander.kind}: its map is learned on whole weights; take "
            "distributed=ddp"
        )
    if data := sections["data"]:
        found += of_data.data_problems(data)
    if optim := sections["optim"]:
        found += of_training.problems_of_rate(optim)
    return found
