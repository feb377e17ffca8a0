import csv
import json
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.config.training import TrackingArgs
from apollo_cli.tracking.tracker import Row
from apollo_cli.tracking.writers import open_writers

ROWS: list[dict[str, Any]] = [
    {"step": 3, "flops": 30, "train/loss": 2.5},
    {"step": 5, "flops": 10**21, "eval/loss": None},
    {"step": 5, "flops": 10**21, "eval/loss": 2.25},
]


def _tracking(**more: Any) -> TrackingArgs:
    return TrackingArgs.model_validate({"wandb": "disabled", "project": None, "timeout": 1.0, **more})


def test_nothing_is_written_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert open_writers(_tracking(), tmp_path, 0) == []


def test_the_table_has_every_row_and_every_column(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    (writer,) = open_writers(_tracking(csv=True), tmp_path, 0)
    writer.row(ROWS[0])
    writer.close("interrupted", {})
    header, *lines = csv.reader((tmp_path / "metrics.csv").read_text().splitlines())
    assert header == ["step", "flops", "train/loss", "eval/loss"]
    assert lines == [["3", "30", "2.5", ""], ["5", str(10**21), "", ""], ["5", str(10**21), "", "2.25"]]


def test_tensorboard_reads_the_curves_and_a_resumed_run_replaces_what_it_computes_again(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    later: list[Row] = [{"step": 5, "flops": 7, "eval/loss": 2.0}, {"step": 6, "flops": 8}]
    for start, before, rows in ((0, [], ROWS), (5, ROWS[:2], later)):  # the checkpoint of step 5 has two rows
        (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in before))
        (writer,) = open_writers(_tracking(tensorboard=True), tmp_path, start)
        for row in rows:
            writer.row(row)
        writer.close("completed", {})
    curves = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [(event.step, event.value) for event in curves.Scalars("eval/loss")] == [(5, 2.0)]
    values = [(event.step, event.value) for event in curves.Scalars("flops")]
    assert values == [(3, 30.0), (5, pytest.approx(1e21)), (5, 7.0), (6, 8.0)]
    assert "step" not in curves.Tags()["scalars"]
