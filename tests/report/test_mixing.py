"""The gap and its time constant, by hand-worked numbers."""

import math
from pathlib import Path

import pytest

from apollo_cli.report import plots
from apollo_cli.report.comparison import Question, compare
from apollo_cli.report.document import write_report
from apollo_cli.report.groups import families
from apollo_cli.report.mixing import mixing_table, mixings, open_gap, time_constant
from apollo_cli.report.runs import read_runs
from tests.helpers.made_runs import Evaluation, scratch, write_run


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


def test_each_growth_with_references_has_its_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gap is 1 nat at first; the grown model is half of it above the shallow one, then closes it."""
    steps = (100, 200, 300)
    deep: list[Evaluation] = [
        (step, 4.0 * step, 0.0, loss) for step, loss in zip(steps, (4.0, 3.0, 2.0), strict=True)
    ]
    flat: list[Evaluation] = [
        (step, 2.0 * step, 0.0, loss) for step, loss in zip(steps, (5.0, 4.5, 4.0), strict=True)
    ]
    scratch(tmp_path / "deep", deep, name="deep")
    write_run(tmp_path / "flat", flat, name="flat", model__layers=2, schedule__layers=[2])
    grown: list[Evaluation] = [(100, 200.0, 0.0, 5.5), (200, 600.0, 0.0, 3.75), (300, 1000.0, 0.0, 2.5)]
    write_run(tmp_path / "grown", grown, [(100, 200.0, 0.0, 5.0)], name="grown")
    begun = scratch(tmp_path / "begun", [(1, 1.0, 0.0, 9.0)], name="begun", optim__lr=1, status=None)
    rows = (begun / "metrics.jsonl").read_text().splitlines(keepends=True)
    (begun / "metrics.jsonl").write_text(rows[1])  # a training row, no evaluation yet
    runs, _ = read_runs([str(tmp_path)])
    (comparison,) = compare(families(runs)[0], Question(baseline="deep"))
    (found,) = mixings(comparison)
    assert (found.label, found.before, found.after, found.nats) == ("grown", 2, 4, 1.0)
    assert found.gap == {0: 1.5, 100: 0.5, 200: 0.25}
    monkeypatch.setattr(plots, "draw_comparison", lambda comparison: [])
    write_report(tmp_path / "report", [comparison], [], ["apollo-compare"])
    assert "### How the new layers mixed" in (tmp_path / "report" / "report.md").read_text()
    (row,) = mixing_table([found]).rows
    # logarithms 0.405, -0.693, -1.386 at 0, 100, 200: the slope is -0.008959 a step
    assert row == ["grown: 2 to 4", "1.000", "150%", "50% (100)", "50% (100)", "25% (200)", "112"]


@pytest.mark.parametrize("steps", [200, 400])
def test_a_reference_of_another_length_is_none(steps: int, tmp_path: Path) -> None:
    """Its learning rate has another course."""
    scratch(tmp_path / "deep", [(100, 400.0, 0.0, 4.0), (steps, 4.0 * steps, 0.0, 3.0)], name="deep")
    write_run(
        tmp_path / "flat",
        [(100, 1.0, 0.0, 5.0), (300, 2.0, 0.0, 4.0)],
        name="flat",
        model__layers=2,
        schedule__layers=[2],
    )
    write_run(
        tmp_path / "grown", [(100, 9.0, 0.0, 5.0), (300, 99.0, 0.0, 4.0)], [(100, 9.0, 0.0, 5.0)], name="grown"
    )
    runs, _ = read_runs([str(tmp_path)])
    (comparison,) = compare(families(runs)[0], Question(baseline="deep"))
    assert not list(mixings(comparison))


def test_a_gap_that_opens_late_says_when(tmp_path: Path) -> None:
    """The deep model is behind the shallow one at the growth, and ahead of it 100 steps later."""

    def curve(*losses: float) -> list[Evaluation]:
        return [(100 * i, 100.0 * i, 0.0, loss) for i, loss in enumerate(losses, 1)]

    scratch(tmp_path / "deep", curve(6.0, 3.0, 2.0), name="deep")
    write_run(tmp_path / "flat", curve(5.0, 4.5, 4.0), name="flat", model__layers=2, schedule__layers=[2])
    write_run(tmp_path / "grown", curve(5.5, 3.75, 2.5), curve(5.0), name="grown")
    (comparison,) = compare(families(read_runs([str(tmp_path)])[0])[0], Question(baseline="deep"))
    (row,) = mixing_table(list(mixings(comparison))).rows
    assert row[1:3] == ["1.500 (100)", "50% (100)"]
