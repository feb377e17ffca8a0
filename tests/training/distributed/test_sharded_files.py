"""Tensors in shards: joined along their rows, read in any parts, written by several processes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from apollo_cli.errors import StorageError
from apollo_cli.training.checkpoint import Checkpoints
from apollo_cli.training.distributed.environment import ProcessEnv
from apollo_cli.training.distributed.group import ProcessGroup
from apollo_cli.training.distributed.sharded_files import TensorFiles
from apollo_cli.training.state import Checkpoint, TrainerState, rng_state

WHOLE = {"w": torch.arange(10.0).view(5, 2), "w/step": torch.tensor(7.0), "b": torch.arange(3.0)}


def shards(count: int) -> list[dict[str, Tensor]]:
    """The rows of each of so many processes, as torch's FSDP divides them; the last ones may have none."""
    made: list[dict[str, Tensor]] = []
    for rank in range(count):
        rows = {}
        for name, tensor in WHOLE.items():
            share = -(-len(tensor) // count) if tensor.ndim else 0
            rows[name] = tensor[rank * share : (rank + 1) * share].clone() if tensor.ndim else tensor
        made.append(rows)
    return made


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_joined_and_read_in_any_parts(count: int, tmp_path: Path) -> None:
    paths = [tmp_path / f"{rank}.safetensors" for rank in range(count)]
    for path, tensors in zip(paths, shards(count), strict=True):
        save_file(tensors, path)
    found = TensorFiles(paths)
    assert found.keys() == WHOLE.keys()
    for name, tensor in WHOLE.items():
        assert found.shape(name) == tuple(tensor.shape)
        assert torch.equal(found[name], tensor)
    for first in range(6):
        for last in range(first, 6):
            assert torch.equal(found.rows("w", first, last), WHOLE["w"][first:last])


@dataclass(frozen=True)
class ThreadGroup(ProcessGroup):
    """Threads in place of processes."""

    barrier: Barrier = field(default_factory=lambda: Barrier(1))
    values: dict[int, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        self.barrier.wait(20)
        self.values[self.rank] = value
        self.barrier.wait(20)
        return [self.values[rank] for rank in range(self.world_size)]


def save(count: int, folder_of: Callable[[int], Path]) -> list[Exception | None]:
    """Saves a checkpoint by so many processes; what each of them raised."""
    barrier, values = Barrier(count), dict[int, Any]()

    def write(rank: int) -> Exception | None:
        group = ThreadGroup(ProcessEnv(rank, count, rank, "", 0), None, barrier, values)
        checkpoint = Checkpoint(2, 1.0, shards(count)[rank], rng_state(torch.device("cpu")), TrainerState(step=3))
        try:
            Checkpoints(folder_of(rank), 1, group, in_shards=True).save(checkpoint)
        except StorageError as error:
            return error
        return None

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(write, range(count)))


@pytest.mark.parametrize("count", [2, 3])
def test_a_checkpoint_in_shards_is_read_like_one_that_is_whole(count: int, tmp_path: Path) -> None:
    assert save(count, lambda rank: tmp_path / "checkpoints") == [None] * count
    names = {path.name for path in (tmp_path / "checkpoints" / "step_00000003").iterdir()}
    assert f"model-00001-of-{count:05d}.safetensors" in names
    assert len(names) == 2 * count + 2
    loaded = Checkpoints(tmp_path / "checkpoints", 1).load_newest(pytest.fail)
    assert loaded is not None
    assert loaded.tensors.keys() == WHOLE.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in WHOLE.items())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save(2, lambda rank: tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "step_00000003" / "optimizer-00002-of-00002.safetensors").unlink()
    said: list[str] = []
    with pytest.raises(Exception, match="no checkpoint can be used"):
        Checkpoints(tmp_path / "checkpoints", 1).load_newest(said.append)
    assert "optimizer-00002-of-00002.safetensors" in said[0]


def test_processes_without_a_common_disk_are_an_error(tmp_path: Path) -> None:
    errors = save(2, lambda rank: tmp_path / str(rank))
    assert "must be on a disk that all machines share" in str(errors[0])
    assert not list((tmp_path / "0").glob("step_*"))
