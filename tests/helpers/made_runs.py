"""Run directories with known curves, in the format of apollo-train."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from apollo_cli.run_directory import FORMAT

Evaluation = tuple[int, float, float, float | None]  # step, FLOPs, seconds, loss

CONFIG: dict[str, Any] = {
    "seed": 0,
    "name": "apollo",
    "device": "auto",
    "precision": "fp32",
    "model": {"kind": "gpt", "layers": 4},
    "sampler": {"kind": "lvps", "k": 2, "lower": 0.6, "overshoot": 0.4},
    "expander": {"kind": "interpolate", "mode": "nearest", "moments": "keep"},
    "init_from": {"path": None, "flops": None},
    "schedule": {"layers": [2, 4], "ends": [0.5, 1]},
    "data": {"kind": "pydocs", "seq_len": 16, "vocab_size": 300, "tokenizer": "auto", "cache_dir": None},
    "optim": {"lr": 0.001, "at_growth": "continue"},
    "budget": {"steps": 100, "tokens": None},
    "eval": {"every": 10, "rows": 4},
    "log": {"every": 10},
    "tracking": {"wandb": "disabled"},
}
SCRATCH: dict[str, Any] = {"schedule.layers": [4], "schedule.ends": [1], "sampler.kind": "full"}


def write_run(
    folder: Path,
    whole: Sequence[Evaluation],
    shallow: Sequence[Evaluation] = (),
    *,
    status: str | None = "completed",
    data: str = "f" * 64,
    evaluation_rows: int = 4,
    made_with: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Writes a run whose evaluations are `shallow` ones at 2 layers, then `whole` ones at all layers.

    Args:
        folder: made.
        whole: evaluations of the whole model; after shallow ones the first is the row after growth.
        shallow: evaluations at 2 layers; the last is the row before growth.
        status: None for a run without a summary.
        data: the fingerprint in the summary.
        evaluation_rows: in the summary.
        made_with: device, precision, git_commit and frequency_loss in the summary.
        overrides: keys of CONFIG with __ for the dot.
    """
    config = json.loads(json.dumps(CONFIG))
    for key, value in overrides.items():
        section, _, name = key.replace("__", ".").rpartition(".")
        (config[section] if section else config)[name] = value
    layers = config["model"]["layers"]
    rows = [_row(*evaluation, 2) for evaluation in shallow] + [_row(*evaluation, layers) for evaluation in whole]
    if shallow:
        for row in rows[len(shallow) - 1 : len(shallow) + 1]:
            row |= {"growth/from": 2, "growth/to": layers}
    training = [
        {key: value for key, value in row.items() if "/" not in key}
        | {"train/loss": row["eval/loss"], "train/grad_norm": 1.0}
        for row in rows
    ]
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for pair in zip(rows, training, strict=True) for row in pair)
    (folder / "metrics.jsonl").write_text(lines)
    stages = [{"layers": n, "depth_counts": {str(n): 10, str(layers): 30}} for n in config["schedule"]["layers"]]
    (folder / "plan.json").write_text(json.dumps({"steps": 100, "stages": stages}))
    if status:
        facts = {"fingerprint": data, "evaluation_rows": evaluation_rows}
        (folder / "summary.json").write_text(json.dumps({"status": status, "data": facts} | (made_with or {})))
    (folder / "config.yaml").write_text(yaml.safe_dump({"format": FORMAT, **config}))
    return folder


def scratch(folder: Path, whole: Sequence[Evaluation], **more: Any) -> Path:
    """Writes a run that trains all layers from the first step."""
    return write_run(folder, whole, **{key.replace(".", "__"): value for key, value in SCRATCH.items()}, **more)


def _row(step: int, flops: float, seconds: float, loss: float | None, layers: int) -> dict[str, Any]:
    columns = {"step": step, "flops": flops, "train_seconds": seconds, "layers": layers}
    return {**columns, "eval/loss": loss, "eval/loss_full_depth": loss}
