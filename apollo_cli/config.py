"""The typed schema of every config group, and the rules that join them.

The values stand in `conf/`, none here. `parse` finds every problem before it complains.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BeforeValidator, Field, create_model

from apollo_cli.data import section as data_section
from apollo_cli.data.section import Data
from apollo_cli.errors import ConfigError
from apollo_cli.growth import growths, layer_maps, own, samplers  # noqa: F401 - own registers what is in it
from apollo_cli.growth import schedule as stages
from apollo_cli.growth.samplers import SAMPLERS, DepthSampler
from apollo_cli.models.shape import Initialization, Kind, PositionInit, ResidualInit, Shape
from apollo_cli.schema import (
    Decay,
    List,
    Section,
    Seed,
    Share,
    Size,
    Whole,
    Word,
    matching,
    member,
    validate,
    whole,
)

_NAME = matching(r"^\w[\w.+=-]*$", "should be letters, digits and any of _ . + = -, for it names a folder")
DEVICE = matching(r"^(auto|cpu|mps|cuda(:\d{1,3})?)$", "should be auto, cpu, mps, cuda or cuda:N")

MOST_LAYERS = 10_000
MOST_DEVICES = 64  # of one machine
_NEAR = 2e-4  # relative: a share of the width may be typed as 0.3333


class Run(Section):
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


class Model(Section):
    """`model` and `size`: what is trained."""

    kind: Kind
    layers: Annotated[Size, Field(le=MOST_LAYERS)]
    hidden: Annotated[Size, Field(le=1_000_000)]
    heads: Size
    ffn: Size
    dropout: Annotated[float, Field(ge=0, lt=1)]
    init_std: Annotated[float, Field(gt=0, le=10)]
    init_positions: PositionInit
    init_positions_std: Annotated[float, Field(gt=0, le=10)]
    init_residual: ResidualInit


class Bert(Model):
    """model=bert."""

    kind: Literal["bert"]
    mask_fraction: Annotated[float, Field(gt=0, lt=1)]
    mask_words: bool


class Gpt(Model):
    """model=gpt."""

    kind: Literal["gpt"]


class Sampler(Section):
    """`sampler`: P(depth | N, L)."""

    kind: str

    def build(self) -> DepthSampler:
        """The sampler of the growth core."""
        return SAMPLERS[self.kind](**self.model_dump(exclude={"kind"}))


class Lvps(Sampler):
    """sampler=lvps."""

    kind: Literal["lvps"]
    k: Annotated[float, Field(ge=0)]
    lower: Annotated[float, Field(ge=0.01, le=1)]
    overshoot: Annotated[float, Field(ge=0.01, le=100)]


class Edge(Sampler):
    """sampler=edge."""

    kind: Literal["edge"]
    lower: Annotated[float, Field(ge=0.01, le=1)]
    overshoot: Annotated[float, Field(ge=0.01, le=100)]
    steepness: Annotated[float, Field(gt=0)]


class PlainSampler(Sampler):
    """The samplers without parameters."""

    kind: Literal["uniform", "full", "shallow"]


class Subset(Sampler):
    """sampler=subset."""

    kind: Literal["subset"]
    sizes: Annotated[tuple[Size, ...], List]


class Prefixes(Sampler):
    """sampler=prefixes."""

    kind: Literal["prefixes"]
    multiple: Size
    trained: Size
    stages: Size


class Expander(Section):
    """`expander`: how the layers grow."""

    kind: str
    moments: Literal["keep", "map", "reset"]
    source: str | None
    source_flops: Annotated[int, BeforeValidator(whole), Field(ge=0)] | None

    def build(self) -> growths.Expander:
        """The expander of the growth core; its kind is its map, unless a subclass says more."""
        return growths.Expander(self.kind)


class Interpolate(Expander):
    """expander=interpolate."""

    kind: Literal["interpolate"]
    mode: Literal["nearest", "linear"]

    def build(self) -> growths.Expander:
        """The mode is the map."""
        return growths.Expander(self.mode)


class Stack(Expander):
    """expander=stack."""

    kind: Literal["stack"]


class Inserted(Expander):
    """expander=append, middle and boundary: part of the layers again, at one place."""

    kind: Literal["append", "middle", "boundary"]


class Net2Net(Expander):
    """expander=net2net."""

    kind: Literal["net2net"]

    def build(self) -> growths.Expander:
        """Copies lie above their layer, as in interpolation, and begin silent."""
        return growths.Expander("nearest", silent=True)


class Msg(Expander):
    """expander=msg."""

    kind: Literal["msg"]
    entry: Annotated[float, Field(gt=0, le=1)]

    def build(self) -> growths.Expander:
        """Stacked, and the new layers enter slowly."""
        return growths.Expander("stack", entry=self.entry)


class FromSource(Expander):
    """An expander whose method is to begin from a smaller model."""


class Bert2Bert(FromSource):
    """expander=bert2bert."""

    kind: Literal["bert2bert"]
    width: Literal["fpi", "aki"]

    def build(self) -> growths.Expander:
        """Widened, then stacked."""
        return growths.Expander("stack", width=self.width)


class Lemon(FromSource):
    """expander=lemon."""

    kind: Literal["lemon"]

    def build(self) -> growths.Expander:
        """Copies that differ in what they are read with; layers that add nothing at first."""
        return growths.Expander("nearest", silent=True, width="lemon")


class Ligo(FromSource):
    """expander=ligo."""

    kind: Literal["ligo"]
    steps: Whole
    lr: Annotated[float, Field(gt=0)]

    def build(self) -> growths.Expander:
        """The map begins as stacking."""
        return growths.Expander("stack", learning=growths.Learning(self.steps, self.lr))


class Schedule(Section):
    """`schedule`: stored layers and width of each stage, where it ends, and which layers train."""

    layers: Annotated[tuple[int, ...], List]
    ends: Annotated[tuple[float, ...], List]
    trained: Annotated[tuple[stages.Trained, ...], List] | None
    widths: Annotated[tuple[float, ...], List] | None

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the model's width, stage by stage."""
        return self.widths or (1.0,) * len(self.layers)

    def over(self, steps: int) -> stages.Schedule:
        """The stages of a run of `steps`."""
        return stages.Schedule.over(steps, self.layers, self.ends, self.trained, self.widths)


def _line(knots: Any) -> Any:
    """Refuses what is no line from knot to knot."""
    example = "for example 'optim.knots=[[0.5,0.3],[1,0]]'"
    if not isinstance(knots, list | tuple) or not knots or not all(map(_is_pair, knots)):
        raise ValueError(f"should be pairs [share of all steps, share of the peak], {example}")
    if not all(0 <= share <= 1 for knot in knots for share in knot):
        raise ValueError("both numbers of a knot are shares, of all steps and of the peak: from 0 to 1")
    reached = [knot[0] for knot in knots]
    if reached[-1] != 1 or any(b <= a for a, b in pairwise(reached)):
        raise ValueError(f"the shares of all steps must rise to 1, knot by knot, {example}")
    return tuple(map(tuple, knots))


def _is_pair(knot: Any) -> bool:
    return isinstance(knot, list | tuple) and len(knot) == 2 and all(type(share) in (int, float) for share in knot)


Knots = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_line)]


class Optim(Section):
    """`optim`: AdamW and the learning rate."""

    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["cosine", "linear", "wsd", "constant", "piecewise"]
    knots: Knots | None
    warmup: Annotated[float, Field(ge=0, lt=1)]
    decay: Annotated[float, Field(gt=0, le=1)]
    final_lr: Share
    at_growth: Literal["continue", "rewarm", "restart", "rewind"]
    betas: Annotated[tuple[Decay, Decay], List]
    eps: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0, le=1000)]
    clip: Annotated[float, Field(ge=0)]


class Budget(Section):
    """`budget`: how long; exactly one is set."""

    steps: Whole | None
    tokens: Whole | None
    flops: Whole | None
    seconds: Annotated[float, Field(gt=0)] | None


class Batch(Section):
    """`batch`: sequences a step and a micro-step."""

    size: Whole
    micro: Whole | None

    @property
    def micro_size(self) -> int:
        """Sequences a micro-step on one device."""
        return self.micro or self.size

    @property
    def accumulation(self) -> int:
        """Micro-steps a step."""
        return self.size // self.micro_size


class Evaluation(Section):
    """`eval`: how often, on how much."""

    every: Whole
    rows: Whole


class Checkpoints(Section):
    """`checkpoint`: how often, how many."""

    every: Whole
    keep: Whole


class Log(Section):
    """`log`: how often a training row is written."""

    every: Whole


class Distributed(Section):
    """`distributed`: how a model lies on several devices, and their patience with each other."""

    kind: Literal["ddp", "fsdp"]
    timeout: Annotated[float, Field(ge=1, le=86_400)]


class Tracking(Section):
    """`tracking`: Weights & Biases beside the local files."""

    wandb: Literal["auto", "online", "offline", "disabled"]
    project: str
    timeout: Annotated[float, Field(gt=0, le=86_400)]


@dataclass(frozen=True)
class Config:
    """A whole valid config. `raw` is the same as plain values, as written to config.yaml."""

    run: Run
    model: Model
    sampler: Sampler
    expander: Expander
    schedule: Schedule
    data: Data
    optim: Optim
    budget: Budget
    batch: Batch
    eval: Evaluation
    checkpoint: Checkpoints
    log: Log
    tracking: Tracking
    distributed: Distributed
    raw: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """The sizes of the model, as the models take them."""
        return Shape(
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


def _own_samplers() -> Iterator[type[Sampler]]:
    """Those of `growth/own`: the fields of the dataclass are the keys."""
    for kind in samplers.OWN:
        cls = samplers.SAMPLERS[kind]
        keys: dict[str, Any] = {name: (hint, ...) for name, hint in get_type_hints(cls).items()}
        keys["kind"] = (Literal[kind], ...)
        yield create_model(cls.__name__, __base__=Sampler, **keys)


def _own_expanders() -> Iterator[type[Expander]]:
    """Those of `growth/own`: a layer map by its own name."""
    for kind in layer_maps.OWN:
        keys: dict[str, Any] = {"kind": (Literal[kind], ...)}
        yield create_model(kind, __base__=Expander, **keys)


_FAMILIES: dict[str, tuple[type[Section], ...]] = {
    "model": (Bert, Gpt),
    "sampler": (Lvps, Edge, PlainSampler, Subset, Prefixes, *_own_samplers()),
    "expander": (Interpolate, Stack, Inserted, Net2Net, Msg, Bert2Bert, Lemon, Ligo, *_own_expanders()),
    "schedule": (Schedule,),
    "data": data_section.FAMILY,
    "optim": (Optim,),
    "budget": (Budget,),
    "batch": (Batch,),
    "eval": (Evaluation,),
    "checkpoint": (Checkpoints,),
    "log": (Log,),
    "tracking": (Tracking,),
    "distributed": (Distributed,),
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
        raw = {**raw, "data": data_section.completed(data, kind)}
    for section, key in (("schedule", "layers"), ("sampler", "sizes")):
        raw = _with_numbers_of_layers(raw, section, key)
    plain = {key: value for key, value in raw.items() if key not in _FAMILIES and key != "experiment"}
    sections: dict[str, Any] = {"run": validate(Run, "", plain, problems)}
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


def _with_numbers_of_layers(raw: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any]:
    """The same; in this list of a section `L/4` is a quarter of model.layers."""
    model, section = raw.get("model"), raw.get(name)
    layers = section.get(key) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or not isinstance(layers, list):
        return raw
    target = whole(model.get("layers")) if isinstance(model, Mapping) else None
    if type(target) is not int or not 0 < target <= MOST_LAYERS:
        target = MOST_LAYERS  # what is wrong is said of model.layers
    return {**raw, name: {**section, key: [stages.layers_of(entry, target) for entry in layers]}}


def problems_of_name(name: Any) -> list[str]:
    """What is wrong with a `name`: it becomes a folder before the whole config can be checked."""
    try:
        parse({"name": name})
    except ConfigError as error:
        return [problem for problem in error.problems if problem.startswith("name")]
    return []


def _ending_at(layers: tuple[int, ...], target: int) -> list[int]:
    """As many stages as `layers` has, if there is room, in about the same proportions, the last one `target`."""
    scaled = [max(1, round(n * target / layers[-1])) for n in layers[:-1]]
    return [*dict.fromkeys(n for n in scaled if n < target), target]


def _problems_of_methods(schedule: Schedule, sampler: Sampler | None, expander: Expander | None) -> list[str]:
    """What does not go together of valid stages, a sampler and an expander."""
    found = []
    if isinstance(sampler, Subset):
        if len(sampler.sizes) != len(schedule.layers):
            found.append(
                f"sampler.sizes has {len(sampler.sizes)} values and schedule.layers {len(schedule.layers)}: "
                "give one for each stage"
            )
        elif any(not min(2, n) <= size <= n for size, n in zip(sampler.sizes, schedule.layers, strict=True)):
            found.append(
                f"sampler.sizes={list(sampler.sizes)}: each should be from 2, the first and the last layer, to the "
                f"stored layers of its stage, which are {list(schedule.layers)}"
            )
    if isinstance(sampler, Prefixes) and sampler.trained < sampler.multiple:
        found.append(
            f"sampler.trained={sampler.trained}: with fewer than sampler.multiple={sampler.multiple} some layers "
            "would never train"
        )
    if schedule.trained and "new" in schedule.trained:
        if isinstance(sampler, Subset | Prefixes):
            found.append(
                f"schedule.trained={list(schedule.trained)}: sampler={sampler.kind} chooses the layers itself; "
                "take sampler=shallow"
            )
        if expander and not isinstance(expander, Stack | Msg) and expander.kind != "append":
            found.append(
                f"schedule.trained={list(schedule.trained)}: expander={expander.kind} puts new layers between the "
                "old ones, and only those on top can train alone; take expander=append or stack"
            )
    grows_in_width, learns = schedule.shares[0] != 1, isinstance(expander, Ligo)
    begins_afresh = grows_in_width or (learns and schedule.layers[0] != schedule.layers[-1])
    if isinstance(expander, FromSource) and expander.source is None and not begins_afresh:
        grows = "schedule.layers or schedule.widths grow" if learns else "schedule.widths grow"
        found.append(
            f"expander.source is null and expander={expander.kind} begins from a smaller model: type "
            "expander.source=FOLDER, a run directory or a model in transformers' format, or let "
            f"{grows} within the run"
        )
    if begins_afresh and expander and expander.moments != "reset":
        where = "a map is learned" if learns else "schedule.widths grow"
        found.append(
            f"expander.moments={expander.moments}: where {where} AdamW begins afresh; type expander.moments=reset"
        )
    if expander and expander.source is None and expander.source_flops is not None:
        found.append(
            f"expander.source_flops={expander.source_flops} and expander.source is null: nothing is there that "
            "took them; give both or neither"
        )
    starts = (0.0, *schedule.ends)
    if isinstance(expander, Msg) and any(
        after > before and end - start < expander.entry
        for before, after, start, end in zip(
            schedule.layers, schedule.layers[1:], starts[1:], schedule.ends[1:], strict=False
        )
    ):
        found.append(
            f"expander.entry={expander.entry}: a stage is shorter, and its new layers would not be in at its end; "
            "make it smaller or the stages longer"
        )
    return found


def _problems_of_widths(schedule: Schedule, model: Model, expander: Expander | None) -> list[str]:
    """Which widths of valid stages are no whole numbers, or are not reached by the expander's rule."""
    found = []
    for share in sorted(set(schedule.shares)):
        for name in ("hidden", "heads", "ffn"):
            part = share * (width := getattr(model, name))
            if round(part) < 1 or not math.isclose(part, round(part), rel_tol=_NEAR):
                found.append(
                    f"schedule.widths={list(schedule.shares)}: {share:g} of model.{name}={width} is {part:g}; each "
                    "share should give whole numbers of hidden, heads and ffn"
                )
    hidden = [round(share * model.hidden) for share in schedule.shares]
    if not found and isinstance(expander, Lemon) and any(b % a for a, b in pairwise(hidden)):
        found.append(
            f"schedule.widths={list(schedule.shares)}: hidden grows as {hidden}, and LEMON is lossless for whole "
            "multiples alone; take such shares or expander=bert2bert"
        )
    return found


def _joint_problems(sections: Mapping[str, Any]) -> list[str]:
    """The rules between keys; a rule is skipped where one of its sections is not valid."""
    found: list[str] = []
    model, schedule, budget, batch = (sections[s] for s in ("model", "schedule", "budget", "batch"))
    data, optim = sections["data"], sections["optim"]
    if model and model.hidden % model.heads:
        fitting = [h for h in range(1, min(model.hidden, 1024) + 1) if model.hidden % h == 0]
        near = min(fitting, key=lambda h: abs(h - model.heads))
        found.append(
            f"model.heads={model.heads} does not divide model.hidden={model.hidden}; for example model.heads={near}"
        )
    stage_problems = (
        stages.problems(schedule.layers, schedule.ends, schedule.trained, schedule.widths) if schedule else []
    )
    found += stage_problems
    if schedule and model and not stage_problems and schedule.layers[-1] != model.layers:
        found.append(
            f"schedule.layers={list(schedule.layers)} ends at {schedule.layers[-1]} layers and model.layers is "
            f"{model.layers}: the last stage must store the whole model; for example "
            f"'schedule.layers={_ending_at(schedule.layers, model.layers)}'"
        )
    if schedule and not stage_problems:
        found += _problems_of_methods(schedule, sections["sampler"], sections["expander"])
    if schedule and model and not stage_problems and not model.hidden % model.heads:
        found += _problems_of_widths(schedule, model, sections["expander"])
    if sections["run"] and sections["run"].resume is not None:
        found.append("resume goes on with a run by its own config: type apollo-train resume=RUN_DIR alone")
    if budget:
        chosen = [key for key, value in budget if value is not None]
        if len(chosen) != 1:
            found.append(
                f"exactly one budget must be set, not {' and '.join(f'budget.{c}' for c in chosen) or 'none'}; "
                "set one of budget.steps, budget.tokens, budget.flops, budget.seconds and leave the rest null"
            )
    if batch and batch.size % batch.micro_size:
        near = max(m for m in range(1, batch.micro_size) if batch.size % m == 0)
        found.append(
            f"batch.micro={batch.micro} does not divide batch.size={batch.size}; for example batch.micro={near}"
        )
    spread, expander = sections["distributed"], sections["expander"]
    if spread and spread.kind == "fsdp" and isinstance(expander, Ligo):
        found.append(
            "distributed=fsdp and expander=ligo: its map is learned on whole weights; take distributed=ddp"
        )
    found += data_section.problems(data) if data else []
    found += _problems_of_rate(optim) if optim else []
    return found


def _problems_of_rate(optim: Optim) -> list[str]:
    """What does not go together of a valid learning rate."""
    found = []
    if optim.schedule == "wsd" and optim.warmup + optim.decay > 1:
        found.append(
            f"optim.warmup={optim.warmup} and optim.decay={optim.decay} add up to more than the whole run; "
            "make one of them smaller"
        )
    if optim.schedule != "piecewise":
        if optim.knots is not None:
            found.append(
                f"optim.knots are given and optim.schedule={optim.schedule}: type optim.schedule=piecewise, or "
                "optim.knots=null"
            )
        return found
    if optim.knots is None:
        found.append(
            "optim.schedule=piecewise: optim.knots is missing, the pairs [share of all steps, share of the peak] "
            "that the rate goes through; for example 'optim.knots=[[0.5,0.3],[1,0]]'"
        )
    elif optim.knots[0][0] <= optim.warmup:
        found.append(
            f"optim.knots={[list(knot) for knot in optim.knots]}: the first one must come after "
            f"optim.warmup={optim.warmup}, where the rate is at its peak"
        )
    if optim.final_lr:
        found.append(
            f"optim.final_lr={optim.final_lr}: under optim.schedule=piecewise the last of optim.knots is what the "
            "rate ends at; type optim.final_lr=0"
        )
    if optim.at_growth in ("restart", "rewind"):
        found.append(
            f"optim.at_growth={optim.at_growth}: optim.schedule=piecewise goes through its knots once; type "
            "optim.at_growth=continue or rewarm"
        )
    return found
