from collections.abc import Callable

import pytest
import torch

from apollo_cli.config import Config
from apollo_cli.errors import ConfigError
from apollo_cli.training.device import choose


def test_auto_on_a_cpu_is_fp32_and_not_compiled(config: Callable[..., Config]) -> None:
    device = choose(config("device=cpu").run)
    assert (device.device.type, device.bf16, device.compile) == ("cpu", False, False)


def test_what_is_asked_for_is_what_is_chosen(config: Callable[..., Config]) -> None:
    device = choose(config("precision=bf16", "compile=true").run)
    assert device.bf16
    assert device.compile
    with device.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_device_that_is_not_here_is_refused(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="device=cuda:99: not on this machine"):
        choose(config("device=cuda:99").run)


@pytest.mark.gpu
def test_auto_on_a_gpu_is_compiled(config: Callable[..., Config]) -> None:
    device = choose(config("device=auto").run)
    assert (device.device.type, device.compile) == ("cuda", True)
