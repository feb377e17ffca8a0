"""From a config to the plan of its run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from tokenizers import Tokenizer

from apollo_cli.config.config import Config
from apollo_cli.config.model import BertArgs
from apollo_cli.data.batches import MaskedTokens, NextToken, Task
from apollo_cli.data.tokenizer import inside_words, special_ids
from apollo_cli.errors import ConfigError
from apollo_cli.growth.expanders import Ligo
from apollo_cli.growth.plan import Plan, SourceCost, StagePlan, StepCost, max_steps_within
from apollo_cli.growth.schedule import min_steps, shorter_steps
from apollo_cli.models.activation_memory import ActivationMemory
from apollo_cli.models.build import num_parameters
from apollo_cli.models.communication import Kind, state_bytes, step_bytes
from apollo_cli.models.flops import training_flops
from apollo_cli.training.calibration import seconds_by_depth
from apollo_cli.training.device import Device
from apollo_cli.training.init_from.learned_map import map_flops
from apollo_cli.training.init_from.source import SourceModel, find_source
from apollo_cli.training.memory import activation_limit, num_pieces, process_bytes
from apollo_cli.training.optimizer import optimizer_flops


def make_task(config: Config, tokenizer: Tokenizer | None = None) -> Task:
    """The task of the model; without a tokenizer it can only count predictions."""
    model = config.model
    if not isinstance(model, BertArgs):
        return NextToken()
    if tokenizer is None:
        return MaskedTokens(model.mask_fraction, 0, config.data.vocab_size)
    mask = special_ids("bert", tokenizer)["mask"]
    inside = inside_words(tokenizer) if model.whole_word_masking else None
    return MaskedTokens(model.mask_fraction, mask, config.data.vocab_size, inside)


def make_step_cost(config: Config, device: Device, width: float = 1.0) -> StepCost:
    """Cost of a step at this share of the width; a ConfigError if a micro-step cannot be divided by the devices."""
    model_config, seq_len, rows = config.model_config.narrowed(width), config.data.seq_len, config.batch.micro_size
    predictions = rows * make_task(config).predictions(seq_len)
    memory, limit = ActivationMemory(model_config, device.device.type, device.bf16), activation_limit(device)
    devices, batch = device.shared_by(config.run), config.batch
    kind: Kind = config.distributed.kind if devices > 1 else "ddp"
    if rows % devices:
        micro = devices * max(1, round(rows / devices))
        raise ConfigError(
            f"batch.{'size' if batch.micro is None else 'micro'}={rows} is not divisible by {devices} devices; "
            f"for example batch.size={micro * max(1, round(batch.size / micro))}"
            f"{'' if batch.micro is None else f' batch.micro={micro}'}"
        )

    def memory_bytes(layers: int, depth: int) -> int:
        here = rows // devices
        pieces = num_pieces(memory, here, seq_len, depth, limit)
        tensors = memory.working_bytes(here * seq_len, depth, predictions // devices, pieces)
        tensors += state_bytes(kind, model_config, layers, devices, device.bf16, batch.accumulation * pieces > 1)
        if config.optim.ema is not None:
            tensors += 4 * num_parameters(model_config, layers) // (devices if kind == "fsdp" else 1)
        return process_bytes(device, tensors, pieces)

    def sent_bytes(layers: int, depth: int) -> int:
        passes = batch.accumulation * num_pieces(memory, rows // devices, seq_len, depth, limit)
        return step_bytes(kind, model_config, layers, depth, devices, device.bf16, passes)

    return StepCost(
        target=config.model.layers,
        accumulation=config.batch.accumulation,
        tokens_per_step=config.batch.size * seq_len,
        flops=lambda depth, frozen: training_flops(model_config, rows, seq_len, depth, predictions, frozen),
        parameters=lambda layers: num_parameters(model_config, layers),
        memory_bytes=memory_bytes,
        devices=devices,
        sent_bytes=sent_bytes,
        optimizer_flops=optimizer_flops(model_config, config.optim),
    )


def recorded_source(plan: Mapping[str, Any]) -> SourceCost | None:
    """The cost of the source in a plan.json; None where it has none that can be believed."""
    try:
        flops, seconds = plan["source_flops"], float(plan["source_seconds"])
        map_flops, first = plan["stages"][0]["map_flops"], plan["stages"][0]["layers"]
        layers = plan.get("source_layers")  # a run of an earlier version has none
        is_sound = layers is None or (_is_count(layers) and 1 <= layers <= first)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    is_sound = is_sound and _is_count(map_flops) and (flops is None or _is_count(flops)) and 0 <= seconds < inf
    return SourceCost(flops, seconds, map_flops, layers) if is_sound else None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def make_plan(
    config: Config,
    device: Device,
    steps: int | None = None,
    recorded: SourceCost | None = None,
    ended: Sequence[int] = (),
) -> Plan:
    """The plan of `steps`, or of as many as the budget allows; the same one in all processes of a run.

    Args:
        steps: length of the run; None for the budget.
        recorded: of a run that has begun: its source may have changed or gone since.
        ended: the steps at which its first stages have ended, where the plan is that of a run with
            `schedule.when=plateau`. The rest of the budget is planned as if the others end as late as they can.

    Raises:
        ConfigError: the budget is too small for the stages, a micro-step cannot be divided among the devices, or
            no stage can end before its latest end.
    """
    step_cost = make_step_cost(config, device)
    narrower = {width: make_step_cost(config, device, width) for width in config.schedule.shares if width != 1}
    source = None if recorded else find_source(config)
    maps = _map_flops_by_stage(config, source, {1.0: step_cost, **narrower})
    if recorded is None:
        recorded = SourceCost()
        if source:
            recorded = SourceCost(source.flops, source.seconds, maps.get(0, 0), source.model_config.layers)
    elif recorded.map_flops:
        maps[0] = recorded.map_flops
    budget = config.budget

    def plan_for(steps: int, ended: Sequence[int]) -> Plan:
        return Plan(
            schedule=config.schedule.over(steps, budget.extended_from, ended),
            sampler=config.sampler.build(),
            expander=config.expander.build(),
            step_cost=step_cost,
            seed=config.run.seed,
            source=recorded,
            maps=maps,
            narrower=narrower,
            may_end_early=budget.may_end_early,
        )

    def longest(ended: Sequence[int]) -> Plan:
        steps = budget.steps
        if steps is None and budget.tokens is not None:
            steps = budget.tokens // step_cost.tokens_per_step
            if not steps:
                raise ValueError(f"this is less than a step of {step_cost.tokens_per_step}")
        if steps is not None:
            return plan_for(steps, ended)
        cost: Callable[[Plan], float]
        if budget.flops is not None:
            limit, cost = float(budget.flops), lambda plan: plan.flops
        else:
            limit, cost = budget.seconds or 0.0, _seconds_of(config, device)
        ends = config.schedule.ends
        least = budget.extended_from[-1] + 1 if budget.extended_from else min_steps(ends, ended)
        shorter = () if budget.extended_from or ended else shorter_steps(ends)
        within = max_steps_within(limit, cost, lambda steps: plan_for(steps, ended), least, shorter)
        return plan_for(device.processes.broadcast(within.steps), ended)  # each process has timed it by itself

    try:
        plan = longest(ended) if steps is None else plan_for(steps, ended)
        if config.schedule.when == "plateau":
            plan = replace(plan, earliest=_with_earliest_ends(plan, config, len(ended), longest))
        return plan
    except ValueError as error:
        ((key, value),) = budget.lengths.items()
        raise ConfigError(f"budget.{key}={value}: {error}") from error


def _with_earliest_ends(plan: Plan, config: Config, over: int, longest: Callable[[Sequence[int]], Plan]) -> Plan:
    """The plan in which each stage, but the first ones, which are `over`, ends on its first possible plateau.

    A ConfigError if no stage has evaluations enough.
    """
    every, evaluations = config.eval.every, config.schedule.window + 1
    latest = plan
    for index in range(over, len(plan.schedule.stages) - 1):
        stage = plan.schedule.stages[index]
        step = (stage.first_step // every + evaluations) * every
        if step < stage.end_step:
            plan = longest((*plan.schedule.ended(stage.first_step), step))
    if plan is latest and not over:
        raise ConfigError(
            f"eval.every={every}: no stage has {evaluations} evaluations, as schedule.window={evaluations - 1} "
            "needs, before its latest end, so that schedule.when=plateau ends none; type a smaller eval.every"
        )
    return plan


def _map_flops_by_stage(
    config: Config, source: SourceModel | None, costs: Mapping[float, StepCost]
) -> dict[int, int]:
    """FLOPs of learning each map, by the index of the stage that it begins.

    A step of a map is a micro-step of the new model, whose stored layers run once, and the map's own products.
    """
    schedule, expander = config.schedule, config.expander.build()
    if not isinstance(expander, Ligo):
        return {}
    sizes = list(zip(schedule.layers, schedule.shares, strict=True))
    models = [replace(config.model_config.narrowed(share), layers=layers) for layers, share in sizes]
    found = {}
    for index, ((layers, share), model_config) in enumerate(zip(sizes, models, strict=True)):
        before = models[index - 1] if index else source and source.model_config
        if before and (not index or sizes[index - 1] != sizes[index]):
            step = costs[share].flops(layers, 0) + map_flops(before, model_config, layers)
            found[index] = expander.steps * step
    return found


def _seconds_of(config: Config, device: Device) -> Callable[[Plan], float]:
    """Returns the expected training seconds of a plan, from steps timed now at each of its widths.

    Each of several devices learns a map on whole micro-batches.
    """
    task = make_task(config)
    seconds = {width: seconds_by_depth(config, device, task, width) for width in set(config.schedule.shares)}

    def stage_seconds(plan: Plan, part: StagePlan) -> float:
        at_depth, layers, cost = seconds[part.stage.width], part.stage.layers, plan.cost_of(part.stage)
        map_seconds = part.map_flops / cost.flops(layers, 0) * cost.devices * at_depth(layers)
        return map_seconds + sum(count * at_depth(depth) for depth, count in part.depth_counts.items())

    return lambda plan: sum(stage_seconds(plan, part) for part in plan.stages)
