from collections.abc import Callable

import pytest
import torch

from apollo_cli.config import Config
from apollo_cli.errors import ConfigError
from apollo_cli.training import memory
from apollo_cli.training.device import choose
from apollo_cli.training.memory import refuse_what_cannot_fit, total_bytes
from apollo_cli.training.planning import make_plan


def test_what_surely_does_not_fit_is_refused_with_need_and_memory(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = choose(config().run)
    plan = make_plan(config(), device)
    needed = max(stage.memory_bytes for stage in plan.stages)
    monkeypatch.setattr(memory, "total_bytes", lambda device: needed // 2 - 1)
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d MB of memory and cpu .* has .*batch\.micro"):
        refuse_what_cannot_fit(plan, device)
    monkeypatch.setattr(memory, "total_bytes", lambda device: needed // 2 + 1)  # an estimate may be wrong by two
    refuse_what_cannot_fit(plan, device)
    monkeypatch.setattr(memory, "total_bytes", lambda device: None)
    refuse_what_cannot_fit(plan, device)


def test_a_cpu_has_the_memory_of_the_machine(config: Callable[..., Config]) -> None:
    total = total_bytes(choose(config("device=cpu").run))
    assert total is not None
    assert total > torch.ones(1000).nbytes
