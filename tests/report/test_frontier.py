"""The picture of savings at equal final loss."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Annotation

from apollo_cli.report.comparison import Question, compare_runs
from apollo_cli.report.frontier import Ended, draw_frontier, frontier_of
from apollo_cli.report.runs import read_runs
from apollo_cli.report.savings import Cost, Point, make_curve
from apollo_cli.report.style import looks
from tests.helpers.made_runs import Evaluation, scratch, write_run


def point(step: int, flops: float, loss: float) -> Point:
    return Point(step, Cost(flops, flops / 10), loss)


def test_an_arrow_ends_at_the_scratch_run_of_equal_loss_and_the_label_has_the_saving() -> None:
    scratch = [
        make_curve([point(1, 100, 3.0 + d), point(2, 200, 2.0 + d), point(3, 400, 1.0 + d)]) for d in (0, 0.2)
    ]
    look = looks(["half", "dear", "far", "beyond"])
    methods = [
        Ended(look["half"], (point(9, 75, 2.0), point(9, 85, 2.2)), (0.625, 0.575)),
        Ended(look["dear"], (point(9, 300, 2.1),), (-0.5,)),
        Ended(look["far"], (point(9, 90, 9.0),), (None,)),
        Ended(look["beyond"], (point(9, 390, 0.9),), (None,)),
    ]
    axes = draw_frontier(scratch, methods, "flops").axes[0]
    texts = {text.get_text().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ") for text in axes.texts}
    # mean loss 2.1 is that of scratch, on average, after 200 FLOPs; the unit is 1e2
    arrows = [(text.xyann, text.xy) for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    assert any(start == pytest.approx((0.8, 2.1)) and end == pytest.approx((2.0, 2.1)) for start, end in arrows)
    assert {"half \N{MINUS SIGN}60.0 ± 31.8 %", "dear +50.0 %", "beyond"} <= texts  # t(0.975, 1) x 0.025
    assert "far \N{UPWARDS ARROW} 9.00" in texts


def test_it_is_drawn_where_scratch_has_several_budgets(tmp_path: Path) -> None:
    def texts() -> list[str]:
        runs, left_out = read_runs([str(tmp_path)])
        (comparison,) = compare_runs(runs, left_out, Question(baseline="long"))[0]
        figure = frontier_of(comparison, "flops")
        return (
            [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in figure.axes[0].texts] if figure else []
        )

    scratch(tmp_path / "long", [(0, 0, 0.0, 9.0), (400, 4000, 40.0, 1.0)], name="long", budget__steps=400)
    write_run(tmp_path / "grown", [(50, 100, 1.0, 5.0), (100, 1000, 10.0, 2.0)], name="grown")
    assert texts() == []
    scratch(tmp_path / "short", [(0, 0, 0.0, 9.0), (200, 2000, 20.0, 2.0)], name="short", budget__steps=200)
    scratch(tmp_path / "worse", [(0, 0, 0.0, 9.0), (200, 2000, 20.0, 8.0)], name="worse", optim__lr=1.0)
    assert "grown \N{MINUS SIGN}50.0 %" in texts()  # 1000 FLOPs instead of the 2000 of the better short run
    scratch(tmp_path / "lost", [(0, 0, 0.0, 9.0), (250, 2500, 25.0, None)], name="lost", budget__steps=250)
    assert "grown \N{MINUS SIGN}50.0 %" in texts()  # a run without a finite loss at its end is no part of the line
    shallow: dict[str, Any] = {"model__layers": 2, "schedule__layers": [2], "schedule__ends": [1]}
    losses: list[Evaluation] = [(0, 0, 0.0, 9.0), (300, 900, 9.0, 1.5)]
    write_run(tmp_path / "shallow", [], losses, name="shallow", sampler__kind="full", **shallow)
    assert "grown \N{MINUS SIGN}50.0 %" in texts()  # not on the way of a shallower model
    for key, value in (("hidden", 128), ("norm", "pre"), ("parametrization", "completep")):
        other: dict[str, Any] = {f"model__{key}": value}
        losses = [(0, 0, 0.0, 9.0), (400, 9000, 90.0, 0.5)]
        scratch(tmp_path / key, losses, name=key, budget__steps=400, **other)
        assert "grown \N{MINUS SIGN}50.0 %" in texts(), key  # nor of a model with other layers
    scratch(tmp_path / "strange", [(0, 0, 0.0, 9.0), (400, 9000, 90.0, 0.5)], name="strange", model__heads=[4])
    assert "grown \N{MINUS SIGN}50.0 %" in texts()  # nor where a stranger's config has a list for a size
    for steps, flops in ((300, 3000), (500, 5000)):  # of another seed, without a budget of the first one's
        losses = [(0, 0, 0.0, 9.0), (steps, flops, 30.0, 1.5)]
        scratch(tmp_path / f"other{steps}", losses, name=f"other{steps}", seed=1, budget__steps=steps)
    assert texts() == []
