"""The picture of savings at equal final loss."""

import pytest
from matplotlib.text import Annotation

from apollo_cli.report.frontier import Ended, draw_frontier
from apollo_cli.report.savings import Cost, Point, make_curve


def point(step: int, flops: float, loss: float) -> Point:
    return Point(step, Cost(flops, flops / 10), loss)


def test_an_arrow_ends_at_the_scratch_run_of_equal_loss_and_the_label_has_the_saving() -> None:
    scratch = [
        make_curve([point(1, 100, 3.0 + d), point(2, 200, 2.0 + d), point(3, 400, 1.0 + d)]) for d in (0, 0.2)
    ]
    methods = [
        Ended("half", (point(9, 75, 2.0), point(9, 85, 2.2)), (0.625, 0.575)),
        Ended("dear", (point(9, 300, 2.1),), (-0.5,)),
        Ended("far", (point(9, 90, 9.0),), (None,)),
        Ended("beyond", (point(9, 390, 0.9),), (None,)),
    ]
    axes = draw_frontier(scratch, methods, "flops").axes[0]
    texts = {text.get_text(): text for text in axes.texts}
    # mean loss 2.1 is that of scratch, on average, after 200 FLOPs; the unit is 1e2
    arrows = [(text.xyann, text.xy) for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    assert any(start == pytest.approx((0.8, 2.1)) and end == pytest.approx((2.0, 2.1)) for start, end in arrows)
    assert "half \N{MINUS SIGN}60.0 ± 31.8 %" in texts  # t(0.975, 1) x 0.025
    assert texts["dear +50.0 %"].get_horizontalalignment() == "left"
    assert "above this picture: far" in texts
    assert "beyond" in texts
