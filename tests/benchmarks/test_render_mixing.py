"""The gap and its time constant, by hand-worked numbers."""

import math

import pytest

from benchmarks.render_mixing import open_gap, spread, time_constant


def test_the_gap_is_one_at_the_shallow_and_zero_at_the_deep_model() -> None:
    shallow, deep = {0: 2.0, 250: 1.9, 500: 1.8}, {0: 1.9, 250: 1.7, 500: 1.5, 750: 1.4}
    assert open_gap(shallow, shallow, deep) == {0: 1, 250: 1, 500: 1}
    assert open_gap(deep, shallow, deep) == {0: 0, 250: 0, 500: 0}
    # a jump of half the gap above the shallow model; a quarter of 0.2; 0.06 of 0.3 below the deep one
    grown = {0: 2.05, 125: 1.9, 250: 1.75, 500: 1.44}
    assert open_gap(grown, shallow, deep) == pytest.approx({0: 1.5, 250: 0.25, 500: -0.2})


def test_where_the_deep_model_is_not_ahead_there_is_no_gap() -> None:
    assert open_gap({0: 2.0, 250: 1.9}, {0: 2.0, 250: 1.9}, {0: 2.1, 250: 1.8}) == {250: 1}


def test_a_gap_that_halves_in_500_steps_has_a_time_constant_of_721() -> None:
    """500 / ln 2 = 721.35; the height at which it starts does not matter."""
    assert time_constant({0: 5.0, 250: 0.5, 750: 0.25}, 250) == pytest.approx(721.35, abs=0.01)
    decay = {step: 0.8 * math.exp(-step / 1000) for step in range(0, 1501, 125)}
    assert time_constant(decay, 250) == pytest.approx(1000)


def test_the_time_constant_is_a_least_squares_slope() -> None:
    """Logarithms 0, -1, -1 at 0, 100, 200: the slope is -100 / 20,000, so tc is 200."""
    assert time_constant({0: 1.0, 100: math.exp(-1), 200: math.exp(-1)}, 0) == pytest.approx(200)


@pytest.mark.parametrize("gap", [{250: 0.5, 500: 0.6}, {250: 0.5}, {250: 0.5, 500: 0.2, 750: -0.1}, {}])
def test_a_gap_that_does_not_close_or_has_closed_has_no_time_constant(gap: dict[int, float]) -> None:
    assert time_constant(gap, 250) is None


def test_labels_that_are_too_close_are_moved_up() -> None:
    assert spread([0.0, 0.1, 0.5], 0.25) == [0.0, 0.25, 0.5]
