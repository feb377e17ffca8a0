"""The plan of a run: its stages, depths and exact FLOPs, before the first step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from apollo_cli.errors import ConfigError
from apollo_cli.growth.expanders import Expander, Growth
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.growth.rng import Purpose, generator, uniforms
from apollo_cli.growth.samplers import NO_GATES, DepthSampler, ForwardPath
from apollo_cli.growth.schedule import Schedule, Stage

MOST_MICRO_STEPS = 50_000_000  # counted in half a minute; the paper's GPT-2 run has 12,800,000
_DRAWS_AT_ONCE = 1 << 20  # bounds the memory of counting a long run
_BLOCK = 1024  # micro-steps whose depths are drawn together, in the time of one


@dataclass(frozen=True)
class StagePlan:
    """One stage of a plan."""

    stage: Stage  # layers, width and span
    parameters: int  # trainable parameters of the whole model in this stage
    memory_bytes: int  # estimated peak memory of a device, at the depth that needs most
    sent_bytes: int  # bytes that each device sends in a step, on average
    flops: int  # model FLOPs of the stage's steps, exact
    map_flops: int  # FLOPs of learning the map at the start of the stage; 0 where none is learned
    optimizer_flops: int  # FLOPs of the optimizer's own matrix products, if each trained layer runs in every step
    depth_probabilities: dict[int, float]  # P(depth | N, L)
    depth_counts: dict[int, int]  # micro-steps by the depth that they run, exact for this seed
    # the growth at the start of the stage (where a map is learned, its start); None without growth
    growth: Growth | None

    def as_dict(self) -> dict[str, Any]:
        """The stage as in plan.json; growth maps that copy as indices, others as rows, null for a drawn layer."""
        growth_map = None
        if self.growth is not None:
            matrix = self.growth.matrix
            copies = matrix.size and np.isin(matrix, (0.0, 1.0)).all()
            growth_map = (matrix.argmax(axis=1) if copies else matrix).tolist()
            growth_map = [None if i in self.growth.drawn else row for i, row in enumerate(growth_map)]
        return {
            "layers": self.stage.layers,
            "width": self.stage.width,
            "first_step": self.stage.first_step,
            "end_step": self.stage.end_step,
            "frozen_layers": self.stage.frozen,
            **{key: value for key, value in vars(self).items() if key not in ("stage", "growth")},
            "growth_map": growth_map,
        }


@dataclass(frozen=True)
class StepCost:
    """The size of a step, and its costs for a model of one width."""

    target: int  # the target depth L
    accumulation: int  # micro-steps in a step
    tokens_per_step: int  # tokens that a step reads
    # model FLOPs of a micro-step, forward and backward, by the depth that runs and the number of its lowest layers
    # that run forward only
    flops: Callable[[int, int], int]
    parameters: Callable[[int], int]  # trainable parameters by stored layers
    # estimated peak memory of a micro-step on a device, by stored layers and depth
    memory_bytes: Callable[[int, int], int]
    devices: int = 1  # number of devices that share each micro-step
    # bytes that each of them sends in a step, by stored layers and depth
    sent_bytes: Callable[[int, int], int] = lambda layers, depth: 0
    optimizer_flops: int = 0  # FLOPs of the optimizer's own matrix products in an update of one layer


@dataclass(frozen=True)
class SourceCost:
    """What the model that a run begins with has cost."""

    flops: int | None = 0  # of its training; None if not known
    seconds: float = 0.0  # of its training; 0 if not known
    map_flops: int = 0  # of the map by which the first stage was made of it
    layers: int | None = None  # of it, from which the first stage may grow; None without a source


@dataclass(frozen=True)
class Plan:
    """What a run will do: schedule, sampler and expander, and what each step costs."""

    schedule: Schedule  # the stages
    sampler: DepthSampler  # the distribution of the depth
    expander: Expander  # how the layers grow
    step_cost: StepCost  # the cost of a step at the target's width
    seed: int  # base seed of every random number generator
    source: SourceCost = SourceCost()  # the cost of the model of `init_from`
    # FLOPs of learning the map at the start of a stage, by the index of the stage; counted once where several
    # processes learn the same map
    maps: Mapping[int, int] = field(default_factory=dict)
    # the cost of a step at each smaller share of the width that a stage has
    narrower: Mapping[float, StepCost] = field(default_factory=dict)
    may_end_early: bool = False  # whether the steps are an upper bound
    # with `schedule.when=plateau` the plan whose stages end as early as they can, beside this one, in which they
    # end as late as they can; None where their ends are planned
    earliest: "Plan | None" = None
    # the depths of a block of micro-steps, by stage and block: those that were asked for last
    _drawn: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.micro_steps > MOST_MICRO_STEPS:
            raise ValueError(
                f"{self.micro_steps:,} micro-steps are more than a plan counts exactly ({MOST_MICRO_STEPS:,}): "
                "use a smaller budget, or a batch.size nearer to batch.micro"
            )

    def depth(self, micro_step: int) -> int:
        """The depth of a micro-step: a function of (seed, micro-step)."""
        index = self.schedule.index(micro_step // self.step_cost.accumulation)
        block, place = divmod(micro_step, _BLOCK)
        if (index, block) not in self._drawn:
            self._drawn.clear()
            self._drawn[index, block] = self._depths(index, block * _BLOCK, _BLOCK)
        return int(self._drawn[index, block][place])

    def _depths(self, index: int, first: int, count: int) -> np.ndarray:
        """The depths of `count` micro-steps from `first` on, if they all belong to this stage."""
        u, layers = uniforms(self.seed, Purpose.DEPTH, first, count), self.schedule.stages[index].layers
        return self.sampler.in_stage(index).depths(u, layers, self.step_cost.target)

    def forward_path(self, micro_step: int, depth: int) -> ForwardPath:
        """What a micro-step of this depth runs: a function of (seed, micro-step)."""
        step = micro_step // self.step_cost.accumulation
        index = self.schedule.index(step)
        layers = self.sampler.in_stage(index).layers_run(
            depth,
            self.schedule.stages[index].layers,
            lambda: generator(self.seed, Purpose.FORWARD_PATH, micro_step),
        )
        return ForwardPath(layers, self._frozen(index, depth), self.gates(step))

    def gates(self, step: int, index: int | None = None) -> Mapping[int, float]:
        """The weights c of the stored layers that are gated at this step, see `Growth`.

        `index` is that of the stage whose model runs, which at the step of a growth may be the one that ends; None
        for the stage of the step.
        """
        stage = self.stages[self.schedule.index(step) if index is None else index]
        if not stage.growth or not stage.growth.gated:
            return NO_GATES
        first, end = stage.stage.first_step, min(stage.stage.end_step, self.schedule.first_planned)
        duration = min(stage.growth.gate_duration * self.schedule.first_planned, end - first)  # ends are rounded
        gate = (step - first) / duration
        return dict.fromkeys(stage.growth.gated, gate) if gate < 1 else NO_GATES

    def flops_of(self, step: int, depth: int) -> int:
        """Model FLOPs of a micro-step of this depth."""
        index = self.schedule.index(step)
        return self.cost_of(self.schedule.stages[index]).flops(depth, self._frozen(index, depth))

    def optimizer_flops_of(self, step: int, depths: Sequence[int]) -> int:
        """FLOPs of the optimizer's own matrix products in a step whose micro-steps run these depths.

        It updates the stored layers that have a gradient.
        """
        if not (cost := self.cost_of(self.schedule.at(step)).optimizer_flops):
            return 0
        paths = [self.forward_path(step * len(depths) + part, depth) for part, depth in enumerate(depths)]
        return cost * len({layer for path in paths for layer in path.layers[path.frozen :]})

    @cached_property
    def trains_all(self) -> bool:
        """Whether every micro-step has gradients for the embeddings and for every layer stored at that time.

        False for a sampler that chooses layers: a micro-step may leave out what another one of its depth runs.
        """
        return not self.sampler.chooses_layers and all(
            set(path.layers) == set(range(part.stage.layers)) and not path.frozen
            for part in self.stages
            for depth in part.depth_probabilities
            for path in [self.forward_path(part.stage.first_step * self.step_cost.accumulation, depth)]
        )

    def cost_of(self, stage: Stage) -> StepCost:
        return self.step_cost if stage.width == 1 else self.narrower[stage.width]

    def _frozen(self, index: int, depth: int) -> int:
        """How many of the lowest logical layers run forward only, because of the sampler or of the stage."""
        stage = self.schedule.stages[index]
        by_stage = sum(i < stage.frozen for i in layer_map("nearest", stage.layers, depth)) if stage.frozen else 0
        return max(self.sampler.in_stage(index).frozen(depth), by_stage)

    @cached_property
    def stages(self) -> tuple[StagePlan, ...]:
        return tuple(self._stage_plan(index) for index in range(len(self.schedule.stages)))

    def _stage_plan(self, index: int) -> StagePlan:
        stage = self.schedule.stages[index]
        step_cost, counts = self.cost_of(stage), self._depth_counts(index)
        previous = self.schedule.stages[index - 1] if index else stage
        before = previous.layers if index or self.source.layers is None else self.source.layers
        grows = (before, previous.width) != (stage.layers, stage.width)
        growth = self.expander.growth(before, stage.layers) if grows else None
        if growth and growth.matrix.shape != (stage.layers, before):
            raise ConfigError(
                f"expander: {type(self.expander).__name__}.growth({before}, {stage.layers}) has a matrix of shape "
                f"{growth.matrix.shape}; it should be {(stage.layers, before)}, new layers by old ones"
            )
        return StagePlan(
            stage=stage,
            parameters=step_cost.parameters(stage.layers),
            memory_bytes=max(step_cost.memory_bytes(stage.layers, depth) for depth in counts),
            sent_bytes=sum(n * step_cost.sent_bytes(stage.layers, depth) for depth, n in counts.items())
            // sum(counts.values()),
            flops=sum(n * step_cost.flops(depth, self._frozen(index, depth)) for depth, n in counts.items()),
            map_flops=self.maps.get(index, 0),
            optimizer_flops=stage.steps * (stage.layers - stage.frozen) * step_cost.optimizer_flops,
            depth_probabilities=self.sampler.in_stage(index).probabilities(stage.layers, step_cost.target),
            depth_counts=counts,
            growth=growth,
        )

    def _depth_counts(self, index: int) -> dict[int, int]:
        stage = self.schedule.stages[index]
        first, end = stage.first_step * self.step_cost.accumulation, stage.end_step * self.step_cost.accumulation
        totals = np.zeros(self.step_cost.target + 1, dtype=np.int64)
        for start in range(first, end, _DRAWS_AT_ONCE):
            depths = self._depths(index, start, min(_DRAWS_AT_ONCE, end - start))
            totals += np.bincount(depths, minlength=len(totals))
        return {depth: int(count) for depth, count in enumerate(totals) if count}

    @property
    def steps(self) -> int:
        return self.schedule.steps

    @property
    def micro_steps(self) -> int:
        return self.steps * self.step_cost.accumulation

    @property
    def tokens(self) -> int:
        return self.steps * self.step_cost.tokens_per_step

    @property
    def map_flops(self) -> int:
        """Model FLOPs of learning all maps, exact."""
        return sum(stage.map_flops for stage in self.stages)

    @property
    def flops(self) -> int:
        """Model FLOPs, exact, with those of maps and without those of the source."""
        return self.map_flops + sum(stage.flops for stage in self.stages)

    @property
    def optimizer_flops(self) -> int:
        """FLOPs of the optimizer's own matrix products, which are not in `flops`; 0 for AdamW."""
        return sum(stage.optimizer_flops for stage in self.stages)

    @property
    def scratch_flops(self) -> int:
        """Model FLOPs of the same number of steps at the target depth."""
        return self.micro_steps * self.step_cost.flops(self.step_cost.target, 0)

    def as_dict(self) -> dict[str, Any]:
        found = {
            "steps": self.steps,
            "may_end_early": self.may_end_early,
            "extended_from": list(self.schedule.extended_from),
            "micro_steps": self.micro_steps,
            "tokens": self.tokens,
            "devices": self.step_cost.devices,
            "flops": self.flops,
            "scratch_flops": self.scratch_flops,
            "map_flops": self.map_flops,
            "optimizer_flops": self.optimizer_flops,
            "source_flops": self.source.flops,
            "source_seconds": self.source.seconds,
            "source_layers": self.source.layers,
            "stages": [stage.as_dict() for stage in self.stages],
        }
        if (plan := self.earliest) is not None:
            ends = [stage.end_step for stage in plan.schedule.stages]
            found["earliest"] = {"end_steps": ends, "steps": plan.steps, "flops": plan.flops}
        return found


def max_steps_within(
    budget: float,
    cost: Callable[[Plan], float],
    plan_for: Callable[[int], Plan],
    min_steps: int,
    shorter: Iterable[int] = (),
) -> Plan:
    """The plan with the most steps whose cost stays within `budget`.

    Args:
        budget: in the unit of `cost`.
        cost: the cost of a plan, for example its exact FLOPs; it rises with the steps, except for single ones.
        min_steps: see `schedule.min_steps`.
        shorter: see `schedule.shorter_steps`.

    Raises:
        ValueError: the shortest plan costs more.
    """
    low, shortest = min_steps, plan_for(min_steps)
    if (least := cost(shortest)) > budget:
        for low in shorter:
            if (least := cost(plan_for(low))) <= budget:
                return plan_for(low)
        raise ValueError(f"a budget of {budget:.6g} is too small: {low} steps cost {least:.6g}")
    most = MOST_MICRO_STEPS // shortest.step_cost.accumulation
    high = min(2 * low, most + 1)
    while high <= most and cost(plan_for(high)) <= budget:
        low, high = high, min(2 * high, most + 1)
    if high > most and cost(plan_for(most)) < budget:
        return plan_for(most + 1)  # which is more than a plan counts
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(plan_for(middle)) <= budget else (low, middle)
    # a growth that moves a step later can make a longer run cheaper: try some more lengths
    further = range(low, min(most, low + 2 * len(shortest.schedule.stages)) + 1)
    return plan_for(max(steps for steps in further if cost(plan_for(steps)) <= budget))
