"""What runs give together, from made-up summaries."""

import json
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.glue.results import collect


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ({(1e-3, 0): 0.5, (2e-5, 0): 0.5, (1e-4, 0): 0.4}, 2e-5),  # equal ones
        ({(1e-3, 0): 0.5, (1e-3, 1): 0.5, (1e-4, 0): 0.9}, 1e-3),  # one seed beside two
        ({(1e-3, 0): 0.5, (1e-3, 1): 0.5, (1e-4, 0): 0.9, (1e-4, 1): 0.2}, 1e-4),
    ],
)
def test_the_best_mean_of_the_most_seeds_counts(
    scores: dict[tuple[float, int], float], rate: float, tmp_path: Path
) -> None:
    data = {"fingerprint": "abc", "training_rows": 7}
    for (lr, seed), score in scores.items():
        folder = tmp_path / "rte" / f"lr{lr:g}_seed{seed}"
        folder.mkdir(parents=True)
        summary: dict[str, Any] = {
            "status": "completed", "task": "rte", "lr": lr, "seed": seed, "pretrained": {}, "data": data,
            "losses": {"eval/score": score, "eval/accuracy": score},
            "totals": {"flops": 1, "train_seconds": 1.0}, "device": "cpu", "precision": "fp32",
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    found = collect(tmp_path)["tasks"]["rte"]
    assert found["rate"] == rate
    assert found["rates"] == sorted({lr for lr, _ in scores})
    assert found["data"] == data
    of_rate = [score for (lr, _), score in scores.items() if lr == rate]
    assert found["mean"] == pytest.approx(sum(of_rate) / len(of_rate))
    assert found["best"] == max(scores.values())
