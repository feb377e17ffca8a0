import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apollo_cli.intervals import Interval, interval
from apollo_cli.report import savings
from apollo_cli.report.savings import Cost, Curve, Point

LOSSES = st.floats(0.1, 12, allow_nan=False)


def curve(losses: list[float], flops: list[float] | None = None) -> Curve:
    spent = flops or [100.0 * i for i in range(len(losses))]
    return tuple(Point(i, Cost(f, f / 10), loss) for i, (f, loss) in enumerate(zip(spent, losses, strict=True)))


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    losses = draw(st.lists(LOSSES, min_size=1, max_size=12))
    steps = draw(st.lists(st.integers(1, 10**13), min_size=len(losses), max_size=len(losses)))
    return curve(losses, [float(sum(steps[: i + 1])) for i in range(len(losses))])


def test_the_crossing_is_linear_between_two_evaluations_in_flops_and_seconds() -> None:
    assert savings.crossing(curve([5.0, 3.0, 2.0]), 4.0) == Cost(50.0, 5.0)
    assert savings.crossing(curve([5.0, 3.0, 2.0]), 2.25) == Cost(175.0, 17.5)
    assert savings.crossing(curve([5.0, 3.0, 2.0]), 3.0) == Cost(100.0, 10.0)


def test_nothing_is_extrapolated_on_either_side() -> None:
    assert savings.crossing(curve([5.0, 3.0]), 2.999) is None
    assert savings.crossing(curve([3.0, 2.0], [70.0, 80.0]), 4.0) == Cost(70.0, 7.0)
    assert savings.loss_at(curve([5.0, 3.0], [10.0, 20.0]), 9.9) is None
    assert savings.loss_at(curve([5.0, 3.0], [10.0, 20.0]), 20.1) is None


@pytest.mark.parametrize(("flops", "lowest"), [(9.9, math.inf), (10.0, 5.0), (15.0, 4.0), (25.0, 3.0), (99.0, 3.0)])
def test_the_lowest_loss_within_a_budget(flops: float, lowest: float) -> None:
    assert savings.lowest_within(curve([5.0, 3.0, 4.0], [10.0, 20.0, 30.0]), flops) == lowest


def test_noise_makes_two_crossings() -> None:
    noisy = curve([5.0, 3.0, 4.0, 2.0])
    assert savings.crossing(noisy, 3.5) == Cost(75.0, 7.5)
    assert savings.crossing(noisy, 3.5, for_good=True) == Cost(225.0, 22.5)
    assert savings.crossing(curve([5.0, 3.0, 4.0]), 3.5, for_good=True) is None


def test_a_loss_that_is_not_finite_is_above_every_target_and_no_line_comes_from_it() -> None:
    assert savings.crossing(curve([math.inf, 3.0]), 4.0) == Cost(100.0, 10.0)
    assert savings.crossing(curve([3.0, math.inf]), 4.0, for_good=True) is None


def test_of_two_evaluations_at_one_step_the_later_one_counts() -> None:
    points = [Point(1, Cost(10, 1), 5.0), Point(0, Cost(0, 0), 6.0), Point(1, Cost(10, 1), 4.0)]
    assert [point.loss for point in savings.make_curve(points)] == [6.0, 4.0]


def test_the_mean_curve_has_the_steps_that_all_have_and_the_ends_of_those_that_ended() -> None:
    curves = [curve([5.0, 3.0, 1.0]), curve([7.0, 4.0], [0.0, 300.0])]
    shared = (Point(0, Cost(0, 0), 6.0), Point(1, Cost(200, 20), 3.5))
    assert savings.mean_curve(curves, with_ends=False) == shared
    assert savings.mean_curve(curves)[:2] == shared
    assert [(p.cost.flops, p.loss) for p in savings.mean_curve(curves)[2:]] == [(250.0, 2.5)]
    assert savings.mean_curve([curves[0], curves[0]]) == curves[0]
    assert savings.mean_curve([]) == ()


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 5.0, 4.0, 9.0]])
def test_the_interval_is_students(values: list[float]) -> None:

    from scipy.stats import t

    found = interval(values)
    expected = t.interval(0.95, len(values) - 1, found.mean, _sem(values))
    assert found.ends == pytest.approx(expected)


def _sem(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def test_one_value_and_values_that_are_not_finite_have_no_interval() -> None:
    assert interval([2.0]) == Interval(2.0, None, 1)
    assert Interval(-0.0001, 0.0001, 3).format(3) == "0.000 ± 0.000"
    assert interval([2.0, math.inf]).ends is None


@pytest.mark.parametrize(("cost", "saved", "faster"), [(55, 0.45, 45 / 55), (100, 0, 0), (200, -1, -0.5)])
def test_saving_and_speedup_differ(cost: float, saved: float, faster: float) -> None:
    assert savings.saving(cost, 100) == pytest.approx(saved)
    assert savings.speedup(cost, 100) == pytest.approx(faster)
    assert savings.speedup(0, 100) == math.inf


@given(st.floats(0.5, 5), st.floats(0.1, 100), st.floats(0, 1))
def test_on_a_straight_curve_the_crossing_is_its_inverse(floor: float, slope: float, share: float) -> None:
    flops = [float(f) for f in range(1, 30)]
    line = curve([floor + slope * (30 - f) for f in flops], flops)
    target = floor + slope * (30 - (1 + 28 * share))
    cost = savings.crossing(line, target)
    assert cost is None or cost.flops == pytest.approx(1 + 28 * share)
    assert cost is not None or target < line[-1].loss


@given(curves(), LOSSES, st.floats(1e-3, 1e3))
def test_the_crossing_scales_with_the_flops(line: Curve, target: float, factor: float) -> None:
    scaled = tuple(Point(p.step, Cost(factor * p.cost.flops, p.cost.seconds), p.loss) for p in line)
    here, there = savings.crossing(line, target), savings.crossing(scaled, target)
    assert (here is None) == (there is None)
    if here and there:
        assert there.flops == pytest.approx(factor * here.flops)
        assert there.seconds == here.seconds


@given(curves(), LOSSES)
def test_the_crossing_is_measured_and_not_after_the_one_for_good(line: Curve, target: float) -> None:
    first, good = savings.crossing(line, target), savings.crossing(line, target, for_good=True)
    assert (first is None) == (min(p.loss for p in line) > target)
    assert (good is None) == (line[-1].loss > target)
    if first:
        assert line[0].cost.flops <= first.flops <= line[-1].cost.flops * (1 + 1e-12)
    if first and good:
        assert first.flops <= good.flops * (1 + 1e-12)


@given(curves(), LOSSES, LOSSES)
def test_a_lower_target_does_not_cost_less(line: Curve, one: float, other: float) -> None:
    low, high = savings.crossing(line, min(one, other)), savings.crossing(line, max(one, other))
    assert low is None or (high is not None and high.flops <= low.flops * (1 + 1e-12))


@given(curves(), st.floats(0, 1))
def test_the_loss_at_a_budget_is_between_its_neighbours(line: Curve, share: float) -> None:
    first, last = line[0].cost.flops, line[-1].cost.flops
    loss = savings.loss_at(line, min(first + share * (last - first), last))
    assert loss is not None
    assert min(p.loss for p in line) - 1e-9 <= loss <= max(p.loss for p in line) + 1e-9


@given(LOSSES, st.integers(2, 8))
def test_equal_seeds_have_an_interval_without_width(value: float, n: int) -> None:
    found = interval([value] * n)
    assert found.mean == pytest.approx(value)
    assert found.half == 0


@pytest.mark.parametrize("axis", ["flops", "seconds"])
def test_scratch_between_two_budgets_costs_what_its_logarithm_says(axis: str) -> None:
    rungs = curve([3.0, 1.0, 0.5], [100.0, 400.0, 800.0])
    unit = 1 if axis == "flops" else 10
    assert savings.scratch_cost(rungs, 2.0, axis) == pytest.approx(200 / unit)  # half of the way: sqrt(100 x 400)
    assert savings.scratch_cost(rungs, 1.0, axis) == pytest.approx(400 / unit)
    assert savings.scratch_cost(rungs, 3.1, axis) is savings.scratch_cost(rungs, 0.4, axis) is None


def test_scratch_on_a_power_law_costs_more_between_far_budgets_than_it_should_and_less_than_by_a_line() -> None:
    """loss = 1 + cost^-0.5 is convex in both; the line in the logarithm is nearer to it."""
    rungs = curve([1 + 0.01**0.5, 1 + 0.0025**0.5], [100.0, 400.0])
    loss = 1 + 200**-0.5
    by_line = savings.crossing(rungs, loss)
    found = savings.scratch_cost(rungs, loss, "flops")
    assert by_line is not None
    assert found is not None
    assert 200 < found < by_line.flops
