"""The report on speed, from made-up figures."""

import re
from typing import Any

import pytest

from benchmarks import render_speed, results_page
from benchmarks.cells import TUNED, ReproductionCell
from benchmarks.configs import plan_of


def test_on_a_gpu_each_width_is_beside_the_trainer_and_the_rate_of_the_device() -> None:
    def found(flops: float, **seconds: list[float]) -> dict[str, Any]:
        times = {name.replace("_", " "): values for name, values in seconds.items()} | {"dense": [0.5, 0.5, 0.5]}
        return {"device": "X", "tokens": 100, "flops": flops, "dense_flops": 100.0, "seconds": times}

    figures = {
        "gpt base": found(90.0, ours=[1.0, 1.0, 2.0], trainer=[2.0, 4.0, 4.0]),  # 2, 4, 2 times; 90, 90, 45 of 200
        "gpt nano": found(9.0, ours_graphs=[0.004] * 3, trainer=[0.006] * 3, trainer_compiled=[0.005] * 3),
    }
    lines = list(render_speed._gpu(figures))
    rows = [line for line in lines if line.startswith("| gpt")]
    assert rows == [
        "| gpt nano: ours, compile=graphs | 4.0 | 25000 [25000 - 25000] | 1.50 | 1.25 | 1125% | met: 5 ms |",
        "| gpt nano: HF Trainer | 6.0 | 16667 [16667 - 16667] | 1.00 | 0.83 | 750% |  |",
        "| gpt nano: HF Trainer compiled | 5.0 | 20000 [20000 - 20000] | 1.20 | 1.00 | 900% |  |",
        "| gpt base: ours | 1000.0 | 100 [50 - 100] | 2.00 |  | 45% | **not met:** MFU 55% |",
        "| gpt base: HF Trainer | 4000.0 | 25 [25 - 50] | 1.00 |  | 11% |  |",
    ]
    assert lines[0].startswith("X: bf16, 12 layers")


def test_peers_in_bf16_have_bars_of_their_own() -> None:
    seconds = {name: [1.0, 1.0] for name in ("plain", "square", "layer", "square bf16", "layer bf16")}
    seconds |= {"ours": [1.0, 1.0], "trainer": [1.4, 1.4], "ours bf16": [0.5, 0.5], "trainer bf16": [0.6, 0.6]}
    peaks = dict.fromkeys(seconds, 10**9) | {"trainer": 2 * 10**9}
    found = {"tokens": 10, "flops": 1e9, "flops_of": {"square": 2e9, "layer": 2e9}, "seconds": seconds}
    rows = [line for line in render_speed._peers({"gpt nano": found | {"peak_bytes": peaks}}) if ": ours" in line]
    assert rows == [
        "| gpt nano: ours | 10 [10 - 10] | 1.40 | 0.60 | 1 GFLOP/s | 50% | 50% | 1.00 GB | 0.50 | "
        "met: 1.35, met: 0.6 |",
        "| gpt nano: ours bf16 | 20 [20 - 20] | 2.80 | 1.20 | 2 GFLOP/s | 100% | 100% | 1.00 GB | 1.00 | "
        "met: 1.9, **not met:** 1.35, **not met:** 0.6 |",
    ]


def test_sections_without_new_figures_are_kept(no_results: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = ["## The start", "", "| x |", "", "## Text to rows", "", "old", "", "## On a GPU", "y"]
    results_page.put("How fast", ["first", "", *sections])
    results_page.put("Other", ["## The start", "of another"], results_page.page_of("How fast"))
    monkeypatch.setitem(render_speed.__dict__, "_data", lambda figures: [figures])
    render_speed.write({"data": "new"})
    text = results_page.page_of("How fast").read_text(encoding="utf-8")
    kept, new, other = (
        "## The start\n\n| x |\n\n",
        r"## Text to rows\n\n.*, fp32\.\n\nnew\n\n",
        "## On a GPU\ny\n\n# Other",
    )
    assert re.search(re.escape(kept) + new + re.escape(other), text), text


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_seconds_that_are_as_flops_are_saved_as_flops(kind: str) -> None:
    """What a step takes at no depth beyond its FLOPs lowers the seconds that are saved."""
    cost = plan_of(list(ReproductionCell(kind, "scratch", TUNED[kind, "scratch"], 0).words)).step_cost
    base, first = (cost.flops(depth, 0) for depth in (0, 1))
    times = {(n, d): base + (first - base) * d for n in (3, 6, 12) for d in range(n, 13)}
    (as_flops,) = render_speed._expected(kind, times, base / (first - base))
    assert as_flops.endswith("would be `apollo_late` 1.00, `late_zero_init` 1.00.")
    slower = {key: time + 0.5 * (first - base) for key, time in times.items()}
    (more,) = render_speed._expected(kind, slower, 0.5)
    ratios = [float(word) for word in re.findall(r"` (\d\.\d\d)", more)]
    assert all(0.8 < ratio < 0.97 for ratio in ratios)
