import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from apollo_cli import files
from apollo_cli.errors import CheckpointError, StorageError
from apollo_cli.training import checkpoint as module
from apollo_cli.training.checkpoint import Checkpoints
from apollo_cli.training.state import Checkpoint, TrainerState, rng_state

CONTENT = ("model.safetensors", "optimizer.safetensors", "state.pt")


def _checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        layers=2,
        width=1.0,
        tensors={
            "w": torch.full((3,), float(step)),
            "w/step": torch.tensor(float(step)),
            "w/exp_avg": torch.ones(3),
        },
        rng=rng_state(torch.device("cpu")),
        state=TrainerState(step=step, flops=2**70 + step, loss_sum=0.1 + 0.2),
    )


def _names(checkpoints: Checkpoints) -> set[str]:
    """The names in the folder after old checkpoints are deleted."""
    checkpoints.removal.join()
    return {path.name for path in checkpoints.folder.iterdir()}


def newest(checkpoints: Checkpoints, say: Callable[[str], None] = print) -> Checkpoint:
    found = checkpoints.load_newest(say)
    assert found is not None
    return found


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    made.folder.parent.mkdir()
    for step in (9, 10, 100):
        made.save(_checkpoint(step))
    return made


def test_the_newest_few_stay_and_latest_names_the_newest(checkpoints: Checkpoints) -> None:
    assert _names(checkpoints) == {"step_00000010", "step_00000100", "latest"}
    assert (checkpoints.folder / "latest").read_text() == "step_00000100\n"


def test_a_saved_checkpoint_is_loaded_exactly(checkpoints: Checkpoints) -> None:
    loaded, saved = newest(checkpoints), _checkpoint(100)
    assert loaded.state == saved.state
    assert loaded.layers == 2
    assert loaded.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in saved.tensors.items())
    assert torch.equal(loaded.rng["cpu"], saved.rng["cpu"])


@pytest.mark.parametrize("name", [*CONTENT, "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_a_damaged_checkpoint_is_named_and_passed_over(name: str, damage: str, checkpoints: Checkpoints) -> None:
    path = checkpoints.folder / "step_00000100" / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "truncate":
        path.write_bytes(content[:middle])
    elif damage == "flip":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    said: list[str] = []
    assert newest(checkpoints, said.append).state.step == 10
    assert "step_00000100" in said[0]


def test_an_error_names_all_checkpoints_if_none_is_undamaged(checkpoints: Checkpoints) -> None:
    for folder in checkpoints.folder.glob("step_*"):
        (folder / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint can be used.*step_00000100.*step_00000010"):
        checkpoints.load_newest(print)


def test_there_is_no_checkpoint_before_the_first(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints", 2).load_newest(print) is None


def test_a_save_that_was_cut_short_is_no_checkpoint(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", power_cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(_checkpoint(200))
    monkeypatch.undo()
    assert newest(checkpoints).state.step == 100
    checkpoints.save(_checkpoint(200))
    assert _names(checkpoints) == {"step_00000100", "step_00000200", "latest"}


def _forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes meta.json and corrects its checksums, as an attacker would."""
    meta = json.loads((folder / "meta.json").read_text())
    meta.pop("sha256_of_meta")
    change(meta)
    for name in meta["sha256"]:
        if (folder / name).parent == folder:
            meta["sha256"][name] = [hashlib.sha256((folder / name).read_bytes()).hexdigest()]
    meta["sha256_of_meta"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "7"), ("step", -1), ("step", None), ("flops", 1.5), ("metrics_bytes", -5), ("losses", []),
        ("losses", {"eval/loss": "low"}), ("growths", [{"step": []}]), ("growths", ["x"]), ("run_id", "../../../x"),
        ("data", 3), ("surprise", 1),
    ],
)  # fmt: skip
def test_a_forged_state_is_refused(key: str, value: Any, checkpoints: Checkpoints) -> None:
    _forge(checkpoints.folder / "step_00000100", lambda meta: meta["state"].update({key: value}))
    said: list[str] = []
    assert newest(checkpoints, said.append).state.step == 10
    assert "step_00000100 cannot be read" in said[0]


def test_checksums_of_files_elsewhere_are_not_computed(checkpoints: Checkpoints) -> None:
    """/dev/zero has no end."""
    _forge(checkpoints.folder / "step_00000100", lambda meta: meta["sha256"].update({"/dev/zero": "0"}))
    assert newest(checkpoints).state.step == 100


@pytest.mark.parametrize("damage", ["swap", "cut", "flip"])
def test_a_large_file_is_checked_in_pieces(
    damage: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces that are swapped or missing as a whole are detected, too."""
    size = 4096
    monkeypatch.setattr(module, "_PIECE", size)
    for step in (199, 200):
        path = checkpoints.save(replace(_checkpoint(step), tensors={"w": torch.arange(4.0 * size)}))
    path /= "model.safetensors"
    content = path.read_bytes()
    assert len(json.loads((path.parent / "meta.json").read_text())["sha256"][path.name]) == 17
    assert newest(checkpoints, pytest.fail).state.step == 200
    changed = {
        "swap": content[:size] + content[2 * size : 3 * size] + content[size : 2 * size] + content[3 * size :],
        "cut": content[: 16 * size],
        "flip": content[:-1] + bytes([content[-1] ^ 1]),
    }
    path.write_bytes(changed[damage])
    said: list[str] = []
    assert newest(checkpoints, said.append).state.step == 199
    assert "model.safetensors is damaged" in said[0]


def test_a_checkpoint_of_a_newer_format_is_not_passed_over(checkpoints: Checkpoints) -> None:
    _forge(checkpoints.folder / "step_00000100", lambda meta: meta.update({"format": 99}))
    with pytest.raises(CheckpointError, match=r"a newer apollo-train wrote it \(format 99"):
        checkpoints.load_newest(print)


def test_what_a_killed_process_left_is_deleted(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / ".step_00000150.tmp").mkdir()
    (checkpoints.folder / "step_notes").mkdir()
    assert newest(checkpoints).state.step == 100
    assert not (checkpoints.folder / ".step_00000150.tmp").exists()


@pytest.mark.parametrize("name", ["step_00000200", "step_00009999", ".step_00000200.tmp"])
@pytest.mark.parametrize("how", ["file", "dangling link", "link to a folder"])
def test_files_and_links_with_the_name_of_a_checkpoint_are_ignored(
    name: str, how: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    stray = checkpoints.folder / name
    if how == "file":
        stray.touch()
    else:
        stray.symlink_to(checkpoints.folder / "step_00000010" if how == "link to a folder" else tmp_path / "gone")
    said: list[str] = []
    assert newest(checkpoints, said.append).state.step == 100
    assert said == []
    checkpoints.save(_checkpoint(200))
    assert newest(checkpoints, said.append).state.step == 200
    left = _names(checkpoints) - {"step_00009999"}
    assert left == {"step_00000100", "step_00000200", "latest"}


@pytest.mark.parametrize("how", ["safetensors", "torch", "os", "sync"])
def test_a_full_disk_names_the_path_and_the_space_and_leaves_what_was_there(
    how: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {
        "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "torch": RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        "os": OSError(errno.ENOSPC, "No space left on device"),
        "sync": OSError(errno.EDQUOT, "Disk quota exceeded"),
    }
    places = {"safetensors": (module, "save_file"), "sync": (files, "sync")}

    def full(*_: object, **__: object) -> None:
        raise errors[how]

    usage = shutil.disk_usage(checkpoints.folder)._replace(free=1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(*places.get(how, (torch, "save")), full)
    said = r"checkpoints/step_00000200: the disk is full; \d+\.\d kB are needed and 1\.0 kB are free"
    with pytest.raises(StorageError, match=said):
        checkpoints.save(_checkpoint(200))
    assert _names(checkpoints) == {"step_00000010", "step_00000100", "latest"}


def test_everything_is_on_disk_before_it_has_its_name(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, synced = checkpoints.folder / ".step_00000200.tmp", set()
    sync, rename = os.fsync, Path.rename

    def note(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check(path: Path, target: Path) -> None:
        if path == temporary:
            assert {p.name for p in path.iterdir()} == {*CONTENT, "meta.json"}
            assert {p.stat().st_ino for p in (path, *path.iterdir())} <= synced
        rename(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", check)
    assert checkpoints.save(_checkpoint(200)).is_dir()


def test_a_deleted_folder_is_not_made_again(checkpoints: Checkpoints) -> None:
    checkpoints.removal.join()
    shutil.rmtree(checkpoints.folder.parent)
    with pytest.raises(StorageError, match="no longer exists"):
        checkpoints.save(_checkpoint(200))
    assert not checkpoints.folder.parent.exists()


def test_a_hostile_pickle_is_not_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "owned",))

    folder = checkpoints.folder / "step_00000100"
    torch.save({"rng": Hostile()}, folder / "state.pt")
    _forge(folder, lambda meta: None)
    said: list[str] = []
    assert newest(checkpoints, said.append).state.step == 10
    assert "holds something that is refused" in said[0]
    assert not (tmp_path / "owned").exists()


def test_damaged_newer_ones_do_not_push_out_good_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for step in (50, 100):
        Checkpoints(checkpoints.folder, keep=2).save(_checkpoint(step))
    (checkpoints.folder / "step_00000100" / "state.pt").write_bytes(b"")
    assert newest(checkpoints).state.step == 50
    checkpoints.save(_checkpoint(75))
    assert _names(checkpoints) == {"step_00000075", "latest"}
