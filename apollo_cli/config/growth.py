"""The schema of `sampler`, `expander`, `schedule` and `init_from`, and the rules between them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BeforeValidator, Field, create_model, model_validator

from apollo_cli import files
from apollo_cli.config.model import MOST_LAYERS, ModelArgs
from apollo_cli.config.schema import List, Section, Whole, whole
from apollo_cli.config.training import BudgetArgs, OptimArgs
from apollo_cli.growth import plugins
from apollo_cli.growth import schedule as stages
from apollo_cli.growth.expanders import EXPANDERS, CopyLayers, Expander, Ligo
from apollo_cli.growth.layer_maps import COPIES
from apollo_cli.growth.samplers import SAMPLERS, DepthSampler, Shallow
from apollo_cli.growth.width import WIDTHS

_NEAR = 2e-4  # relative: a share of the width may be typed as 0.3333
Args = TypeVar("Args", bound="MethodArgs")


class MethodArgs(Section):
    """`kind`, and the keys of a method, which are the fields of its dataclass."""

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Tuples for lists, and whole numbers for 1e3 and the like."""
        return {k: tuple(map(whole, v)) if isinstance(v, list) else whole(v) for k, v in values.items()}


class SamplerArgs(MethodArgs):
    """`sampler`: P(depth | N, L)."""

    def build(self) -> DepthSampler:
        return SAMPLERS[self.kind](**self.model_dump(exclude={"kind"}))


class ExpanderArgs(MethodArgs):
    """`expander`: how the layers grow; keys with a default are absent in older runs."""

    moments: Literal["keep", "map", "new", "reset"]
    lr_scale: Annotated[float, Field(gt=0, le=100)] = 1.0
    lr_steps: Whole = 250

    def build(self) -> Expander:
        if self.kind in LAYER_MAPS:
            return CopyLayers(self.kind)
        return EXPANDERS[self.kind](**self.model_dump(exclude=set(ExpanderArgs.model_fields)))


class ScheduleArgs(Section):
    """`schedule`: stored layers and width of each stage, where it ends, and which layers train.

    Keys with a default are absent in older runs. `window` is in evaluations, `threshold` a share of the loss.
    """

    layers: Annotated[tuple[int, ...], List]
    ends: Annotated[tuple[float, ...], List]
    trained: Annotated[tuple[stages.Trained, ...], List] | None
    widths: Annotated[tuple[float, ...], List] | None
    when: stages.When = "ends"
    window: Whole = 2
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the model's width in each stage."""
        return self.widths or (1.0,) * len(self.layers)

    @property
    def growth_shares(self) -> list[float]:
        """The share of all steps at which each growth comes."""
        growths = pairwise(zip(self.layers, self.shares, strict=True))
        return [end for end, (now, later) in zip(self.ends, growths, strict=False) if now != later]

    def over(self, steps: int, extended_from: Sequence[int] = (), ended: Sequence[int] = ()) -> stages.Schedule:
        """The stages of a run of `steps`, which had these lengths before each extension; the first have `ended`."""
        first, *later = (*extended_from, steps)
        schedule = stages.Schedule.over(first, self.layers, self.ends, self.trained, self.widths, ended)
        for length in later:
            schedule = schedule.extended(length)
        return schedule


class InitFromArgs(Section):
    """`init_from`: the trained model that a run begins with; keys with a default are absent in older runs."""

    path: str | None  # a run directory, or a folder in transformers' format
    checkpoint: str | None = None  # of the run, by its name; None for the trained model
    optimizer: bool = False  # whether the optimizer's state comes from there, too
    data: bool = False  # whether the corpus goes on with the row after the last one that was read there
    flops: Annotated[int, BeforeValidator(whole), Field(ge=0)] | None  # of its training; None as the run says


def _family(base: type[Args], methods: Mapping[str, Any]) -> tuple[type[Args], ...]:
    """The schema of each method that has one; a plugin without is named in `plugins.BROKEN`."""
    family = []
    for kind, method in methods.items():
        try:
            family.append(_schema(base, kind, method))
        except Exception as error:
            if not getattr(method, "__module__", "").startswith(f"{plugins.__name__}."):
                raise
            file = method.__module__.rpartition(".")[2]
            reason = (str(error).splitlines() or [""])[0]
            plugins.BROKEN.append(f"growth/plugins/{file}.py, {kind}: {type(error).__name__}: {reason}")
    return tuple(family)


def _schema(base: type[Args], kind: str, method: Any) -> type[Args]:
    """The keys of `base` and the fields of the method's dataclass, none with a default.

    A TypeError if a field has the name of one of these keys; other errors for types that no value is checked by.
    """
    hints = get_type_hints(method, include_extras=True)
    names = [field.name for field in fields(method)] if is_dataclass(method) else []
    if taken := [name for name in names if name in base.model_fields]:
        raise TypeError(f"its field {taken[0]} is a key of all methods; give it another name")
    keys: dict[str, Any] = {"kind": (Literal[kind], ...)} | {name: (hints[name], ...) for name in names}
    return create_model(kind, __base__=base, **keys)


SAMPLER_FAMILY = _family(SamplerArgs, SAMPLERS)
LAYER_MAPS = {kind: copy for kind, copy in COPIES.items() if kind != "nearest"}  # a mode of interpolate
EXPANDER_FAMILY = _family(ExpanderArgs, EXPANDERS | LAYER_MAPS)


def with_numbers_of_layers(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain values of a config, valid or not, with numbers for `L/4` and the like in lists of layers."""
    model = raw.get("model")
    target = whole(model.get("layers")) if isinstance(model, Mapping) else None
    if type(target) is not int or not 0 < target <= MOST_LAYERS:
        target = MOST_LAYERS  # the problem is reported for model.layers
    for name, key in (("schedule", "layers"), ("sampler", "sizes")):
        section = raw.get(name)
        if isinstance(section, Mapping) and isinstance(layers := section.get(key), list):
            raw = {**raw, name: {**section, key: [stages.layers_of(entry, target) for entry in layers]}}
    return raw


def growth_problems(
    schedule: ScheduleArgs,
    sampler: SamplerArgs | None,
    expander: ExpanderArgs | None,
    init_from: InitFromArgs | None,
    model: ModelArgs | None,
) -> list[str]:
    """The rules that stages, methods and model break together; None is a section that is not valid by itself."""
    found = stages.schedule_problems(schedule.layers, schedule.ends, schedule.trained, schedule.widths)
    found += _empty_stage_problems(schedule, sampler, expander)
    if found:
        return found
    if model and schedule.layers[-1] != model.layers:
        found.append(
            f"schedule.layers={list(schedule.layers)} ends at {schedule.layers[-1]} layers and model.layers is "
            f"{model.layers}: the last stage must store the whole model; for example "
            f"'schedule.layers={_ending_at(schedule.layers, model.layers)}'"
        )
    if sampler:
        found += _sampler_problems(schedule.layers, sampler, model)
    if expander:
        found += expander.build().stage_problems(schedule.layers, schedule.ends)
    found += _trained_problems(schedule, sampler, expander)
    if expander and init_from:
        found += _init_from_problems(schedule, expander, init_from)
    if model and not model.hidden % model.heads:
        found += _width_problems(schedule, model, expander)
    return found


def plateau_problems(
    schedule: ScheduleArgs, expander: ExpanderArgs | None, budget: BudgetArgs | None, optim: OptimArgs | None
) -> Iterator[str]:
    """What is not defined where stages end by the validation loss."""
    if schedule.when != "plateau":
        return
    if len(schedule.layers) == 1:
        yield "schedule.when=plateau: there is one stage, and it ends with the run; type schedule.when=ends"
        return
    grown = [pair for pair in pairwise(schedule.layers) if pair[0] < pair[1]]
    if expander and any(expander.build().growth(*pair).gated for pair in grown):
        yield (
            f"expander={expander.kind}: its new layers enter over many steps, and schedule.when=plateau may end "
            "the stage before; type another expander"
        )
    if budget and budget.seconds is not None:
        yield (
            f"budget.seconds={budget.seconds:g}: such a run is as long as its plan says, and schedule.when=plateau "
            "decides the stages later; type budget.steps, budget.tokens or budget.flops"
        )
    if not budget or budget.flops is None or not optim or optim.schedule == "constant":
        return
    unknown = "with schedule.when=plateau and budget.flops the number of steps is known only after the last growth"
    if optim.schedule != "wsd":
        yield (
            f"optim.schedule={optim.schedule}: {unknown}, and this rate depends on it from the first step; type "
            "optim.schedule=wsd or constant, or budget.steps"
        )
    elif schedule.ends[-2] + optim.decay > 1 + _NEAR:
        yield (
            f"optim.decay={optim.decay}: {unknown}, which may be as late as {schedule.ends[-2]:g} of the run, when "
            f"the rate falls already; type optim.decay={1 - schedule.ends[-2]:.4g}, or budget.steps"
        )


def _empty_stage_problems(
    schedule: ScheduleArgs, sampler: SamplerArgs | None, expander: ExpanderArgs | None
) -> Iterator[str]:
    """What does not go with stages that store no layer."""
    empty = [index for index, layers in enumerate(schedule.layers) if not layers]
    if not empty:
        return
    layers = f"schedule.layers={list(schedule.layers)}"
    if expander and not expander.build().draws_layers:
        yield (
            f"{layers}: the first layers have none to be copied from by expander={expander.kind}; type "
            "expander=fresh"
        )
    if sampler and not all(isinstance(sampler.build().in_stage(index), Shallow) for index in empty):
        yield (
            f"{layers}: stage {empty[0] + 1} stores no layer, so sampler={sampler.kind} has none to share; type "
            "sampler=shallow"
        )
    if any(schedule.shares[index] != 1 for index in empty):
        yield (
            f"schedule.widths={list(schedule.shares)}: a stage without layers has the whole width; make it 1 there"
        )


def _sampler_problems(layers: tuple[int, ...], sampler: SamplerArgs, model: ModelArgs | None) -> list[str]:
    """Which keys of the sampler do not fit the stages, and in which stages it is no distribution of the depth."""
    method = sampler.build()
    if (found := method.stage_problems(layers)) or not model or layers[-1] > model.layers:
        return found
    keys = ", ".join(f"sampler.{key}={value}" for key, value in sampler if key != "kind")
    for index, stored in enumerate(layers):
        if problems := method.in_stage(index).probability_problems(stored, model.layers):
            return [
                f"sampler={sampler.kind}: with {files.counted(stored, 'stored layer')} of {model.layers}, "
                f"{problems[0]}; change {keys or 'its code'}"
            ]
    return []


def _ending_at(layers: tuple[int, ...], target: int) -> list[int]:
    """As many stages as `layers` has, if there is room, in about the same proportions, the last one `target`."""
    scaled = [max(1, round(n * target / layers[-1])) for n in layers[:-1]]
    return [*dict.fromkeys(n for n in scaled if n < target), target]


def _trained_problems(
    schedule: ScheduleArgs, sampler: SamplerArgs | None, expander: ExpanderArgs | None
) -> Iterator[str]:
    """Why the new layers of a stage cannot train alone."""
    trained = schedule.trained or ()
    grown = [pair for pair, which in zip(pairwise(schedule.layers), trained[1:], strict=False) if which == "new"]
    if "new" in trained and sampler and sampler.build().chooses_layers:
        yield (
            f"schedule.trained={list(trained)}: sampler={sampler.kind} chooses the layers itself; take "
            "sampler=shallow"
        )
    if expander and not all(expander.build().adds_on_top(*pair) for pair in grown):
        yield (
            f"schedule.trained={list(trained)}: expander={expander.kind} puts new layers between the old ones, "
            "and only those on top can train alone; take expander=append or stack"
        )


def _init_from_problems(schedule: ScheduleArgs, expander: ExpanderArgs, init_from: InitFromArgs) -> Iterator[str]:
    """Which keys of `init_from` are missing or superfluous, and which moments cannot be kept."""
    method = expander.build()
    learns = isinstance(method, Ligo)
    remade = schedule.shares[0] != 1 or (learns and schedule.layers[0] != schedule.layers[-1])
    if method.needs_smaller_model and init_from.path is None and not remade:
        grow = "schedule.layers or schedule.widths grow" if learns else "schedule.widths grow"
        yield (
            f"init_from.path is null and expander={expander.kind} grows a smaller model: type "
            f"init_from.path=FOLDER, a run directory or a model in transformers' format, or let {grow} within "
            "the run"
        )
    if remade and expander.moments != "reset":
        where = "a map is learned" if learns else "schedule.widths grow"
        yield (
            f"expander.moments={expander.moments}: AdamW starts afresh where {where}; type expander.moments=reset"
        )
    if init_from.path is not None and schedule.trained and schedule.trained[0] == "new":
        yield (
            f"schedule.trained={list(schedule.trained)}: the first stage begins with the layers of init_from, and "
            "all of its layers train; type all first"
        )
    if init_from.path is None:
        yield from [
            f"init_from.{key}={str(value).lower()} and init_from.path is null: there is no model to "
            "begin with; give both or neither"
            for key, value in init_from
            if value is not None and value is not False
        ]
    elif init_from.optimizer and learns:
        yield (
            f"init_from.optimizer=true: expander={expander.kind} learns a map, which has none for the optimizer's "
            "state; type init_from.optimizer=false"
        )


def _width_problems(schedule: ScheduleArgs, model: ModelArgs, expander: ExpanderArgs | None) -> list[str]:
    """Which widths of the stages are not whole numbers, or not reached by the expander's rule."""
    found = []
    names = [name for name in ("hidden", "heads", "kv_heads", "ffn") if getattr(model, name, None)]
    for share in sorted(set(schedule.shares)):
        for name in names:
            part = share * (width := getattr(model, name))
            if round(part) < 1 or not math.isclose(part, round(part), rel_tol=_NEAR):
                found.append(
                    f"schedule.widths={list(schedule.shares)}: {share:g} of model.{name}={width} is {part:g}; each "
                    f"share must give whole numbers of {', '.join(names[:-1])} and ffn"
                )
    hidden = [round(share * model.hidden) for share in schedule.shares]
    rule = WIDTHS[expander.build().width_rule] if expander else None
    if not found and rule and rule.is_lossless and any(b % a for a, b in pairwise(hidden)):
        found.append(
            f"schedule.widths={list(schedule.shares)}: hidden grows as {hidden}, and LEMON is lossless only for "
            "whole multiples; take such shares or expander=bert2bert"
        )
    return found
