"""The page of figures, from made-up ones."""

from typing import Any

from benchmarks import report


def test_a_gpu_is_shown_by_width_beside_the_trainer_and_its_own_rate() -> None:
    def found(flops: float, ours: list[float], theirs: list[float]) -> dict[str, Any]:
        seconds = {"ours": ours, "trainer": theirs, "dense": [0.5, 0.5, 0.5]}
        return {"device": "X", "tokens": 100, "flops": flops, "dense_flops": 100.0, "seconds": seconds}

    figures = {
        "gpt base": found(90.0, [1.0, 1.0, 2.0], [2.0, 4.0, 4.0]),  # 2, 4, 2 times; 90, 90, 45 FLOP/s of 200
        "gpt nano": found(9.0, [1.0, 1.0, 1.0], [1.5, 1.5, 1.5]),
    }
    lines = list(report._gpu(figures))
    rows = [line for line in lines if line.startswith("| gpt")]
    assert rows == [
        "| gpt nano | 1000 | 100 [100 - 100] | 1.50 | 4% | 3% |  |",
        "| gpt base | 1000 | 100 [50 - 100] | 2.00 | 45% | 11% | met: 45% |",
    ]
    assert lines[0].startswith("X: bf16, 12 layers")
