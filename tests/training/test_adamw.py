"""Against torch's own class."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apollo_cli.training.adamw import AdamW

SETTINGS: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def _parameters(device: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    random = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=random) for shape in ((5, 3), (7,), (2, 2))]
    first, second = ([nn.Parameter(value.to(device, copy=True)) for value in values] for _ in range(2))
    return first, second


def _groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters[:1], "weight_decay": 0.3}, {"params": parameters[1:], "weight_decay": 0.0}]


def give_gradients(step: int, *models: list[nn.Parameter], late: tuple[int, ...] = (2, 2)) -> None:
    """Gradients for all but the parameter of this shape in the first two steps, as if it were frozen at first."""
    random = torch.Generator().manual_seed(step)
    for values in zip(*models, strict=True):
        gradient = torch.randn(values[0].shape, generator=random)
        for value in values:
            value.grad = None if step < 2 and value.shape == late else gradient.to(value.device, copy=True)


@each_device
def test_weights_and_moments_are_those_of_torch_to_the_last_bit(device: str) -> None:
    ours, theirs = _parameters(device)
    mine = AdamW(_groups(ours), **SETTINGS)
    its = torch.optim.AdamW(_groups(theirs), **SETTINGS, fused=True)
    for step in range(6):
        give_gradients(step, ours, theirs)
        mine.lr = 0.01 / (1 + step)
        for group in its.param_groups:
            group["lr"] = mine.lr
        mine.step(torch.zeros((), device=device))
        its.step()
    for parameter, expected in zip(ours, theirs, strict=True):
        assert torch.equal(parameter, expected)
        assert mine.state[parameter].keys() == its.state[expected].keys()
        assert all(torch.equal(value, its.state[expected][key]) for key, value in mine.state[parameter].items())
    mine.zero_grad()
    assert [parameter.grad for parameter in ours] == [None] * 3


def test_a_scaled_rate_is_that_of_an_optimizer_with_that_rate() -> None:
    ours, theirs = _parameters("cpu")
    mine = AdamW(_groups(ours), **SETTINGS)
    mine.lr_scales = {ours[0]: 3.0}
    its: list[Any] = [
        torch.optim.AdamW(_groups(theirs)[0]["params"], **SETTINGS | {"lr": 0.03}, weight_decay=0.3, fused=True)
    ]
    its.append(torch.optim.AdamW(theirs[1:], **SETTINGS, weight_decay=0.0, fused=True))
    for step in range(3):
        give_gradients(step, ours, theirs)
        for optimizer in (mine, *its):
            optimizer.step()
    for parameter, expected in zip(ours, theirs, strict=True):
        assert torch.equal(parameter, expected)


@each_device
def test_a_blocked_update_changes_nothing(device: str) -> None:
    parameters, before_all = _parameters(device)
    blocked, free = torch.ones((), device=device), torch.zeros((), device=device)
    optimizer = AdamW(_groups(parameters), **SETTINGS)

    def everything() -> list[Tensor]:
        states = [value for parameter in parameters[:2] for value in optimizer.state[parameter].values()]
        return [tensor.clone() for tensor in (*(p.detach() for p in parameters), *states)]

    give_gradients(0, parameters)
    optimizer.step(blocked)  # the first one
    assert all(map(torch.equal, parameters, before_all))
    assert not any(value.any() for parameter in parameters[:2] for value in optimizer.state[parameter].values())
    optimizer.step(free)
    before = everything()
    give_gradients(1, parameters)
    optimizer.step(blocked)
    assert all(map(torch.equal, everything(), before))
    optimizer.step(free)
    assert not all(map(torch.equal, everything(), before))


@each_device
def test_averages_are_those_of_torch(device: str) -> None:
    """torch's class copies the weights when it is updated first, so that is done before the first step."""
    model = nn.Linear(3, 2).to(device)
    optimizer = AdamW([{"params": [*model.parameters()], "weight_decay": 0.1}], **SETTINGS, ema=0.7)
    its = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7))
    its.update_parameters(model)
    for step in range(5):
        give_gradients(step, [*model.parameters()])
        optimizer.step(torch.zeros((), device=device))
        its.update_parameters(model)
        blocked = [average.clone() for average in optimizer.averages.values()]
        optimizer.step(torch.ones((), device=device))
        assert all(map(torch.equal, optimizer.averages.values(), blocked))
    last = [p.detach().clone() for p in model.parameters()]
    with optimizer.averaged():
        for parameter, expected in zip(model.parameters(), its.module.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected)
    assert all(map(torch.equal, model.parameters(), last))
