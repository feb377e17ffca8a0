import json
import os
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.compare import run
from apollo_cli.report.runs import read_rows, read_runs
from tests.helpers.made_runs import Evaluation, scratch, write_run

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
    runs, notes = read_runs([str(tmp_path)])
    assert len(runs) == 1
    assert len(notes) == 1
    assert notes[0].endswith("locked cannot be read: Permission denied")


def test_runs_inside_runs_are_ignored(tmp_path: Path) -> None:
    write_run(tmp_path / "run", CURVE)
    write_run(tmp_path / "run" / "wandb" / "files", CURVE)
    assert len(read_runs([str(tmp_path)])[0]) == 1


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
        ("{broken}", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ('{"step": 1, "flops": 1, "layers": 4}', "train_seconds: Field required"),
        ('{"step": 1, "flops": 1, "layers": 4, "train_seconds": 0, "eval/loss": "x"}', "eval/loss: "),
        ("[" * 100_000, "Invalid JSON"),
        ('{"step": 1, "flops": NaN, "layers": 4, "train_seconds": 0}', "flops: Input should be a finite number"),
        ('{"step": 1, "flops": 1, "layers": 4, "train_seconds": -1}', "train_seconds: "),
        ('{"step": 1, "flops": 1' + "0" * 400 + ', "layers": 4, "train_seconds": 0}', "flops: "),
        ("x" * 1_000_001, "it has no end"),
    ],
)
def test_a_run_with_a_damaged_line_is_left_out_and_the_line_named(line: str, what: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", CURVE)
    write_run(tmp_path / "sound", CURVE)
    path = folder / "metrics.jsonl"
    first, _, rest = path.read_text().partition("\n")
    path.write_text(f"{first}\n{line}\n{rest}")
    runs, notes = read_runs([str(tmp_path)])
    assert [Path(run.place).name for run in runs] == ["sound"]
    assert len(notes) == 1
    assert "metrics.jsonl, line 2 is damaged: " in notes[0]
    assert what in notes[0]


def test_each_thing_that_is_no_sound_run_is_named_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "sound", CURVE)
    write_run(tmp_path / "config", CURVE, model__kind="t5", model__layers="x", schedule__layers=["x"])
    for name, stage in {"plan": {"layers": "x"}, "depths": {"layers": 4, "depth_counts": {"200000": 1}}}.items():
        (write_run(tmp_path / name, CURVE) / "plan.json").write_text(json.dumps({"stages": [stage]}))
    for name, content in {"summary": b"{", "zeroed": bytes(400)}.items():
        (write_run(tmp_path / name, CURVE) / "summary.json").write_bytes(content)
    (write_run(tmp_path / "newer", CURVE) / "config.yaml").write_text("format: 999\n")
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "config.yaml").write_text("trainer:\n  max_steps: 5\n")
    (tmp_path / "stranger" / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path), str(tmp_path / "nowhere"), str(tmp_path / "no*"), str(tmp_path / "empty")]
    runs, notes = read_runs(words)
    assert [Path(run.place).name for run in runs] == ["sound"]
    assert len(notes) == 10
    assert all(note.startswith("left out: ") for note in notes)
    for name in (
        "nowhere",
        "no*",
        "empty'",
        "config/",
        "plan/",
        "depths/",
        "summary/",
        "zeroed/",
        "newer/",
        "stranger/",
    ):
        assert sum(name in note for note in notes) == 1, name


def test_names_and_keys_in_a_note_are_printable(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a\x1b[31m\nb", CURVE)
    (folder / "plan.json").write_text(json.dumps({"stages": [{"layers": 4, "depth_counts": {"\x1b[2J": 1}}]}))
    _, (note,) = read_runs([str(tmp_path)])
    assert note.isprintable()


def test_a_long_run_keeps_its_evaluations_and_the_rows_around_growths(tmp_path: Path) -> None:
    """The rows between are of no use to a comparison, and a million of them would fill the memory."""
    folder = write_run(tmp_path / "run", [])
    columns = {"flops": 1, "train_seconds": 1.0, "perf/tokens_per_second": 9.0}
    rows = [
        {"step": step, "layers": 2 if step <= 500 else 4, ("train/loss" if step % 100 else "eval/loss"): 3.0}
        | columns
        for step in range(1, 1001)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((run,), _) = read_runs([str(folder)])
    assert [row["step"] for row in run.evaluations] == list(range(100, 1001, 100))
    steps = [row["step"] for row in run.rows if "train/loss" in row]
    assert steps == [*range(1, 13), *range(488, 500), *range(501, 513), *range(988, 1000)]
    assert "perf/tokens_per_second" not in run.rows[-1]
    assert len(list(read_rows(folder / "metrics.jsonl"))) == 1000


def test_no_value_of_a_config_ends_the_report(tmp_path: Path) -> None:
    losses: list[Evaluation] = [(0, 0, 0.0, 9.0), (100, 100, 10.0, 2.0)]
    scratch(tmp_path / "long", [*losses, (400, 4000, 40.0, 1.0)], name="long")
    scratch(tmp_path / "short", losses, name="short", budget__steps=200)
    odd: list[dict[str, Any]] = [
        {"name": "list", "seed": [0]},
        {"name": "huge", "optim__lr": 10**400},
        {"name": "huge k", "sampler__k": 10**400},
        {"name": "bytes", "optim__lr": b"\xff"},
        {"name": {"a": b"\xff"}},
    ]
    for i, values in enumerate(odd):
        write_run(tmp_path / f"odd{i}", losses, **values)
    assert run([str(tmp_path), "--baseline", "long", "--out", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize("row", [{"step": 10**400}, {"flops": 1e300}, {"growth/from": 2}])
def test_no_row_ends_the_report(row: dict[str, Any], tmp_path: Path) -> None:
    scratch(tmp_path / "base", [(0, 0, 0.0, 9.0), (100, 100, 10.0, 2.0)], name="base")
    odd = write_run(tmp_path / "odd", [(0, 0, 0.0, 9.0), (100, 90, 9.0, 2.0)], name="odd")
    first, *others = (odd / "metrics.jsonl").read_text().splitlines()
    (odd / "metrics.jsonl").write_text("\n".join([json.dumps(json.loads(first) | row), *others]) + "\n")
    assert run([str(tmp_path), "--out", str(tmp_path / "report")]) == 0
