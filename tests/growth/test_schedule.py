import re
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from apollo_cli.growth.schedule import (
    Schedule,
    Stage,
    is_on_plateau,
    layers_of,
    min_steps,
    schedule_problems,
)

LAYERS, ENDS = (1, 3, 6, 12), (0.05, 0.1, 0.25, 1.0)
FALLING = "schedule.layers={}: must be 0 or more, end at 1 or more, and never fall, stage by stage"
BAD_ENDS = "schedule.ends={}: these are cumulative shares of all steps and must rise to 1; for example {}"


def test_apollo_stages_of_forty_epochs() -> None:
    schedule = Schedule.over(40_000, LAYERS, ENDS)
    assert schedule.stages == (
        Stage(1, 0, 2_000),
        Stage(3, 2_000, 4_000),
        Stage(6, 4_000, 10_000),
        Stage(12, 10_000, 40_000),
    )
    assert [stage.steps for stage in schedule.stages] == [2_000, 2_000, 6_000, 30_000]
    assert schedule.steps == 40_000
    assert schedule.growth_steps == (2_000, 4_000, 10_000)


@pytest.mark.parametrize(
    ("entry", "target", "layers"),
    [
        *(("L", 12, 12), ("L/4", 12, 3), ("3L/4", 12, 9), ("2L/3", 24, 16), ("1L/12", 24, 2)),
        *(("L/4", 10, 3), ("L/4", 9, 2), ("L/4", 1, 1), ("3L/4", 6, 5)),  # half up, at least 1
        *((3, 12, 3), ("l/4", 12, "l/4"), ("L/0", 12, "L/0"), ("L/4/2", 12, "L/4/2"), (None, 12, None)),
    ],
)
def test_layers_as_parts_of_the_target(entry: object, target: int, layers: object) -> None:
    assert layers_of(entry, target) == layers


def test_stages_round_to_whole_steps_half_up() -> None:
    assert Schedule.over(10, (1, 2, 4), (0.25, 0.5, 1)).growth_steps == (3, 5)
    assert Schedule.over(9, (1, 2), (0.25, 1)).growth_steps == (2,)
    assert Schedule.over(11, (1, 2), (0.25, 1)).growth_steps == (3,)


def test_one_stage_is_the_whole_run() -> None:
    schedule = Schedule.over(7, (12,), (1,))
    assert schedule.stages == (Stage(12, 0, 7),)
    assert schedule.growth_steps == ()
    assert [schedule.index(step) for step in range(8)] == [0] * 8


def test_every_step_belongs_to_the_stage_whose_span_holds_it() -> None:
    schedule = Schedule.over(20, LAYERS, (0.1, 0.2, 0.5, 1))
    assert [schedule.index(step) for step in range(20)] == [0] * 2 + [1] * 2 + [2] * 6 + [3] * 10
    for step in range(20):
        stage = schedule.at(step)
        assert stage.first_step <= step < stage.end_step
    assert schedule.index(20) == 3  # the end of the run


def test_stages_are_numbered_from_one_by_their_layers() -> None:
    schedule = Schedule.over(100, LAYERS, ENDS)
    assert [schedule.number(step, 1) for step in (0, 4, 5)] == [1, 1, 1]  # 5: just before it grows
    assert [schedule.number(step, 3) for step in (5, 9, 10)] == [2, 2, 2]
    assert schedule.number(100, 12) == 4


def test_stages_of_as_many_layers_are_numbered_by_their_steps() -> None:
    schedule = Schedule.over(8, (2, 4, 4), (0.25, 0.5, 1))
    assert [schedule.number(step, 4) for step in (2, 3, 4, 7, 8)] == [2, 2, 3, 3, 3]
    assert schedule.growth_steps == (2,)


def test_a_stage_may_train_only_the_layers_that_it_adds() -> None:
    schedule = Schedule.over(10, (3, 6, 9, 9), (0.2, 0.4, 0.6, 1), ("all", "new", "new", "all"))
    assert [stage.frozen for stage in schedule.stages] == [0, 3, 6, 0]
    assert [stage.frozen for stage in Schedule.over(10, (3, 6), (0.5, 1)).stages] == [0, 0]


def test_trained_has_a_value_for_each_stage_and_new_only_where_layers_are_added() -> None:
    assert schedule_problems((3, 6), (0.5, 1), ("all", "new")) == []
    (problem,) = schedule_problems((3, 6), (0.5, 1), ("all",))
    assert "schedule.trained has 1 values and schedule.layers 2" in problem
    (problem,) = schedule_problems((3, 3), (0.5, 1), ("all", "new"))
    assert "stage 2 adds no layer" in problem


def test_the_width_grows_with_or_without_the_layers() -> None:
    schedule = Schedule.over(8, (2, 2, 4, 4), (0.25, 0.5, 0.75, 1), widths=(0.25, 0.5, 1, 1))
    assert [stage.width for stage in schedule.stages] == [0.25, 0.5, 1, 1]
    assert schedule.growth_steps == (2, 4)
    assert [schedule.number(2, 2, 0.25), schedule.number(2, 2, 0.5)] == [1, 2]  # just before, and after
    assert [schedule.number(4, 2, 0.5), schedule.number(4, 4), schedule.number(6, 4)] == [2, 3, 4]
    assert schedule.grows_in_width
    assert not Schedule.over(8, (2, 4), (0.5, 1)).grows_in_width


def test_widths_have_a_value_for_each_stage_and_rise_to_one() -> None:
    assert schedule_problems((3, 6), (0.5, 1), widths=(0.5, 1)) == []
    (problem,) = schedule_problems((3, 6), (0.5, 1), widths=(1,))
    assert "schedule.widths has 1 values and schedule.layers 2: give one for each stage" in problem
    for wrong in ((0.5, 0.5), (1, 0.5), (0, 1), (-1, 1), (float("nan"), 1), (1, 2)):
        (problem,) = schedule_problems((3, 6), (0.5, 1), widths=wrong)
        assert "must never fall and end at 1" in problem
        assert problem.endswith("for example [0.5,1]")


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True), st.integers(0, 50_000))
def test_stages_cover_the_run_without_gaps_and_end_where_asked(parts: list[int], more: int) -> None:
    cumulative = [sum(parts[: i + 1]) for i in range(len(parts))]
    ends = [part / cumulative[-1] for part in cumulative]
    steps = cumulative[-1] + more  # every part of at least 1 gets a step
    schedule = Schedule.over(steps, range(1, len(parts) + 1), ends)
    spans = [(stage.first_step, stage.end_step) for stage in schedule.stages]
    assert spans[0][0] == 0
    assert spans[-1][1] == schedule.steps == steps
    assert all(end == first for (_, end), (first, _) in pairwise(spans))
    assert all(stage.steps > 0 for stage in schedule.stages)
    for (_, end), part in zip(spans, cumulative, strict=True):
        assert abs(end - Fraction(part * steps, cumulative[-1])) <= Fraction(1, 2) + Fraction(1, 10**9)


@pytest.mark.parametrize(
    ("layers", "ends"), [(LAYERS, ENDS), ([12], [1]), ([1, 12], [0.8, 1.0]), ((3, 6, 12), (0.125, 0.175, 1))]
)
def test_valid_stages_have_no_problems(layers: list[int], ends: list[float]) -> None:
    assert schedule_problems(layers, ends) == []


@pytest.mark.parametrize(
    ("layers", "ends", "found"),
    [
        (
            [],
            [1.0],
            [
                "schedule.layers is empty: give the stored layers of each stage, for example [1,3,6,12]",
                "schedule.ends has 1 values and schedule.layers 0: give one for each stage",
            ],
        ),
        ([0, 0], [0.5, 1], [FALLING.format("[0, 0]")]),
        ([-1], [1], [FALLING.format("[-1]")]),
        ([3, 1], [0.5, 1], [FALLING.format("[3, 1]")]),
        ([1, 3], [1], ["schedule.ends has 1 values and schedule.layers 2: give one for each stage"]),
        ([1], [0.5, 1], ["schedule.ends has 2 values and schedule.layers 1: give one for each stage"]),
        ([1, 3], [0.5, 0.9], [BAD_ENDS.format("[0.5, 0.9]", "[0.5,1]")]),
        ([1, 3], [0.5, 1.5], [BAD_ENDS.format("[0.5, 1.5]", "[0.5,1]")]),
        ([1, 3], [0.0, 1], [BAD_ENDS.format("[0.0, 1]", "[0.5,1]")]),
        ([1, 3], [-0.5, 1], [BAD_ENDS.format("[-0.5, 1]", "[0.5,1]")]),
        ([1, 3, 6], [0.5, 0.5, 1], [BAD_ENDS.format("[0.5, 0.5, 1]", "[0.333,0.667,1]")]),
        ([1, 3, 6], (0.5, 0.25, 1), [BAD_ENDS.format("[0.5, 0.25, 1]", "[0.333,0.667,1]")]),
        (
            [1],
            [],
            [
                "schedule.ends has 0 values and schedule.layers 1: give one for each stage",
                BAD_ENDS.format("[]", "[1]"),
            ],
        ),
        (
            [6, 3],
            [0.5, 0.25, 0.75],
            [
                FALLING.format("[6, 3]"),
                "schedule.ends has 3 values and schedule.layers 2: give one for each stage",
                BAD_ENDS.format("[0.5, 0.25, 0.75]", "[0.5,1]"),
            ],
        ),
    ],
)
def test_all_problems_are_reported_at_once(layers: list[int], ends: list[float], found: list[str]) -> None:
    assert schedule_problems(layers, ends) == found
    with pytest.raises(ValueError, match=f"^{re.escape('; '.join(found))}$"):
        Schedule.over(1000, layers, ends)


@pytest.mark.parametrize(
    ("steps", "ends", "stage", "layers", "least"),
    [
        (9, ENDS, 1, 1, 15),  # 0.45 steps
        (14, ENDS, 2, 3, 15),  # both ends round to 1
        (5, (0.5, 0.9, 0.95, 1.0), 3, 6, 16),  # 4.5 and 4.75 round to 5; of 16: 8, 14.4, 15.2, 16
        (3, (0.3, 0.6, 0.9, 1.0), 4, 12, 6),  # of 5: 4.5 rounds to 5; of 6: 1.8, 3.6, 5.4, 6
        (0, ENDS, 1, 1, 15),
    ],
)
def test_stage_without_a_step_is_refused(
    steps: int, ends: tuple[float, ...], stage: int, layers: int, least: int
) -> None:
    message = (
        f"stage {stage} of 4 ({layers} layers) would have no step in a run of {steps}: "
        f"{least} is the smallest number of steps that these schedule.ends allow"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Schedule.over(steps, LAYERS, ends)


def test_a_tiny_share_is_refused_at_once() -> None:
    """Its first step comes with 5e8 steps, too many to be tried one by one; 1e9 are enough."""
    with pytest.raises(ValueError, match=r"1000000000 is a number of steps that these schedule\.ends allow"):
        Schedule.over(400, (1, 12), (1e-9, 1))
    for ends, share in [((5e-324, 1), "4.94e-324"), ((0.5, 0.5 + 2**-53, 1), "1.11e-16")]:
        with pytest.raises(ValueError, match=f"a stage has {share} of all steps, and no run is long enough for it"):
            Schedule.over(400, (1, 2, 12)[: len(ends)], ends)


def test_shortest_apollo_run_has_fifteen_steps() -> None:
    assert [stage.steps for stage in Schedule.over(15, LAYERS, ENDS).stages] == [1, 1, 2, 11]


@pytest.mark.parametrize(
    ("ends", "steps"), [(ENDS, 20), ((1.0,), 1), ((0.25, 0.5, 1), 4), ((0.125, 0.175, 1), 20), ((0.8, 1), 5)]
)
def test_enough_steps_give_the_shortest_stage_one(ends: tuple[float, ...], steps: int) -> None:
    assert min_steps(ends) == steps


@pytest.mark.parametrize("first", [0.135, 0.275, 0.27, 0.54, 0.55, 0.555])
def test_ends_that_round_to_one_step_have_a_step_in_every_longer_run(first: float) -> None:
    """0.285 of 100 steps is 28.499999999999996, so that a stage from 0.275 on would be empty."""
    for share in (0.01, 0.02, 0.04):
        ends = (first, round(first + share, 3), 1.0)
        enough = min_steps(ends)
        assert enough <= round(1 / share) + 1
        for steps in (enough, enough + 1, enough + 7):
            assert all(stage.steps > 0 for stage in Schedule.over(steps, (1, 2, 3), ends).stages)


@settings(deadline=None)
@given(st.sampled_from([8, 10, 40, 100, 1000]), st.data())
def test_every_run_of_enough_steps_gives_every_stage_a_step(parts: int, data: st.DataObject) -> None:
    inner = data.draw(st.lists(st.integers(1, parts - 1), max_size=6, unique=True))
    ends = [part / parts for part in (*sorted(inner), parts)]
    enough = min_steps(ends)
    for steps in range(enough, enough + 50):
        schedule = Schedule.over(steps, range(1, len(ends) + 1), ends)
        assert all(stage.steps > 0 for stage in schedule.stages)


def test_stages_that_have_ended_keep_their_ends() -> None:
    schedule = Schedule.over(100, LAYERS, ENDS, ended=(3, 20))
    assert [stage.end_step for stage in schedule.stages] == [3, 20, 25, 100]
    assert [schedule.ended(step) for step in (2, 3, 24, 25, 100)] == [(), (3,), (3, 20), (3, 20, 25), (3, 20, 25)]
    assert Schedule.over(100, LAYERS, ENDS, ended=(3, 20, 25)).extended(120).ended(110) == (3, 20, 25)
    for wrong in ((3, 3), (3, 25), (3, 20, 25, 30)):
        with pytest.raises(ValueError, match=r"stages have ended|would have no step"):
            Schedule.over(100, LAYERS, ENDS, ended=wrong)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=5), st.data())
def test_enough_steps_give_every_stage_that_has_not_ended_a_step(parts: list[int], data: st.DataObject) -> None:
    ends = [sum(parts[: i + 1]) / sum(parts) for i in range(len(parts))]
    gaps = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=len(parts) - 1))
    ended = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    enough = min_steps(ends, ended)
    for steps in range(enough, enough + 20):
        assert all(
            stage.steps > 0 for stage in Schedule.over(steps, range(1, len(ends) + 1), ends, ended=ended).stages
        )


@pytest.mark.parametrize(
    ("losses", "window", "threshold", "found"),
    [
        ([], 1, 0.1, False),
        ([4.0, 4.0], 1, 0.1, True),
        ([4.0, 4.0], 2, 0.1, False),
        ([4.0, 3.9, 3.7], 2, 0.1, True),  # neither is below 3.6
        ([4.0, 3.9, 3.5], 2, 0.1, False),
        ([4.0, 3.9, 3.5, 3.3, 3.2], 2, 0.1, True),  # 3.5 is the best one now
        ([4.0, 5.0, 3.9], 2, 0.0, False),
        ([float("inf"), float("inf")], 1, 0.1, True),
    ],
)
def test_a_plateau_by_hand(losses: list[float], window: int, threshold: float, found: bool) -> None:
    assert is_on_plateau(losses, window, threshold) == found


@settings(deadline=None)
@given(
    st.lists(st.floats(0.5, 8), min_size=1, max_size=20),
    st.integers(1, 5),
    st.sampled_from([0.0, 1e-4, 0.01, 0.1, 0.5]),
)
def test_a_plateau_is_where_pytorch_would_lower_its_rate(losses: list[float], window: int, share: float) -> None:
    optimizer = SGD([Parameter()], lr=1.0)
    scheduler = ReduceLROnPlateau(optimizer, patience=window - 1, threshold=share, threshold_mode="rel")
    for count, loss in enumerate(losses, 1):
        scheduler.step(loss)
        lowered = optimizer.param_groups[0]["lr"] < 1
        assert is_on_plateau(losses[:count], window, share) == lowered
        if lowered:
            break
