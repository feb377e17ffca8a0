import json
from pathlib import Path

import pytest

from apollo_cli.errors import CheckpointError
from apollo_cli.tracking.metrics_file import MetricsFile


def test_rows_are_on_disk_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1, "flops": 2**70})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "flops": 2**70}


def test_a_resumed_file_continues_at_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.append({"step": 1})
    kept = metrics.sync()
    for step in (2, 3):
        metrics.append({"step": step})
    metrics.close()
    path.write_bytes(path.read_bytes() + b'{"step": 4, "torn')
    resumed = MetricsFile(path, kept)
    assert resumed.dropped_rows == 2
    resumed.append({"step": 2})
    resumed.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_file_shorter_than_at_the_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match="has 3 bytes, but 10"):
        MetricsFile(tmp_path / "metrics.jsonl", 10)
