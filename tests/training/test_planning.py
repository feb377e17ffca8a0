import re
from collections.abc import Callable

import pytest

from apollo_cli.config.config import Config
from apollo_cli.errors import ConfigError
from apollo_cli.growth.plan import Plan
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan, make_step_cost

NONE = "budget.steps=null"


def _plan(config: Config) -> Plan:
    return make_plan(config, choose(config.run))


def test_a_budget_of_tokens_is_never_exceeded(config: Callable[..., Config]) -> None:
    assert _plan(config(NONE, "budget.tokens=1000")).steps == 1000 // (4 * 16)
    with pytest.raises(ConfigError, match="less than a step of 64"):
        _plan(config(NONE, "budget.tokens=63"))


def test_a_budget_of_flops_is_filled_and_never_exceeded(config: Callable[..., Config]) -> None:
    plan = _plan(config(NONE, "budget.flops=1e9"))
    assert plan.flops <= 1e9
    assert _plan(config(f"budget.steps={plan.steps + 1}")).flops > 1e9


def test_a_budget_of_flops_too_small_for_the_stages_is_refused(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="is too small: 3 steps"):
        _plan(config(NONE, "budget.flops=1e3"))


def test_a_budget_of_seconds_is_planned_by_the_clock(config: Callable[..., Config]) -> None:
    short, long = (_plan(config(NONE, f"budget.seconds={s}")).steps for s in (0.5, 5))
    assert short < long


@pytest.mark.parametrize(("fraction", "masked"), [(0.15, 2), (0.5, 7)])
def test_the_masked_fraction_decides_the_heads_flops(
    fraction: float, masked: int, config: Callable[..., Config]
) -> None:
    settings = config("model=bert", f"model.mask_fraction={fraction}", "batch.micro=1")
    per_layer = 16 * (8 * 16**2 + 4 * 16 * 32 + 4 * 16 * 16)
    head = masked * (2 * 16 * 300 + 2 * 16**2)
    assert _plan(settings).step_cost.flops(3, 0) == 3 * (3 * per_layer + head)


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_the_batch_that_is_proposed_for_several_devices_can_be_typed(
    devices: int, config: Callable[..., Config]
) -> None:
    """All batches of up to 24 rows that are divided into micro-steps which the devices do not divide."""
    device, shared = choose(config().run), f"devices={devices}"
    sizes = [(size, micro) for size in range(1, 25) for micro in range(1, size + 1) if size % micro == 0]
    for size, micro in ((size, micro) for size, micro in sizes if micro % devices):
        with pytest.raises(
            ConfigError, match=f"batch.micro={micro} is not divisible by {devices} devices"
        ) as caught:
            make_step_cost(config(shared, f"batch.size={size}", f"batch.micro={micro}"), device)
        typed = re.findall(r"batch\.\w+=\d+", str(caught.value).partition("for example")[2])
        make_step_cost(config(shared, *typed), device)
