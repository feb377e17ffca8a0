from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apollo_cli.config.config import Config
from apollo_cli.errors import ConfigError, TrainingError
from apollo_cli.training.device import choose, is_out_of_memory
from apollo_cli.training.distributed.environment import ProcessEnv
from apollo_cli.training.distributed.group import ProcessGroup
from apollo_cli.training.run import train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY


@pytest.mark.parametrize(
    ("capabilities", "bf16"),
    [
        *(
            ({}, False),
            ({"avx2": True, "avx512_f": True}, False),
            ({"avx512_bf16": False, "amx_bf16": False}, False),
        ),
        *(
            ({"avx512_bf16": True}, True),
            ({"amx_bf16": True}, True),
            ({"bf16": True}, False),
        ),  # the last one is ARM's
    ],
)
def test_auto_on_a_cpu_is_bf16_where_it_multiplies_in_it_and_not_compiled(
    capabilities: dict[str, bool], bf16: bool, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    device = choose(config("device=cpu", "precision=auto").run)
    assert (device.device.type, device.precision, device.compile) == ("cpu", "bf16" if bf16 else "fp32", False)


def test_precision_and_compilation_of_the_config_are_chosen(config: Callable[..., Config]) -> None:
    device = choose(config("precision=bf16", "compile=true").run)
    assert device.bf16
    assert device.compile
    with device.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_device_that_is_not_here_is_refused(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="device=cuda:99: not on this machine"):
        choose(config("device=cuda:99").run)


def test_each_of_several_processes_takes_a_device_of_its_own(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    third = ProcessGroup(ProcessEnv(rank=7, world_size=8, local_rank=2, host="", port=0))
    assert choose(config("device=cpu").run, third).device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose(config("device=auto").run, third).device == torch.device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # srun showed it its own alone
    assert choose(config("device=cuda").run, third).device == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="this machine has 2, and at least 3 processes"):
        choose(config("device=cuda").run, third)
    with pytest.raises(ConfigError, match="device=cuda:1: 8 processes need one each"):
        choose(config("device=cuda:1").run, third)


@pytest.mark.gpu
def test_auto_on_a_gpu_is_compiled(config: Callable[..., Config]) -> None:
    device = choose(config("device=auto").run)
    assert (device.device.type, device.compile) == ("cuda", True)


def test_blocks_are_compiled_where_the_run_compiles_and_nowhere_else(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compiled.append(block))  # not torch's compiler
    block = torch.nn.Linear(2, 2)
    choose(config("compile=false").run).compile_blocks([block])
    assert compiled == []
    choose(config("compile=true").run).compile_blocks([block])
    assert compiled == [block]


def test_a_failed_allocation_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)  # four petabytes
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_run_out_of_memory_says_what_to_type(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.backward

    def backward(trainer: Trainer, step: int, depths: list[int]) -> torch.Tensor:
        return torch.empty(10**15) if step == 5 else original(trainer, step, depths)

    monkeypatch.setattr(Trainer, "backward", backward)
    with pytest.raises(
        TrainingError, match=r"step 5: the memory of cpu .* is used up; a new run with a smaller batch\.micro"
    ):
        train(config(*RARELY), tmp_path)


def test_the_device_line_says_what_was_chosen_and_why(config: Callable[..., Config]) -> None:
    run = config("compile=auto").run
    assert (
        choose(run)
        .sentence(run)
        .endswith("nothing is compiled (compile=auto: on CUDA alone, a CPU gains nothing from it)")
    )
    run = config("compile=true", "precision=bf16").run
    assert choose(run).sentence(run).endswith("bf16 products, blocks are compiled")
