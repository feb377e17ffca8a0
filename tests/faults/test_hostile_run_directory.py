"""An untrusted run directory is resumed without a write outside of it, and without waiting for a FIFO in it."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apollo_cli.train import run

TEMPORARY = (".config.yaml.tmp", ".plan.json.tmp", ".summary.json.tmp", ".model.tmp")
INSIDE = (".lock", "checkpoints/.latest.tmp", "checkpoints/.step_00000012.tmp", "checkpoints/step_00000012")
NEW = ("metrics.jsonl", "train.log", "checkpoints", "config.yaml")


@pytest.fixture(scope="module")
def theirs(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory without its last checkpoint, with every file that a run may leave, also links of wandb."""
    folder = tmp_path_factory.mktemp("theirs") / "run"
    assert run([*tiny, f"hydra.run.dir={folder}"]) == 0
    shutil.rmtree(folder / "checkpoints" / "step_00000012")
    summary = folder / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"status": "interrupted"}))
    (folder / "refused_steps").mkdir()
    (folder / "refused_steps" / "step_00000003.json").write_text("{}")
    logs = folder / "wandb" / "offline-run-20260101_000000-abc" / "logs"
    logs.mkdir(parents=True)
    (logs.parent / "run-abc.wandb").write_text("rows")
    (logs.parent / "run-abc.wandb.synced").touch()
    (logs / "debug-core.log").symlink_to(folder.parent / "cache of wandb")
    (folder / "wandb" / "latest-run").symlink_to(logs.parent.name)
    (folder / "wandb" / "debug.log.123").symlink_to("latest-run/logs/debug.log")
    return folder


@pytest.fixture
def place(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the run directory and files that must not change; a test that takes half a minute fails."""

    def hung(*_: object) -> None:
        raise TimeoutError

    shutil.copytree(theirs, tmp_path / "run", symlinks=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    shutil.copytree(tmp_path / "mine", tmp_path / "mine" / ".step_00000001.tmp")
    shutil.copytree(tmp_path / "mine", tmp_path / "mine" / "step_00000099")
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(30)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def _parts(folder: Path) -> list[str]:
    """The contents of the run directory except for links of wandb."""
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if not path.is_symlink()]


def _replaced(path: Path, by: Callable[[Path], object]) -> None:
    path.rename(path.with_name("aside")) if path.exists() else None
    by(path)


def _put_back(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_name("aside").rename(path)


def test_links_to_files_outside_are_refused(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = _contents(place / "mine")
    for part in _parts(place / "run"):
        path = place / "run" / part
        target = place / "mine" if path.is_dir() else place / "mine" / "thesis.txt"
        _replaced(path, lambda path, target=target: path.symlink_to(target))  # type: ignore[misc]
        assert run(["resume=run"]) == 2, part
        said = capfd.readouterr()
        if part != "config.yaml":  # which is read first
            assert f"run/{part} is a symbolic link; a run directory holds regular files" in said.err
        assert len(said.err.splitlines()) == 1 or part == "config.yaml"
        assert "Traceback" not in said.err
        assert _contents(place / "mine") == before
        _put_back(path)
    assert run(["resume=run"]) == 0


@pytest.mark.parametrize("target", ["mine", "mine/thesis.txt", "mine/new"])
def test_links_in_place_of_temporary_files_are_not_followed(target: str, place: Path) -> None:
    before = _contents(place / "mine")
    for name in TEMPORARY:
        (place / "run" / name).symlink_to(place / target)
    assert run(["resume=run"]) == 0
    assert _contents(place / "mine") == before


def test_links_in_place_of_future_files_are_refused(
    place: Path, tiny: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    before = _contents(place / "mine")
    for name in INSIDE:
        (place / "run" / name).symlink_to(place / "mine")
        assert run(["resume=run"]) == 2
        assert f"run/{name} is a symbolic link" in capfd.readouterr().err
        (place / "run" / name).unlink()
    for name in NEW:
        (place / "begun").mkdir()
        (place / "begun" / name).symlink_to(place / "mine" / "new")
        assert run([*tiny, "hydra.run.dir=begun"]) == 2
        assert f"begun/{name} is a symbolic link" in capfd.readouterr().err
        assert [path.name for path in (place / "begun").iterdir()] == [name]
        shutil.rmtree(place / "begun")
    assert _contents(place / "mine") == before


def test_fifos_are_refused_and_not_waited_for(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for part in _parts(place / "run"):
        _replaced(place / "run" / part, os.mkfifo)
        assert run(["resume=run"]) == 2, part
        said = capfd.readouterr().err
        assert "is a FIFO" in said or part == "config.yaml"
        assert "Traceback" not in said
        _put_back(place / "run" / part)


def test_other_files_may_be_links(place: Path) -> None:
    """`hydra.run.dir=.` puts a run beside other files."""
    (place / "run" / "notes").symlink_to(place / "mine")
    assert run(["resume=run"]) == 0


def test_the_run_directory_itself_may_be_a_link(place: Path) -> None:
    """For the user typed its name."""
    (place / "shortcut").symlink_to("run")
    assert run(["resume=shortcut"]) == 0
    assert json.loads((place / "run" / "summary.json").read_text())["status"] == "completed"
