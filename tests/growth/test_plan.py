import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from apollo_cli.errors import ConfigError
from apollo_cli.growth import plan as plan_module
from apollo_cli.growth.expanders import CopyLayers, Expander, Growth, Msg
from apollo_cli.growth.plan import Plan, SourceCost, StepCost, max_steps_within
from apollo_cli.growth.rng import Purpose, uniforms
from apollo_cli.growth.samplers import (
    LVPS,
    DepthSampler,
    Edge,
    ForwardPath,
    Full,
    Prefixes,
    Shallow,
    Subset,
    Uniform,
)
from apollo_cli.growth.schedule import Schedule, min_steps, shorter_steps

SAMPLERS = [LVPS(), LVPS(k=0.0), Edge(), Uniform(), Full(), Shallow()]


def make_plan(
    steps: int,
    sampler: DepthSampler | None = None,
    layers: tuple[int, ...] = (1, 3, 6, 12),
    ends: tuple[float, ...] = (0.1, 0.2, 0.5, 1),
    *,
    accumulation: int = 3,
    kind: str = "nearest",
    seed: int = 0,
) -> Plan:
    step_cost = StepCost(
        target=layers[-1],
        accumulation=accumulation,
        tokens_per_step=640,
        flops=lambda depth, frozen: 100 * depth + 7 - 60 * frozen,
        parameters=lambda stored: 1000 + 50 * stored,
        memory_bytes=lambda stored, depth: 9 * stored + depth,
    )
    return Plan(Schedule.over(steps, layers, ends), sampler or LVPS(), CopyLayers(kind), step_cost, seed)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("accumulation", [1, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_depth_counts_count_the_depths_of_all_micro_steps(
    sampler: DepthSampler, accumulation: int, seed: int
) -> None:
    plan = make_plan(40, sampler, accumulation=accumulation, seed=seed)
    for stage in plan.stages:
        first, end = (step * accumulation for step in (stage.stage.first_step, stage.stage.end_step))
        assert stage.depth_counts == Counter(plan.depth(micro_step) for micro_step in range(first, end))
        assert sum(stage.depth_counts.values()) == stage.stage.steps * accumulation
        assert all(stage.stage.layers <= depth <= 12 for depth in stage.depth_counts)


def test_depth_of_a_micro_step_is_the_inverse_cdf_at_its_own_number() -> None:
    plan = make_plan(20, Uniform(), seed=5)  # stages of 1, 3, 6, 12 layers begin at micro-steps 0, 6, 12, 30
    u = uniforms(5, Purpose.DEPTH, 0, 60)
    stored = np.repeat([1, 3, 6, 12], [6, 6, 18, 30])
    expected = stored + np.floor(u * (13 - stored)).astype(int)
    assert [plan.depth(micro_step) for micro_step in range(60)] == expected.tolist()


def test_a_long_run_is_counted_exactly_in_pieces() -> None:
    plan = make_plan(1_000_000, Uniform(), (4, 12), (0.75, 1), accumulation=2)
    depths = 4 + np.floor(9 * uniforms(0, Purpose.DEPTH, 0, 1_500_000)).astype(int)
    counts = np.bincount(depths)
    assert plan.stages[0].depth_counts == {depth: counts[depth] for depth in range(4, 13)}
    assert plan.stages[1].depth_counts == {12: 500_000}


def test_totals_of_a_plan_without_sampling_by_hand() -> None:
    plan = make_plan(4, Shallow(), (1, 2), (0.5, 1))
    assert [stage.flops for stage in plan.stages] == [6 * 107, 6 * 207]
    assert plan.flops == 1884
    assert plan.scratch_flops == 12 * 207
    assert plan.steps == 4
    assert plan.micro_steps == 12
    assert plan.tokens == 4 * 640


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_flops_are_the_sum_over_micro_steps(sampler: DepthSampler) -> None:
    plan = make_plan(40, sampler)
    assert plan.flops == sum(100 * plan.depth(micro_step) + 7 for micro_step in range(120))
    assert plan.scratch_flops == 120 * 1207
    assert isinstance(plan.flops, int)


def test_flops_beyond_64_bits_stay_exact() -> None:
    step_cost = StepCost(
        2, 1, 1, lambda depth, frozen: 10**20 * depth + 1, lambda stored: stored, lambda stored, depth: stored
    )
    plan = Plan(Schedule.over(10, (1, 2), (0.5, 1)), Shallow(), CopyLayers("nearest"), step_cost, 0)
    assert plan.flops == 15 * 10**20 + 10
    assert plan.scratch_flops == 20 * 10**20 + 10


def test_plan_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert make_plan(40, seed=3).as_dict() == make_plan(40, seed=3).as_dict()
    assert make_plan(40, seed=3).flops != make_plan(40, seed=4).flops


def test_growth_map_does_not_change_the_depths() -> None:
    assert make_plan(40, kind="stack").flops == make_plan(40, kind="nearest").flops


def test_plan_is_written_with_the_documented_keys() -> None:
    plan = make_plan(40)
    written = plan.as_dict()
    assert set(written) == {
        *("steps", "micro_steps", "tokens", "flops", "scratch_flops", "stages", "devices"),
        *(
            "map_flops",
            "optimizer_flops",
            "source_flops",
            "source_seconds",
            "source_layers",
            "may_end_early",
            "extended_from",
        ),
    }
    assert written["steps"] == 40
    assert written["micro_steps"] == 120
    assert written["tokens"] == 40 * 640
    assert written["flops"] == sum(stage["flops"] for stage in written["stages"])
    keys = {
        "layers", "first_step", "end_step", "parameters", "flops", "depth_probabilities", "depth_counts",
        "growth_map", "frozen_layers", "sent_bytes", "width", "map_flops", "optimizer_flops",
    }  # fmt: skip
    assert all(set(stage) - {"memory_bytes"} == keys for stage in written["stages"])
    stages = written["stages"]
    assert [stage["layers"] for stage in stages] == [1, 3, 6, 12]
    assert [(stage["first_step"], stage["end_step"]) for stage in stages] == [(0, 4), (4, 8), (8, 20), (20, 40)]
    assert [stage["parameters"] for stage in stages] == [1050, 1150, 1300, 1600]
    deepest = [max(stage["depth_counts"]) for stage in stages]
    assert [stage["memory_bytes"] for stage in stages] == [
        9 * n + d for n, d in zip((1, 3, 6, 12), deepest, strict=True)
    ]
    assert stages[1]["depth_probabilities"] == LVPS().probabilities(3, 12)
    assert stages[3]["depth_counts"] == {12: 60}


def test_plan_is_written_as_plain_json() -> None:
    for kind in ("nearest", "linear"):
        written = make_plan(40, Edge(), kind=kind).as_dict()
        read = json.loads(json.dumps(written))
        for stage in read["stages"]:
            for key in ("depth_probabilities", "depth_counts"):
                stage[key] = {int(depth): value for depth, value in stage[key].items()}
        assert read == written


def test_copying_growth_is_written_as_indices() -> None:
    maps = [stage["growth_map"] for stage in make_plan(40, kind="nearest").as_dict()["stages"]]
    assert maps == [None, [0, 0, 0], [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]
    maps = [stage["growth_map"] for stage in make_plan(40, kind="stack").as_dict()["stages"]]
    assert maps == [None, [0, 0, 0], [0, 1, 2] * 2, [0, 1, 2, 3, 4, 5] * 2]


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (3,)])
def test_a_map_for_other_numbers_of_layers_is_refused(shape: tuple[int, ...]) -> None:
    """Of an expander of one's own: 1 -> 3 needs a matrix (3, 1)."""

    class Wrong(Expander):
        def growth(self, source: int, target: int) -> Growth:
            return Growth(np.ones(shape))

    plan = replace(make_plan(30, layers=(1, 3), ends=(0.5, 1)), expander=Wrong())
    said = re.escape(f"Wrong.growth(1, 3) has a matrix of shape {shape}; it should be (3, 1)")
    with pytest.raises(ConfigError, match=said):
        plan.as_dict()


def test_blending_growth_is_written_as_rows() -> None:
    stages = make_plan(40, layers=(1, 2, 3), ends=(0.1, 0.2, 1), kind="linear").as_dict()["stages"]
    assert [stage["growth_map"] for stage in stages] == [None, [0, 0], [[1, 0], [0.5, 0.5], [0, 1]]]


def longest_of_all(costs: dict[int, int], budget: int) -> int:
    return max(steps for steps, cost in costs.items() if cost <= budget)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("ends", [(0.1, 0.2, 0.5, 1), (0.25, 0.5, 0.75, 1), (0.42, 0.52, 0.8, 1)])
def test_longest_plan_within_a_budget_is_the_longest_of_all(sampler: DepthSampler, ends: tuple[float, ...]) -> None:
    @cache
    def plan_for(steps: int) -> Plan:
        return make_plan(steps, sampler, ends=ends, accumulation=2)

    enough = min_steps(ends)
    costs = {steps: plan_for(steps).flops for steps in range(enough, 90)}
    for budget in (b for cost in list(costs.values())[:30] for b in (cost, cost + 1, cost + 500)):
        plan = max_steps_within(budget, lambda plan: plan.flops, plan_for, enough)
        assert plan.steps == longest_of_all(costs, budget)


def test_longer_run_that_costs_less_is_found() -> None:
    def plan_for(steps: int) -> Plan:
        return make_plan(steps, layers=(1, 6, 24), ends=(0.04, 0.2, 1), accumulation=1)

    costs = {steps: plan_for(steps).flops for steps in range(25, 150)}
    assert costs[38] < costs[37]  # both growths come a step later and save more than a step costs
    plan = max_steps_within(costs[38], lambda plan: plan.flops, plan_for, 25)
    assert plan.steps == longest_of_all(costs, costs[38]) == 38


def test_a_budget_of_exactly_the_shortest_run_is_enough() -> None:
    assert max_steps_within(make_plan(10).flops, lambda plan: plan.flops, make_plan, 10).steps == 10


def test_budget_below_the_shortest_run_is_refused() -> None:
    def plan_for(steps: int) -> Plan:
        return make_plan(steps, Shallow())

    # 3 micro-steps in each of 1, 1, 3, 5 steps at 1, 3, 6, 12 layers
    assert plan_for(10).flops == 3 * (107 + 307 + 3 * 607 + 5 * 1207) == 24_810
    with pytest.raises(ValueError, match="a budget of 20000 is too small: 10 steps"):
        max_steps_within(20_000, lambda plan: plan.flops, plan_for, 10)
    with pytest.raises(ValueError, match=r"a budget of 24809 is too small.*cost 24810"):
        max_steps_within(24_809, lambda plan: plan.flops, plan_for, 10)


def test_a_budget_below_the_length_from_which_all_are_possible_has_the_longest_possible_run() -> None:
    """With stages up to 0.3, 0.8 and 1 of all steps: 1, 2, 3 after 3 steps, 1, 3, 4 after 4, and always from 5."""
    ends = (0.3, 0.8, 1)

    def plan_for(steps: int) -> Plan:
        return make_plan(steps, Shallow(), layers=(1, 3, 12), ends=ends, accumulation=1)

    assert (min_steps(ends), list(shorter_steps(ends))) == (5, [4, 3])
    costs = {steps: plan_for(steps).flops for steps in (3, 4, 5)}
    for budget, steps in ((costs[3], 3), (costs[4], 4), (costs[5] - 1, 4), (costs[5], 5)):
        assert max_steps_within(budget, lambda plan: plan.flops, plan_for, 5, shorter_steps(ends)).steps == steps
    with pytest.raises(ValueError, match=f"too small: 3 steps cost {costs[3]}"):
        max_steps_within(costs[3] - 1, lambda plan: plan.flops, plan_for, 5, shorter_steps(ends))


@pytest.mark.parametrize("most", [60, 100, 101])
def test_a_budget_may_be_as_long_as_a_plan_counts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubling the length from 10 steps on passes 40 and would be refused at 80, though 45 steps are counted."""
    monkeypatch.setattr(plan_module, "MOST_MICRO_STEPS", most)

    def plan_for(steps: int) -> Plan:
        return make_plan(steps, Full(), layers=(12,), ends=(1,), accumulation=1)

    for steps in (45, most):
        assert max_steps_within(plan_for(steps).flops, lambda plan: plan.flops, plan_for, 10).steps == steps
    with pytest.raises(ValueError, match=f"{most + 1} micro-steps are more than a plan counts exactly"):
        max_steps_within(10**9, lambda plan: plan.flops, plan_for, 10)


def test_frozen_layers_are_charged_forward_only() -> None:
    """100 a layer and 60 less where it is frozen, 7 for the head."""
    schedule = Schedule.over(8, (3, 6, 6), (0.25, 0.75, 1), ("all", "new", "all"))
    plan = Plan(schedule, Shallow(), CopyLayers("append"), replace(make_plan(10).step_cost, target=6), 0)
    assert [stage.flops for stage in plan.stages] == [6 * 307, 12 * (607 - 180), 6 * 607]
    assert plan.forward_path(0, 3) == ForwardPath((0, 1, 2))
    assert plan.forward_path(6, 6) == ForwardPath((0, 1, 2, 3, 4, 5), frozen=3)
    assert plan.forward_path(23, 6) == ForwardPath((0, 1, 2, 3, 4, 5))
    assert plan.stages[2].growth is None
    assert [stage["frozen_layers"] for stage in plan.as_dict()["stages"]] == [0, 3, 0]


def test_flops_of_prefixes_are_the_sum_over_micro_steps() -> None:
    schedule = Schedule.over(40, (12, 12), (0.25, 1))
    plan = Plan(schedule, Prefixes(), CopyLayers("stack"), make_plan(40).step_cost, 0)
    depths = [plan.depth(i) for i in range(120)]
    assert set(depths[:30]) == {3, 6, 9, 12}
    assert set(depths[30:]) == {12}
    first = sum(100 * depth + 7 - 60 * (depth - 3) for depth in depths[:30])
    assert [stage.flops for stage in plan.stages] == [first, 90 * 1207]
    assert plan.flops == sum(plan.flops_of(i // 3, depth) for i, depth in enumerate(depths))
    assert plan.forward_path(depths.index(9), 9) == ForwardPath(tuple(range(9)), frozen=6)


def test_a_forward_path_is_a_function_of_seed_and_micro_step() -> None:
    def paths(seed: int) -> list[ForwardPath]:
        schedule = Schedule.over(10, (12, 12), (0.5, 1))
        plan = Plan(schedule, Subset((6, 8)), CopyLayers("nearest"), make_plan(10).step_cost, seed)
        return [plan.forward_path(i, plan.depth(i)) for i in range(30)]

    assert paths(1) == paths(1) != paths(2)
    assert [len(path.layers) for path in paths(1)] == [6] * 15 + [8] * 15
    assert len({path.layers for path in paths(1)[:15]}) > 10


class WithReplacement(Shallow):
    """Any of the stored layers run, some of them twice and some not at all."""

    chooses_layers = True

    def layers_run(self, depth: int, layers: int, random: Callable[[], np.random.Generator]) -> tuple[int, ...]:
        return tuple(sorted(random().integers(layers, size=depth).tolist()))


def test_a_sampler_that_chooses_layers_is_not_said_to_train_all() -> None:
    """Even if the first micro-step of each stage runs all of them."""
    plans = [make_plan(4, WithReplacement(), (2,), (1,), accumulation=2, seed=seed) for seed in range(10)]
    ran = [[set(plan.forward_path(i, 2).layers) for i in range(plan.micro_steps)] for plan in plans]
    assert any(paths[0] == {0, 1} and {0} in paths for paths in ran)
    assert not any(plan.trains_all for plan in plans)
    assert make_plan(4, Shallow(), (2,), (1,)).trains_all


def test_gates_open_over_their_share_of_the_steps() -> None:
    schedule = Schedule.over(100, (2, 4, 8), (0.2, 0.5, 1))
    plan = Plan(schedule, Shallow(), Msg(0.2), make_plan(10).step_cost, 0)
    assert plan.gates(19) == {}
    assert plan.gates(20) == {2: 0.0, 3: 0.0}
    assert plan.gates(35) == {2: 0.75, 3: 0.75}
    assert plan.gates(40) == {}
    assert plan.gates(50) == dict.fromkeys((4, 5, 6, 7), 0.0)
    assert plan.forward_path(3 * 55, 8) == ForwardPath(tuple(range(8)), gates=dict.fromkeys((4, 5, 6, 7), 0.25))


@pytest.mark.parametrize("steps", [3, 4, 5, 7, 21])
def test_gates_are_open_at_the_end_of_a_stage_that_is_rounded(steps: int) -> None:
    schedule = Schedule.over(steps, (2, 4), (0.5, 1))
    plan = Plan(schedule, Shallow(), Msg(0.5), make_plan(10).step_cost, 0)
    assert plan.gates(schedule.growth_steps[0]) == {2: 0.0, 3: 0.0}
    assert plan.gates(steps) == {}


def test_at_a_growth_the_gates_of_the_stage_that_ends_are_open() -> None:
    """Its last step has 9/10 of them, the first step of the next stage those of its own new layers."""
    plan = Plan(Schedule.over(40, (1, 2, 4), (0.25, 0.5, 1)), Shallow(), Msg(0.25), make_plan(10).step_cost, 0)
    assert plan.gates(19) == {1: 0.9}
    assert plan.gates(20, 1) == {}
    assert plan.gates(20) == plan.gates(20, 2) == {2: 0.0, 3: 0.0}


def test_flops_of_learned_maps_are_counted_and_those_of_the_source_are_kept_apart() -> None:
    plan = replace(make_plan(40, Shallow()), maps={0: 1000, 2: 30}, source=SourceCost(77))
    assert plan.flops == 1030 + sum(stage.flops for stage in plan.stages)
    written = plan.as_dict()
    assert (written["source_flops"], written["map_flops"], written["flops"]) == (77, 1030, plan.flops)
    assert [stage["map_flops"] for stage in written["stages"]] == [1000, 0, 30, 0]


def test_a_narrow_stage_has_the_costs_of_its_width() -> None:
    """Half the width takes a tenth here: 3 micro-steps in each of 2, 2 and 4 steps of 3, 3 and 6 layers."""
    schedule = Schedule.over(8, (3, 3, 6), (0.25, 0.5, 1), widths=(0.5, 1, 1))
    step_cost = replace(make_plan(10).step_cost, target=6)
    narrow = replace(step_cost, flops=lambda depth, frozen: 10 * depth, parameters=lambda stored: 5 * stored)
    plan = Plan(schedule, Shallow(), CopyLayers("stack"), step_cost, 0, narrower={0.5: narrow})
    assert [stage.flops for stage in plan.stages] == [6 * 30, 6 * 307, 12 * 607]
    assert [stage.parameters for stage in plan.stages] == [15, 1150, 1300]
    assert [plan.flops_of(step, 3) for step in (1, 2)] == [30, 307]
    assert plan.scratch_flops == 24 * 607
    maps = [stage["growth_map"] for stage in plan.as_dict()["stages"]]
    assert maps == [None, [0, 1, 2], [0, 1, 2, 0, 1, 2]]
