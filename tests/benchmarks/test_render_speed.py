"""The report on speed, from made-up figures."""

import re
from typing import Any

import pytest

from benchmarks import render_speed, results_page


def test_on_a_gpu_each_width_is_beside_the_trainer_and_the_rate_of_the_device() -> None:
    def found(flops: float, ours: list[float], theirs: list[float]) -> dict[str, Any]:
        seconds = {"ours": ours, "trainer": theirs, "dense": [0.5, 0.5, 0.5]}
        return {"device": "X", "tokens": 100, "flops": flops, "dense_flops": 100.0, "seconds": seconds}

    figures = {
        "gpt base": found(90.0, [1.0, 1.0, 2.0], [2.0, 4.0, 4.0]),  # 2, 4, 2 times; 90, 90, 45 FLOP/s of 200
        "gpt nano": found(9.0, [1.0, 1.0, 1.0], [1.5, 1.5, 1.5]),
    }
    lines = list(render_speed._gpu(figures))
    rows = [line for line in lines if line.startswith("| gpt")]
    assert rows == [
        "| gpt nano | 1000 | 100 [100 - 100] | 1.50 | 4% | 3% |  |",
        "| gpt base | 1000 | 100 [50 - 100] | 2.00 | 45% | 11% | met: 45% |",
    ]
    assert lines[0].startswith("X: bf16, 12 layers")


def test_sections_without_new_figures_are_kept(no_results: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = ["## The start", "", "| x |", "", "## Text to rows", "", "old", "", "## On a GPU", "y"]
    results_page.put("How fast", ["first", "", *sections])
    results_page.put("Other", ["## The start", "of another"])
    monkeypatch.setitem(render_speed.__dict__, "_data", lambda figures: [figures])
    render_speed.write({"data": "new"})
    text = results_page.PAGE.read_text(encoding="utf-8")
    kept, new, other = (
        "## The start\n\n| x |\n\n",
        r"## Text to rows\n\n.*, fp32\.\n\nnew\n\n",
        "## On a GPU\ny\n\n# Other",
    )
    assert re.search(re.escape(kept) + new + re.escape(other), text), text
