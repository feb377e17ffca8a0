"""Disks that are full, read-only or removed: the last good state survives, and one message says why."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from apollo_cli.train import run
from tests.conftest import TINY, read_rows
from tests.faults.test_kill import Ending, ending

WORDS = (*TINY, "log.every=1", "checkpoint.every=2")
COMMAND = f"{sys.executable} -m apollo_cli.train"


def _can_mount() -> bool:
    """Whether this user may mount a private disk."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not _can_mount(), reason="user namespaces with mounts are not to be had here")


@dataclass
class Stopped:
    """How a command on a small disk ended, and a copy of the disk."""

    code: int
    said: str
    folder: Path


def on_small_disk(folder: Path, kilobytes: int, *words: str) -> Stopped:
    """Runs the command in `folder`, a disk of that size, and copies the disk to `folder`.out."""
    folder.mkdir()
    out = folder.with_name(f"{folder.name}.out")
    script = (
        f"mount -t tmpfs -o size={kilobytes}k none {folder} && cd {folder} && "
        f'{COMMAND} "$@" ; code=$?; cd /; cp -a {folder} {out}; exit $code'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *words],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return Stopped(done.returncode, done.stderr, out)


def check_and_go_on(stopped: Stopped, expected: Ending) -> None:
    """The command ended with one message; with more space the run ends like an undisturbed one."""
    assert stopped.code in (0, 2), stopped.said
    assert "Traceback" not in stopped.said
    run_dir = stopped.folder / "run"
    if stopped.code == 2:
        assert len(stopped.said.splitlines()) == 1
        assert "the disk is full" in stopped.said or "No space left" in stopped.said
        assert "run" in stopped.said
        assert not list(run_dir.rglob("*.tmp"))
    if (run_dir / "config.yaml").exists():
        if stopped.code == 2:
            assert run([f"resume={run_dir}"]) == 0
        assert ending(run_dir) == expected


@pytest.fixture(scope="module")
def words(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    cache = tmp_path_factory.mktemp("cache")
    return (*WORDS, f"data.files=[{corpus_file}]", f"data.cache_dir={cache}")


@pytest.fixture(scope="module")
def undisturbed(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Ending:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run([*words, f"hydra.run.dir={folder}"]) == 0
    return ending(folder)


@needs_mount
def test_a_full_disk_leaves_the_last_checkpoint_and_names_the_space(
    words: tuple[str, ...], undisturbed: Ending, tmp_path: Path
) -> None:
    """One checkpoint of the last stage fits, two do not."""
    stopped = on_small_disk(tmp_path / "disk", 330, *words, "hydra.run.dir=run")
    assert stopped.code == 2
    assert "run/checkpoints/step_" in stopped.said
    assert "kB are needed and" in stopped.said
    assert "apollo-train resume=run" in stopped.said
    check_and_go_on(stopped, undisturbed)


@pytest.mark.faults
@needs_mount
def test_disks_of_every_size(
    words: tuple[str, ...], undisturbed: Ending, tmp_path: Path, record_count: Callable[[str], None]
) -> None:
    """From a disk that holds nothing to one that holds all, so that each kind of write fails once."""
    rng = random.Random(0)
    sizes = [4, 8, 12, 16, 20, 24, 32, *(rng.randrange(36, 900, 4) for _ in range(23))]
    full = 0
    for size in sizes:
        stopped = on_small_disk(tmp_path / f"disk{size}", size, *words, "hydra.run.dir=run")
        full += stopped.code == 2
        check_and_go_on(stopped, undisturbed)
        shutil.rmtree(stopped.folder)
        shutil.rmtree(tmp_path / f"disk{size}")
    assert full >= 10
    record_count(
        f"disks: {len(sizes)} of {len(sizes)} sizes ended clearly and went on to the same end; {full} were full"
    )


@needs_mount
@pytest.mark.parametrize("begun", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_a_read_only_directory_is_refused_before_training(
    begun: bool, words: tuple[str, ...], undisturbed: Ending, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if begun:
        assert run([*words, "plan=true", f"hydra.run.dir={disk}/run"]) == 0
        path = disk / "run" / "config.yaml"
        path.write_text(path.read_text().replace("plan: true", "plan: false"))
    script = f'mount --bind {disk} {disk} && mount -o remount,bind,ro {disk} && exec {COMMAND} "$@"'
    words = (f"resume={disk}/run",) if begun else (*words, f"hydra.run.dir={disk}/run")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{disk}/run" in done.stderr
    assert "Read-only file system" in done.stderr
    assert "step " not in done.stdout.replace("until step", "")


def _start(words: Sequence[str], run_dir: Path, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*COMMAND.split(), *words, f"hydra.run.dir={run_dir}"],
        stdout=stdout, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and len(read_rows(run_dir)) > 5:
            break
        time.sleep(0.02)
    return process


@pytest.mark.faults
@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_directory_that_vanishes_ends_the_run_and_is_not_made_again(
    how: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    process = _start([*words, "budget.steps=100000", "checkpoint.every=3"], tmp_path / "run")
    if how == "deleted":
        while (tmp_path / "run").exists():
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
    else:
        (tmp_path / "run").rename(tmp_path / "elsewhere")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(said.splitlines()) == 1
    assert "no longer exists" in said
    assert not (tmp_path / "run").exists()
    if how == "moved":  # its last checkpoint went along
        assert list((tmp_path / "elsewhere" / "checkpoints").glob("step_*"))


@pytest.mark.faults
def test_a_closed_standard_output_does_not_end_a_run(
    words: tuple[str, ...], undisturbed: Ending, tmp_path: Path
) -> None:
    """As in `apollo-train | head -1`, or when the connection of a terminal breaks."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*COMMAND.split(), *words, f"hydra.run.dir={tmp_path}/run"],
        stdout=writing, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert ending(tmp_path / "run") == undisturbed
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"
    assert "Run completed" in (tmp_path / "run" / "train.log").read_text()
