import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from apollo_cli.models.build import build, num_parameters
from apollo_cli.models.communication import gathered_bytes, reduced_bytes, state_bytes, step_bytes
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch

SHAPE = ModelConfig("gpt", vocabulary=100, positions=8, hidden=16, heads=2, ffn=64, layers=6)
BLOCK = 4 * 16 * 16 + 4 * 16 + 2 * 16 * 64 + 64 + 16 + 4 * 16  # attention, feed-forward, two norms
REST = 108 * 16 + 2 * 16  # embeddings, the last norm


def test_gradient_bytes_of_four_devices_by_hand() -> None:
    assert (BLOCK, REST) == (3280, 1760)
    assert num_parameters(SHAPE, 3) == 3 * BLOCK + REST == 11_600
    assert reduced_bytes("ddp", 11_600, 4) == 69_600  # 3/4 of 46,400 bytes, twice
    assert reduced_bytes("fsdp", 11_600, 4) == 34_800
    assert reduced_bytes("ddp", 11_600, 1) == 0


def test_a_shared_block_is_gathered_each_time_it_runs_and_its_gradient_summed_once() -> None:
    # six layers of 2 bytes a number and the rest of 4 run forward and backward; 3/4 of that
    gathered = 2 * (6 * 2 * 3280 + 4 * 1760) * 3 // 4
    assert gathered_bytes(SHAPE, layers=3, depth=6, devices=4, bf16=True) == gathered == 69_600
    assert gathered_bytes(SHAPE, 3, 6, 4, bf16=False) == 2 * 4 * (6 * 3280 + 1760) * 3 // 4
    assert step_bytes("fsdp", SHAPE, 3, 6, 4, True, passes=2) == 34_800 + 2 * 69_600
    assert step_bytes("ddp", SHAPE, 3, 6, 4, True, passes=2) == 69_600


def test_what_ddp_sends_grows_with_the_stored_layers_alone() -> None:
    sent = [step_bytes("ddp", SHAPE, layers, 12, 8, True, 1) for layers in (3, 6, 9, 12)]
    assert [b - a for a, b in pairwise(sent)] == [2 * 7 * 4 * 3 * 3280 // 8] * 3


@pytest.mark.parametrize("devices", [1, 4, 64])
def test_state_by_hand(devices: int) -> None:
    assert state_bytes("ddp", SHAPE, 3, devices, True) == 16 * 11_600
    # two blocks of weights and one of gradients, 2 bytes, the rest of both in 4; the larger once more in fp32
    whole = 2 * 2 * 3280 + 2 * 3280 + 2 * 4 * 1760 + 4 * 3280
    assert state_bytes("fsdp", SHAPE, 3, devices, True) == 16 * 11_600 // devices + whole
    assert state_bytes("fsdp", SHAPE, 3, devices, True, accumulates=True) == (
        16 * 11_600 // devices + whole + 4 * 11_600
    )


class _CountedBytes(TorchDispatchMode):
    """Counts the bytes that all processes together gather and sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"_allgather_base_": 0, "_reduce_scatter_base_": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := func.overloadpacket.__name__) in self.bytes:
            self.bytes[name] += max(t.nbytes for t in args if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


def _send(rank: int, folder: str) -> None:
    """One forward and backward pass over shared layers, under torch's own fsdp; nothing is kept whole."""
    torch.set_num_threads(1)
    from torch.distributed.device_mesh import init_device_mesh  # takes a second
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    dist.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    model, mesh = build(SHAPE, 3), init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "loss")
    tokens, positions = torch.arange(16).view(2, 8), torch.arange(7)
    with _CountedBytes() as counted:
        model.loss(Batch(tokens, positions, tokens.flatten()[positions + 1]), (0, 0, 1, 1, 2, 2)).backward()
    if not rank:
        Path(folder, "sent.json").write_text(json.dumps([n // 2 for n in counted.bytes.values()]))
    dist.destroy_process_group()


@pytest.mark.slow
def test_torch_sends_as_many_bytes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_send, (str(tmp_path),), nprocs=2)
    assert json.loads((tmp_path / "sent.json").read_text()) == [
        gathered_bytes(SHAPE, 3, 6, 2, bf16=False),
        reduced_bytes("fsdp", 11_600, 2),
    ]
