import json
from pathlib import Path

import pytest
import torch

from apollo_cli.errors import CheckpointError
from apollo_cli.training.checkpoint import Checkpoint, Checkpoints, Progress, random_state


def _checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        layers=2,
        weights={"w": torch.full((3,), float(step))},
        optimizer={"w": {"step": torch.tensor(float(step)), "exp_avg": torch.ones(3)}},
        rng=random_state(torch.device("cpu")),
        progress=Progress(step=step, flops=2**70 + step, loss_sum=0.1 + 0.2),
    )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (9, 10, 100):
        made.save(_checkpoint(step))
    return made


def test_the_newest_few_stay_and_latest_names_the_newest(checkpoints: Checkpoints) -> None:
    assert {p.name for p in checkpoints.folder.iterdir()} == {"step_00000010", "step_00000100", "latest"}
    assert (checkpoints.folder / "latest").read_text() == "step_00000100\n"


def test_what_was_saved_comes_back_exactly(checkpoints: Checkpoints) -> None:
    loaded, saved = checkpoints.load_newest(print), _checkpoint(100)
    assert loaded is not None
    assert loaded.progress == saved.progress
    assert loaded.layers == 2
    assert torch.equal(loaded.weights["w"], saved.weights["w"])
    assert torch.equal(loaded.optimizer["w"]["exp_avg"], torch.ones(3))
    assert torch.equal(loaded.rng["cpu"], saved.rng["cpu"])


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_a_damaged_one_is_named_and_passed_over(name: str, damage: str, checkpoints: Checkpoints) -> None:
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
    loaded = checkpoints.load_newest(said.append)
    assert loaded is not None
    assert loaded.progress.step == 10
    assert "step_00000100" in said[0]


def test_with_none_whole_it_says_so(checkpoints: Checkpoints) -> None:
    for folder in checkpoints.folder.glob("step_*"):
        (folder / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint can be read.*step_00000100.*step_00000010"):
        checkpoints.load_newest(print)


def test_none_was_ever_written(tmp_path: Path) -> None:
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
    loaded = checkpoints.load_newest(print)
    assert loaded is not None
    assert loaded.progress.step == 100
    checkpoints.save(_checkpoint(200))
    assert {p.name for p in checkpoints.folder.iterdir()} == {"step_00000100", "step_00000200", "latest"}


def test_a_hostile_pickle_is_not_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    import hashlib

    class Hostile:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "owned",))

    folder = checkpoints.folder / "step_00000100"
    torch.save({"optimizer": Hostile(), "rng": {}}, folder / "state.pt")
    meta = json.loads((folder / "meta.json").read_text())
    meta["sha256"]["state.pt"] = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
    meta.pop("sha256_of_meta")
    meta["sha256_of_meta"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    said: list[str] = []
    loaded = checkpoints.load_newest(said.append)
    assert "holds something that is refused" in said[0]
    assert loaded is not None
    assert loaded.progress.step == 10
    assert not (tmp_path / "owned").exists()


def test_damaged_newer_ones_do_not_push_out_good_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for step in (50, 100):
        Checkpoints(checkpoints.folder, keep=2).save(_checkpoint(step))
    (checkpoints.folder / "step_00000100" / "state.pt").write_bytes(b"")
    assert checkpoints.load_newest(print).progress.step == 50  # type: ignore[union-attr]
    checkpoints.save(_checkpoint(75))
    assert {p.name for p in checkpoints.folder.iterdir()} == {"step_00000075", "latest"}
