import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from apollo_cli import sample
from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.errors import CheckpointError, ConfigError
from apollo_cli.glue import command as glue
from apollo_cli.run_directory import FORMAT, RunDirectory, as_saved, read_keys
from apollo_cli.train import run


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_what_is_claimed_is_read_back(directory: RunDirectory) -> None:
    config = {"seed": 3, "data": {"kind": "pydocs"}}
    directory.claim(config, {"steps": 12})
    assert directory.is_claimed
    assert directory.config() == config
    assert directory.planned_steps() == 12
    assert directory.summary() == {"status": "running"}


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "checkpoints", "model"])
def test_a_directory_with_a_run_is_not_claimed(name: str, directory: RunDirectory) -> None:
    (directory.path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"has a {name} already.*resume="):
        directory.claim({}, {})
    assert [p.name for p in directory.path.iterdir()] == [name]


def test_a_run_that_is_not_claimed_is_continued_by_what_is_said_unless_it_is_complete(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "my run")
    directory.path.mkdir()
    directory.config_file.write_text("format: 1")
    with pytest.raises(ConfigError, match=r"or type 'resume=.*/my run' to continue that run"):
        directory.claim({}, {})
    directory.summary_file.write_text('{"status": "completed"}')
    with pytest.raises(ConfigError, match=r"choose another directory$"):
        directory.claim({}, {})


def test_an_interrupted_claim_is_repeated(directory: RunDirectory) -> None:
    """Killed between the two files: config.yaml, which comes last, makes it a run directory."""
    (directory.path / "plan.json").write_text('{"steps": 1}')
    (directory.path / ".config.yaml.tmp").write_text("see")
    directory.claim({"seed": 1}, {"steps": 2})
    assert directory.planned_steps() == 2


def test_unclaim_leaves_nothing(directory: RunDirectory) -> None:
    with directory.owned():
        directory.claim({}, {})
        directory.unclaim()
    assert list(directory.path.iterdir()) == []


def _hold(directory: RunDirectory) -> subprocess.Popen[str]:
    """Another process that owns the directory until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from apollo_cli.run_directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).owned():\n print('mine', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(directory.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


@pytest.mark.parametrize(
    "command", ["apollo-train resume=", "apollo-sample prompt=a run=", "apollo-glue task=cola run="]
)
def test_a_folder_of_runs_is_refused_with_the_newest_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("2026-01-02", "2026-01-01"):
        RunDirectory(Path("outputs", name)).path.mkdir(parents=True)
        RunDirectory(Path("outputs", name)).write_config({})
    name, *words = f"{command}outputs".split()
    assert {"apollo-train": run, "apollo-sample": sample.run, "apollo-glue": glue.run}[name](words) == 2
    assert "outputs: not a run directory (no config.yaml in it); the newest run in it is outputs/2026-01-02" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_a_second_process_is_refused_with_the_id_of_the_first(directory: RunDirectory) -> None:
    process = _hold(directory)
    try:
        said = rf"in use by process {process.pid} on \S+; stop that one"
        with pytest.raises(CheckpointError, match=said), directory.owned():
            pytest.fail("two owners")
        assert run([f"resume={directory.path}"]) == 2  # it is not a run directory, either
    finally:
        process.kill()
        process.wait()
    with directory.owned():  # the dead let go
        assert str(os.getpid()) in (directory.path / ".lock").read_text()
    assert not (directory.path / ".lock").exists()


def test_deleting_the_lock_file_does_not_unlock(directory: RunDirectory) -> None:
    process = _hold(directory)
    try:
        (directory.path / ".lock").unlink()
        with pytest.raises(CheckpointError, match="in use by another process"), directory.owned():
            pytest.fail("two owners")
        assert list(directory.path.iterdir()) == []
    finally:
        process.kill()
        process.wait()
    with directory.owned():
        assert (directory.path / ".lock").exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_disk_without_locks_of_folders_is_used(
    code: int, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, _: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with directory.owned():
        assert (directory.path / ".lock").exists()


def test_two_processes_do_not_resume_one_run(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", f"hydra.run.dir={tmp_path}/run"]) == 0
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("plan: true", "plan: false"))  # as if killed before its first step
    process = _hold(RunDirectory(tmp_path / "run"))
    try:
        assert run([f"resume={tmp_path}/run"]) == 2
    finally:
        process.kill()
        process.wait()
    assert f"process {process.pid} on " in capsys.readouterr().err
    assert run([f"resume={tmp_path}/run"]) == 0


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            FORMAT + 1,
            f"a newer apollo-train wrote this run \\(format {FORMAT + 1}, ",
        ),
        (None, "is damaged: format is None"),
        (0, "is damaged: format is 0"),
        ("two", "is damaged: format is 'two'"),
        (True, "is damaged: format is True"),
    ],
)
def test_other_formats_are_refused_with_one_sentence(written: Any, said: str, directory: RunDirectory) -> None:
    directory.config_file.write_text(
        yaml.safe_dump({"seed": 1} | ({"format": written} if written is not None else {}))
    )
    with pytest.raises(CheckpointError, match=said):
        directory.config()


@pytest.mark.parametrize("steps", ['"many"', "null", "1.5", "true", "0", "-3"])
def test_a_plan_without_a_number_of_steps_is_damaged(steps: str, directory: RunDirectory) -> None:
    directory.plan_file.write_text(f'{{"steps": {steps}}}')
    with pytest.raises(CheckpointError, match=r"plan\.json is damaged"):
        directory.planned_steps()


def test_a_damaged_summary_is_named(directory: RunDirectory) -> None:
    directory.summary_file.write_text(json.dumps(["completed"]))
    with pytest.raises(CheckpointError, match=r"summary\.json is damaged"):
        directory.summary()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1, 2]\nb: *x\n", "it has YAML aliases"),
        ("a: " + 60 * "[" + 60 * "]", "it is nested too deeply"),
        (60 * "- " + "1", "it is nested too deeply"),
        (
            "a: " + 100_000 * "[",
            "line 1: exceeded maximum nesting depth|it is nested too deeply",
        ),  # with libyaml, without
        ("a: !!python/object/apply:os.getcwd []", "line 1: could not determine a constructor"),
    ],
)
def test_yaml_that_no_run_writes_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=f"config.yaml is damaged: .*({said})"):
        read_keys(tmp_path / "config.yaml")


def test_a_config_is_read_as_pyyaml_reads_it(tmp_path: Path) -> None:
    for path in conf_folder().rglob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {"empty": None}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        assert read_keys(tmp_path / "config.yaml") == as_saved(values) == values
