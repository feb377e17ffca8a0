"""The typed schema of every config group, and the rules that join them.

The values stand in `conf/`, none here. `parse` finds every problem before it complains.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from apollo_cli.data.special_tokens import BYTES, SPECIAL_TOKENS, entries_of_bytes
from apollo_cli.errors import ConfigError
from apollo_cli.growth import schedule as stages
from apollo_cli.growth.samplers import SAMPLERS, DepthSampler
from apollo_cli.models.shape import Initialization, Kind, PositionInit, ResidualInit, Shape


def _whole(value: Any) -> Any:
    """1e15 is a float in YAML and a whole number to its writer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> Any:
    """2024 is a number in YAML and a fine name."""
    return str(value) if type(value) is int else value


_PATTERNS = {
    "name": "should be letters, digits and any of _ . + = -, for it names a folder",
    "device": "should be auto, cpu, mps, cuda or cuda:N",
}

Whole = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Size = Annotated[int, BeforeValidator(_whole), Field(gt=0, le=10_000_000)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
List = Field(strict=False)  # YAML has lists, we keep tuples


class Section(BaseModel):
    """A part of the config: frozen, exact types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Run(Section):
    """The keys without a group."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    name: Annotated[str, BeforeValidator(_text), Field(pattern=r"^\w[\w.+=-]*$")]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")]
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", True, False]
    on_nonfinite: Literal["stop", "skip"]
    plan: bool
    resume: str | None


class Model(Section):
    """`model` and `size`: what is trained."""

    kind: Kind
    layers: Annotated[Size, Field(le=10_000)]
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


class Expander(Section):
    """`expander`: how the layers grow."""

    kind: str
    moments: Literal["keep", "map", "reset"]

    @property
    def layer_map(self) -> str:
        """The name of the map in the growth core."""
        return self.kind


class Interpolate(Expander):
    """expander=interpolate."""

    kind: Literal["interpolate"]
    mode: Literal["nearest", "linear"]

    @property
    def layer_map(self) -> str:
        """The mode is the map."""
        return self.mode


class Stack(Expander):
    """expander=stack."""

    kind: Literal["stack"]


class Schedule(Section):
    """`schedule`: stored layers of each stage, and where it ends as a share of all steps."""

    layers: Annotated[tuple[int, ...], List]
    ends: Annotated[tuple[float, ...], List]

    def over(self, steps: int) -> stages.Schedule:
        """The stages of a run of `steps`."""
        return stages.Schedule.over(steps, self.layers, self.ends)


def _listed(value: Any) -> Any:
    """One name needs no list."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], List, BeforeValidator(_listed)]


class OfPyDocs(Section):
    """What is said of this machine's documentation."""

    kind: Literal["pydocs"]


class OfText(Section):
    """What is said of text files."""

    kind: Literal["text"]
    files: Names
    validation_files: Names
    document: Literal["blank_line", "line", "file", "row"]
    text_field: str
    errors: Literal["strict", "replace"]


class OfHub(Section):
    """What is said of datasets of the hub."""

    kind: Literal["hub"]
    path: Names
    name: Annotated[tuple[str | None, ...], List, BeforeValidator(lambda v: v if isinstance(v, list) else [v])]
    split: str
    validation_split: str | None
    streaming: bool
    text_field: str


Weight = Annotated[float, Field(gt=0)] | None


class PyDocsSource(OfPyDocs):
    """A source of a mixture."""

    weight: Weight


class TextSource(OfText):
    """A source of a mixture."""

    weight: Weight


class HubSource(OfHub):
    """A source of a mixture."""

    weight: Weight


_FINEST = 10_000  # rows among which each source has its share
_SOURCES: dict[str, type[Section]] = {"pydocs": PyDocsSource, "text": TextSource, "hub": HubSource}
MixedSource = Annotated[PyDocsSource | TextSource | HubSource, Field(discriminator="kind")]


class Data(Section):
    """`data`: the corpus, its tokenizer, its rows."""

    kind: str
    seq_len: Annotated[Size, Field(ge=4)]
    vocab_size: Size
    tokenizer: str
    validation: Annotated[float, Field(gt=0, lt=1)]
    validation_seed: Annotated[int, Field(ge=0, lt=2**63)]
    cache_dir: str | None
    inspect: bool


class PyDocs(Data, OfPyDocs):
    """data=pydocs."""

    kind: Literal["pydocs"]


class Text(Data, OfText):
    """data=text."""

    kind: Literal["text"]


class Hub(Data, OfHub):
    """data=hub and its presets."""

    kind: Literal["hub"]


class Mixture(Data):
    """data=mixture: what a source leaves out is taken from the keys that stand beside `sources`."""

    kind: Literal["mixture"]
    sources: Annotated[tuple[MixedSource, ...], List]
    validation_files: Names
    document: str
    text_field: str
    errors: str
    name: str | None
    split: str
    validation_split: str | None
    streaming: bool
    weight: Weight


class Optim(Section):
    """`optim`: AdamW and the learning rate."""

    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["cosine", "linear", "wsd", "constant"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    decay: Annotated[float, Field(gt=0, le=1)]
    final_lr: Share
    at_growth: Literal["continue", "rewarm"]
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


_FAMILIES: dict[str, tuple[type[Section], ...]] = {
    "model": (Bert, Gpt),
    "sampler": (Lvps, Edge, PlainSampler),
    "expander": (Interpolate, Stack),
    "schedule": (Schedule,),
    "data": (PyDocs, Text, Hub, Mixture),
    "optim": (Optim,),
    "budget": (Budget,),
    "batch": (Batch,),
    "eval": (Evaluation,),
    "checkpoint": (Checkpoints,),
    "log": (Log,),
    "tracking": (Tracking,),
}

S = TypeVar("S", bound=Section)


def parse(raw: Mapping[str, Any]) -> Config:
    """A valid config from plain values (Hydra's, resolved, or those of a config.yaml).

    Raises:
        ConfigError: with every problem that was found.
    """
    problems: list[str] = []
    raw = _with_whole_sources(_with_vocabulary(raw))
    plain = {key: value for key, value in raw.items() if key not in _FAMILIES and key != "experiment"}
    sections: dict[str, Any] = {"run": _validate(Run, "", plain, problems)}
    for name, family in _FAMILIES.items():
        if not isinstance(raw.get(name), Mapping):
            problems.append(f"{name}: missing, it must be a group of keys")
            sections[name] = None
            continue
        member = _member(name, family, raw[name], problems)
        sections[name] = _validate(member, f"{name}.", raw[name], problems) if member else None
    problems += _joint_problems(sections)
    if problems:
        raise ConfigError(problems)
    return Config(**sections, raw=dict(raw))


def _with_vocabulary(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same; with data.tokenizer=bytes `data.vocab_size` is what that tokenizer has."""
    model, data = raw.get("model"), raw.get("data")
    if not isinstance(model, Mapping) or not isinstance(data, Mapping) or data.get("tokenizer") != BYTES:
        return raw
    if (kind := model.get("kind")) not in list(SPECIAL_TOKENS):
        return raw
    return {**raw, "data": {**data, "vocab_size": entries_of_bytes(kind)}}


def _with_whole_sources(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same; in a mixture each source has what it left out from the keys beside `sources`."""
    data = raw.get("data")
    if not isinstance(data, Mapping) or data.get("kind") != "mixture" or not isinstance(data.get("sources"), list):
        return raw

    def whole(source: Any) -> Any:
        kind = source.get("kind") if isinstance(source, Mapping) else None
        if kind not in list(_SOURCES):
            return source
        shared = [key for key in _SOURCES[kind].model_fields if key in data and key != "kind"]
        return deepcopy({key: data[key] for key in shared} | dict(source))  # YAML would alias what is the same

    return {**raw, "data": {**data, "sources": [whole(source) for source in data["sources"]]}}


def problems_of_name(name: Any) -> list[str]:
    """What is wrong with a `name`: it becomes a folder before the whole config can be checked."""
    try:
        parse({"name": name})
    except ConfigError as error:
        return [problem for problem in error.problems if problem.startswith("name")]
    return []


def _member(
    name: str, family: tuple[type[Section], ...], values: Mapping[str, Any], problems: list[str]
) -> type[Section] | None:
    """The class whose `kind` the values name."""
    by_kind = {
        kind: member
        for member in family
        if "kind" in member.model_fields
        for kind in get_args(member.model_fields["kind"].annotation)
    }
    if not by_kind or (kind := values.get("kind")) is None:
        return family[0]
    if isinstance(kind, str) and kind in by_kind:
        return by_kind[kind]
    kinds = ", ".join(by_kind)
    problems.append(f"{name}.kind={kind}: should be one of {kinds}; type {name}=NAME, which sets its keys, too")
    return None


def _validate(cls: type[S], prefix: str, values: Mapping[str, Any], problems: list[str]) -> S | None:
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        seen = set()
        for detail in error.errors():
            key, known = prefix + str(detail["loc"][0]), [prefix + name for name in cls.model_fields]
            if key == "data.sources" and len(detail["loc"]) > 1:
                key, known = _within_sources(detail)
            if key not in seen:  # a union reports each of its members
                seen.add(key)
                problems.append(_sentence(key, detail, known))
        return None


def _within_sources(detail: Any) -> tuple[str, list[str]]:
    """The key of a problem with a source of a mixture, and those that this source may have."""
    number, *rest = detail["loc"][1:]
    detail["loc"] = detail["loc"][:1]
    source = f"data.sources[{number}]"
    if not rest:
        if detail["type"] == "union_tag_invalid":
            detail["input"] = detail["input"]["kind"]
            detail["msg"] = f"should be one of {', '.join(_SOURCES)}"
            return f"{source}.kind", []
        if detail["type"] == "union_tag_not_found":
            detail["type"] = "missing"
            return f"{source}.kind", []
        return source, []
    kind, *key = rest
    return ".".join([source, *map(str, key[:1])]), [f"{source}.{name}" for name in _SOURCES[str(kind)].model_fields]


def _sentence(key: str, detail: Any, known: list[str]) -> str:
    if detail["type"] == "extra_forbidden":
        return f"{key}: no such key{closest(key, known)}"
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return f"{key}: missing"
    if detail["type"] == "string_pattern_mismatch":
        return f"{key}={detail['input']}: {_PATTERNS[key]}"
    if detail["type"] == "tuple_type":
        return f"{key}={detail['input']}: should be a list, for example '{key}=[1,3]'"
    message = detail["msg"].replace("Input should", "should").removeprefix("Value error, ")
    hint = ""
    if detail["type"] == "literal_error":
        hint = closest(str(detail["input"]), re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
    return f"{key}={detail['input']}: {message}{hint}"


def closest(word: str, known: list[str]) -> str:
    """'; did you mean X?' where a known word is near, else nothing."""
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _ending_at(layers: tuple[int, ...], target: int) -> list[int]:
    """As many stages as `layers` has, if there is room, in about the same proportions, the last one `target`."""
    scaled = [max(1, round(n * target / layers[-1])) for n in layers[:-1]]
    return [*dict.fromkeys(n for n in scaled if n < target), target]


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
    stage_problems = stages.problems(schedule.layers, schedule.ends) if schedule else []
    found += stage_problems
    if schedule and model and not stage_problems and schedule.layers[-1] != model.layers:
        found.append(
            f"schedule.layers={list(schedule.layers)} ends at {schedule.layers[-1]} layers and model.layers is "
            f"{model.layers}: the last stage must store the whole model; for example "
            f"'schedule.layers={_ending_at(schedule.layers, model.layers)}'"
        )
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
    found += _data_problems(data) if data else []
    if optim and optim.schedule == "wsd" and optim.warmup + optim.decay > 1:
        found.append(
            f"optim.warmup={optim.warmup} and optim.decay={optim.decay} add up to more than the whole run; "
            "make one of them smaller"
        )
    return found


def _data_problems(data: Data) -> list[str]:
    """The rules between the keys of the sources."""
    found = []
    mixed = data.sources if isinstance(data, Mixture) else ()
    for where, of in [("data", data), *((f"data.sources[{i}]", source) for i, source in enumerate(mixed))]:
        if not isinstance(of, OfHub):
            continue
        if of.path and len(of.path) != len(of.name):
            found.append(
                f"{where}.path has {len(of.path)} entries and {where}.name {len(of.name)}: give one for each"
            )
        elif of.streaming and len(of.path) > 1:
            found.append(
                f"{where}.streaming=true reads no dataset to its end, so several need weights: type data=mixture "
                "with each of them in data.sources"
            )
    weights = [source.weight for source in mixed]
    if None in weights and any(weight is not None for weight in weights):
        found.append("data.sources: some have a weight and some have none; give it to all or to none")
    elif None in weights and len(weights) > 1 and any(isinstance(s, OfHub) and s.streaming for s in mixed):
        found.append("data.sources: what is streamed has no size to be mixed by; give every source a weight")
    shares = [weight for weight in weights if weight is not None]
    found += [
        f"data.sources: a weight of {weight} is under 0.01 % of all: raise it or leave that source out"
        for weight in shares
        if weight < sum(shares) / _FINEST
    ]
    given = [bool(getattr(s, "validation_files", ()) or getattr(s, "validation_split", None)) for s in mixed]
    if any(given) and not all(given):
        found.append(
            "data.sources: validation_files or validation_split are given for some sources and not for others; "
            "give them for all, or for none, and data.validation of each is held out"
        )
    return found
