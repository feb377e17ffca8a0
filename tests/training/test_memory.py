from collections.abc import Callable

import pytest

from apollo_cli.config.config import Config
from apollo_cli.errors import ConfigError
from apollo_cli.models.activation_memory import ActivationMemory
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.training import memory
from apollo_cli.training.device import choose
from apollo_cli.training.memory import check_fits_in_memory, num_pieces
from apollo_cli.training.planning import make_plan


def test_a_run_that_does_not_fit_in_memory_is_refused(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = choose(config().run)
    plan = make_plan(config(), device)
    needed = max(stage.memory_bytes for stage in plan.stages)
    monkeypatch.setattr(memory, "total_bytes", lambda device: needed // 2 - 1)
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d MB of memory and cpu .* has .*batch\.micro"):
        check_fits_in_memory(plan, device)
    monkeypatch.setattr(memory, "total_bytes", lambda device: needed // 2 + 1)  # an estimate may be wrong by two
    check_fits_in_memory(plan, device)


@pytest.mark.parametrize("rows", [1, 2, 97, 360, 10**9, 2**31 - 1, 10**15, 10**400])
def test_the_number_of_pieces_of_a_huge_batch_is_found_at_once(rows: int) -> None:
    footprint = ActivationMemory(ModelConfig("gpt", 300, 16, 16, 2, 32, 4), "cpu", bf16=False)
    count = num_pieces(footprint, rows, 16, depth=4, limit=1)
    assert rows % count == 0


@pytest.mark.parametrize("word", ["batch.size=1e8", "batch.size=1e7"])
def test_a_batch_needs_memory_in_the_smallest_pieces_too(word: str, config: Callable[..., Config]) -> None:
    huge = config(word, "batch.micro=null")
    plan = make_plan(huge, choose(huge.run))
    assert min(stage.memory_bytes for stage in plan.stages) > 24 * huge.batch.size * 16
