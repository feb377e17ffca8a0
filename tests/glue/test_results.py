"""What runs give together, from made-up summaries."""

import json
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.errors import CheckpointError
from apollo_cli.glue.results import collect


def summary_of(lr: float, seed: int, score: float, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "completed", "task": "rte", "lr": lr, "seed": seed, "pretrained": {}, "data": data,
        "losses": {"eval/score": score, "eval/accuracy": score},
        "totals": {"flops": 1, "train_seconds": 1.0}, "device": "cpu", "precision": "fp32",
    }  # fmt: skip


@pytest.mark.parametrize("key", ["seed", "lr", "pretrained", "losses", "totals"])
def test_a_damaged_summary_is_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "rte" / "lr0.001_seed0" / "summary.json"
    path.parent.mkdir(parents=True)
    summary = summary_of(1e-3, 0, 0.5, {})
    damaged = {name: value for name, value in summary.items() if name != key}
    if key == "losses":
        damaged[key] = {"eval/score": None}
    path.write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is damaged: it is not the summary of a fine-tuning run"):
        collect(tmp_path)


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
        summary = summary_of(lr, seed, score, data)
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    found = collect(tmp_path)["tasks"]["rte"]
    assert found["rate"] == rate
    assert found["rates"] == sorted({lr for lr, _ in scores})
    assert found["data"] == data
    of_rate = [score for (lr, _), score in scores.items() if lr == rate]
    assert found["mean"] == pytest.approx(sum(of_rate) / len(of_rate))
    assert found["best"] == max(scores.values())
