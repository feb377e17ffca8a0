"""The schema of `sampler`, `expander` and `schedule`, and the rules that join them."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BeforeValidator, Field, create_model

from apollo_cli.config.model import MOST_LAYERS, ModelArgs
from apollo_cli.config.schema import List, Section, Size, Whole, whole
from apollo_cli.growth import expanders, layer_maps, plugins, samplers  # noqa: F401 - own registers what is in it
from apollo_cli.growth import schedule as stages
from apollo_cli.growth.samplers import DepthSampler

_NEAR = 2e-4  # relative: a share of the width may be typed as 0.3333


class SamplerArgs(Section):
    """`sampler`: P(depth | N, L)."""

    kind: str

    def build(self) -> DepthSampler:
        """The sampler of the growth core."""
        return samplers.SAMPLERS[self.kind](**self.model_dump(exclude={"kind"}))


class LvpsArgs(SamplerArgs):
    """sampler=lvps."""

    kind: Literal["lvps"]
    k: Annotated[float, Field(ge=0)]
    lower: Annotated[float, Field(ge=0.01, le=1)]
    overshoot: Annotated[float, Field(ge=0.01, le=100)]


class EdgeArgs(SamplerArgs):
    """sampler=edge."""

    kind: Literal["edge"]
    lower: Annotated[float, Field(ge=0.01, le=1)]
    overshoot: Annotated[float, Field(ge=0.01, le=100)]
    steepness: Annotated[float, Field(gt=0)]


class PlainSamplerArgs(SamplerArgs):
    """The samplers without parameters."""

    kind: Literal["uniform", "full", "shallow"]


class SubsetArgs(SamplerArgs):
    """sampler=subset."""

    kind: Literal["subset"]
    sizes: Annotated[tuple[Size, ...], List]


class PrefixesArgs(SamplerArgs):
    """sampler=prefixes."""

    kind: Literal["prefixes"]
    multiple: Size
    trained: Size
    stages: Size


class ExpanderArgs(Section):
    """`expander`: how the layers grow."""

    kind: str
    moments: Literal["keep", "map", "reset"]
    source: str | None
    source_flops: Annotated[int, BeforeValidator(whole), Field(ge=0)] | None

    def build(self) -> expanders.Expander:
        """The expander of the growth core; its kind is its map, unless a subclass says more."""
        return expanders.Expander(self.kind)


class InterpolateArgs(ExpanderArgs):
    """expander=interpolate."""

    kind: Literal["interpolate"]
    mode: Literal["nearest", "linear"]

    def build(self) -> expanders.Expander:
        """The mode is the map."""
        return expanders.Expander(self.mode)


class StackArgs(ExpanderArgs):
    """expander=stack."""

    kind: Literal["stack"]


class InsertedArgs(ExpanderArgs):
    """expander=append, middle and boundary: part of the layers again, at one place."""

    kind: Literal["append", "middle", "boundary"]


class Net2NetArgs(ExpanderArgs):
    """expander=net2net."""

    kind: Literal["net2net"]

    def build(self) -> expanders.Expander:
        """Copies lie above their layer, as in interpolation, and begin silent."""
        return expanders.Expander("nearest", silent=True)


class MsgArgs(ExpanderArgs):
    """expander=msg."""

    kind: Literal["msg"]
    entry: Annotated[float, Field(gt=0, le=1)]

    def build(self) -> expanders.Expander:
        """Stacked, and the new layers enter slowly."""
        return expanders.Expander("stack", entry=self.entry)


class FromSourceArgs(ExpanderArgs):
    """An expander whose method is to begin from a smaller model."""


class Bert2BertArgs(FromSourceArgs):
    """expander=bert2bert."""

    kind: Literal["bert2bert"]
    width: Literal["fpi", "aki"]

    def build(self) -> expanders.Expander:
        """Widened, then stacked."""
        return expanders.Expander("stack", width=self.width)


class LemonArgs(FromSourceArgs):
    """expander=lemon."""

    kind: Literal["lemon"]

    def build(self) -> expanders.Expander:
        """Copies that differ in what they are read with; layers that add nothing at first."""
        return expanders.Expander("nearest", silent=True, width="lemon")


class LigoArgs(FromSourceArgs):
    """expander=ligo."""

    kind: Literal["ligo"]
    steps: Whole
    lr: Annotated[float, Field(gt=0)]

    def build(self) -> expanders.Expander:
        """The map begins as stacking."""
        return expanders.Expander("stack", learning=expanders.Learning(self.steps, self.lr))


class ScheduleArgs(Section):
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


def _own_samplers() -> Iterator[type[SamplerArgs]]:
    """Those of `growth/own`: the fields of the dataclass are the keys."""
    for kind in samplers.OWN:
        cls = samplers.SAMPLERS[kind]
        keys: dict[str, Any] = {name: (hint, ...) for name, hint in get_type_hints(cls).items()}
        keys["kind"] = (Literal[kind], ...)
        yield create_model(cls.__name__, __base__=SamplerArgs, **keys)


def _own_expanders() -> Iterator[type[ExpanderArgs]]:
    """Those of `growth/own`: a layer map by its own name."""
    for kind in layer_maps.OWN:
        keys: dict[str, Any] = {"kind": (Literal[kind], ...)}
        yield create_model(kind, __base__=ExpanderArgs, **keys)


SAMPLER_FAMILY: tuple[type[SamplerArgs], ...] = (
    LvpsArgs,
    EdgeArgs,
    PlainSamplerArgs,
    SubsetArgs,
    PrefixesArgs,
    *_own_samplers(),
)
EXPANDER_FAMILY: tuple[type[ExpanderArgs], ...] = (
    InterpolateArgs,
    StackArgs,
    InsertedArgs,
    Net2NetArgs,
    MsgArgs,
    Bert2BertArgs,
    LemonArgs,
    LigoArgs,
    *_own_expanders(),
)


def with_numbers_of_layers(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain values of a config, valid or not; in lists of layers `L/4` is a quarter of model.layers."""
    for name, key in (("schedule", "layers"), ("sampler", "sizes")):
        raw = _with_numbers(raw, name, key)
    return raw


def _with_numbers(raw: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any]:
    model, section = raw.get("model"), raw.get(name)
    layers = section.get(key) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or not isinstance(layers, list):
        return raw
    target = whole(model.get("layers")) if isinstance(model, Mapping) else None
    if type(target) is not int or not 0 < target <= MOST_LAYERS:
        target = MOST_LAYERS  # what is wrong is said of model.layers
    return {**raw, name: {**section, key: [stages.layers_of(entry, target) for entry in layers]}}


def problems(
    schedule: ScheduleArgs, sampler: SamplerArgs | None, expander: ExpanderArgs | None, model: ModelArgs | None
) -> list[str]:
    """What is wrong with stages, and what does not go together; None is a section that is not valid by itself."""
    found = stages.problems(schedule.layers, schedule.ends, schedule.trained, schedule.widths)
    if found:
        return found
    if model and schedule.layers[-1] != model.layers:
        found.append(
            f"schedule.layers={list(schedule.layers)} ends at {schedule.layers[-1]} layers and model.layers is "
            f"{model.layers}: the last stage must store the whole model; for example "
            f"'schedule.layers={_ending_at(schedule.layers, model.layers)}'"
        )
    found += _problems_of_depths(schedule, sampler)
    found += _problems_of_trained(schedule, sampler, expander)
    found += _problems_of_source(schedule, expander)
    found += _problems_of_entry(schedule, expander)
    if model and not model.hidden % model.heads:
        found += _problems_of_widths(schedule, model, expander)
    return found


def _ending_at(layers: tuple[int, ...], target: int) -> list[int]:
    """As many stages as `layers` has, if there is room, in about the same proportions, the last one `target`."""
    scaled = [max(1, round(n * target / layers[-1])) for n in layers[:-1]]
    return [*dict.fromkeys(n for n in scaled if n < target), target]


def _problems_of_depths(schedule: ScheduleArgs, sampler: SamplerArgs | None) -> list[str]:
    """Which stages give a sampler too few or too many layers."""
    if isinstance(sampler, PrefixesArgs) and sampler.trained < sampler.multiple:
        return [
            f"sampler.trained={sampler.trained}: with fewer than sampler.multiple={sampler.multiple} some layers "
            "would never train"
        ]
    if not isinstance(sampler, SubsetArgs):
        return []
    if len(sampler.sizes) != len(schedule.layers):
        return [
            f"sampler.sizes has {len(sampler.sizes)} values and schedule.layers {len(schedule.layers)}: "
            "give one for each stage"
        ]
    if any(not min(2, n) <= size <= n for size, n in zip(sampler.sizes, schedule.layers, strict=True)):
        return [
            f"sampler.sizes={list(sampler.sizes)}: each should be from 2, the first and the last layer, to the "
            f"stored layers of its stage, which are {list(schedule.layers)}"
        ]
    return []


def _problems_of_trained(
    schedule: ScheduleArgs, sampler: SamplerArgs | None, expander: ExpanderArgs | None
) -> list[str]:
    """Why the new layers cannot train alone."""
    found: list[str] = []
    if not schedule.trained or "new" not in schedule.trained:
        return found
    if isinstance(sampler, SubsetArgs | PrefixesArgs):
        found.append(
            f"schedule.trained={list(schedule.trained)}: sampler={sampler.kind} chooses the layers itself; "
            "take sampler=shallow"
        )
    if expander and not isinstance(expander, StackArgs | MsgArgs) and expander.kind != "append":
        found.append(
            f"schedule.trained={list(schedule.trained)}: expander={expander.kind} puts new layers between the "
            "old ones, and only those on top can train alone; take expander=append or stack"
        )
    return found


def _problems_of_source(schedule: ScheduleArgs, expander: ExpanderArgs | None) -> list[str]:
    """What an expander lacks to begin from, or gives without need."""
    found: list[str] = []
    if expander is None:
        return found
    grows_in_width, learns = schedule.shares[0] != 1, isinstance(expander, LigoArgs)
    begins_afresh = grows_in_width or (learns and schedule.layers[0] != schedule.layers[-1])
    if isinstance(expander, FromSourceArgs) and expander.source is None and not begins_afresh:
        grows = "schedule.layers or schedule.widths grow" if learns else "schedule.widths grow"
        found.append(
            f"expander.source is null and expander={expander.kind} begins from a smaller model: type "
            "expander.source=FOLDER, a run directory or a model in transformers' format, or let "
            f"{grows} within the run"
        )
    if begins_afresh and expander.moments != "reset":
        where = "a map is learned" if learns else "schedule.widths grow"
        found.append(
            f"expander.moments={expander.moments}: where {where} AdamW begins afresh; type expander.moments=reset"
        )
    if expander.source is None and expander.source_flops is not None:
        found.append(
            f"expander.source_flops={expander.source_flops} and expander.source is null: nothing is there that "
            "took them; give both or neither"
        )
    return found


def _problems_of_entry(schedule: ScheduleArgs, expander: ExpanderArgs | None) -> list[str]:
    """Whether a stage is too short for its new layers to enter."""
    if not isinstance(expander, MsgArgs):
        return []
    shares = [end - start for start, end in pairwise(schedule.ends)]
    grown = [after > before for before, after in pairwise(schedule.layers)]
    if not any(grows and share < expander.entry for grows, share in zip(grown, shares, strict=True)):
        return []
    return [
        f"expander.entry={expander.entry}: a stage is shorter, and its new layers would not be in at its end; "
        "make it smaller or the stages longer"
    ]


def _problems_of_widths(schedule: ScheduleArgs, model: ModelArgs, expander: ExpanderArgs | None) -> list[str]:
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
    if not found and isinstance(expander, LemonArgs) and any(b % a for a, b in pairwise(hidden)):
        found.append(
            f"schedule.widths={list(schedule.shares)}: hidden grows as {hidden}, and LEMON is lossless for whole "
            "multiples alone; take such shares or expander=bert2bert"
        )
    return found
