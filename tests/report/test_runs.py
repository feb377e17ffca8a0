import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.errors import DataError
from apollo_cli.report import runs as runs_module
from apollo_cli.report.runs import RunFiles, read_runs
from tests.helpers.made_runs import write_run

CURVE = [(0, 0, 0.0, 5.0), (10, 100, 1.0, 4.0)]


def test_directories_sweeps_and_globs_give_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for job in ("0", "1", "10"):
        write_run(tmp_path / "sweep" / job, CURVE)
    (tmp_path / "sweep" / "1.log").touch()
    (tmp_path / "link").symlink_to(tmp_path / "sweep" / "1")
    runs, notes = read_runs(["sweep", str(tmp_path / "sweep" / "0"), "link", "sw*/1*", "sw*/**"])
    assert [run.place for run in runs] == ["sweep/0", "sweep/1", "sweep/10"]
    assert notes == []


def test_links_are_followed_once_and_in_no_circle(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", CURVE)
    (tmp_path / "picked").mkdir()
    for name in ("a", "b"):
        (tmp_path / "picked" / name).symlink_to(tmp_path / "runs" / "0")
    (tmp_path / "picked" / "round").symlink_to(tmp_path / "picked")
    (tmp_path / "runs" / "up").symlink_to(tmp_path)
    assert [Path(run.place).name for run in read_runs([str(tmp_path / "picked")])[0]] == ["a"]
    assert len(read_runs([str(tmp_path)])[0]) == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs" / "0", CURVE)
    locked = tmp_path / "runs" / "locked"
    locked.mkdir()

    def scan(path: str) -> Any:
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(DataError, match="locked cannot be read: Permission denied"):
        read_runs([str(tmp_path)])


def test_runs_inside_runs_are_ignored(tmp_path: Path) -> None:
    write_run(tmp_path / "run", CURVE)
    write_run(tmp_path / "run" / "wandb" / "files", CURVE)
    assert len(read_runs([str(tmp_path)])[0]) == 1


def test_a_compact_run_is_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "plain", CURVE)
    write_run(tmp_path / "compact", CURVE, compact=True)
    one, other = read_runs([str(tmp_path / "plain"), str(tmp_path / "compact")])[0]
    assert one.rows == other.rows


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", CURVE, status=None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "fl')
    (run,) = read_runs([str(folder)])[0]
    assert (len(run.rows), run.status, run.data) == (4, "running", None)


def test_runs_without_rows_are_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path / "planned", CURVE)
    (tmp_path / "planned" / "metrics.jsonl").unlink()
    write_run(tmp_path / "begun", [])
    runs, notes = read_runs([str(tmp_path)])
    assert runs == []
    assert len(notes) == 1
    assert "begun" in notes[0]
    assert "planned" in notes[0]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{broken}", "line 2 is damaged"),
        ("[1]", "line 2 is damaged: it is no row"),
        ('{"step": 1, "flops": 1, "layers": 4}', "line 2 is damaged: train_seconds is None"),
        ('{"step": 1, "flops": 1, "layers": 4, "train_seconds": 0, "eval/loss": "x"}', "eval/loss is 'x'"),
        ("[" * 100_000, "line 2 is damaged"),
        ('{"step": 1, "flops": NaN, "layers": 4, "train_seconds": 0}', "flops is nan"),
        ('{"step": 1, "flops": 1, "layers": 4, "train_seconds": -1}', "train_seconds is -1"),
        ('{"step": 1, "flops": 1, "layers": 4, "train_seconds": 0, "eval/loss": 1' + "0" * 400 + "}", "401 digits"),
    ],
)
def test_a_damaged_line_is_named(line: str, what: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", CURVE)
    path = folder / "metrics.jsonl"
    first, _, rest = path.read_text().partition("\n")
    path.write_text(f"{first}\n{line}\n{rest}")
    with pytest.raises(DataError, match=r"metrics\.jsonl, ") as caught:
        read_runs([str(folder)])
    assert what in str(caught.value)


def test_a_compact_run_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", CURVE, compact=True)
    (folder / "metrics.jsonl.gz").write_bytes(gzip.compress(bytes(100_000)))
    monkeypatch.setattr(runs_module, "_MAX_BYTES", 50_000)
    with pytest.raises(DataError, match="it has more than 50000 bytes"):
        read_runs([str(folder)])


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    compact = write_run(tmp_path / "compact", CURVE, compact=True)
    (compact / "metrics.jsonl.gz").write_bytes(b"\x1f\x8bnothing")
    write_run(tmp_path / "config", CURVE, model__kind="t5", model__layers="x", schedule__layers=["x"])
    plan = write_run(tmp_path / "plan", CURVE)
    (plan / "plan.json").write_text(json.dumps({"stages": [{"layers": "x"}]}))
    summary = write_run(tmp_path / "summary", CURVE)
    (summary / "summary.json").write_text("{")
    with pytest.raises(DataError) as caught:
        read_runs([str(tmp_path), str(tmp_path / "nowhere"), str(tmp_path / "no*")])
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    for name in ("nowhere", "no*", "metrics.jsonl.gz", "plan.json", "summary.json", "bert or gpt", "whole number"):
        assert any(name in line for line in lines), name


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        _ = RunFiles(tmp_path).rows
