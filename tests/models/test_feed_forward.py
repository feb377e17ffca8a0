import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apollo_cli.models import feed_forward as module
from apollo_cli.models.feed_forward import feed_forward

each_gelu = pytest.mark.parametrize("gelu", ["none", "tanh"])


@pytest.fixture(params=[1, 5, 12, 100], autouse=True)
def tokens_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", request.param)
    return request.param


def _layers(dtype: torch.dtype) -> tuple[nn.Linear, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    inner, outer = nn.Linear(4, 10, dtype=dtype), nn.Linear(10, 4, dtype=dtype)
    return inner, outer, torch.randn(3, 4, 4, dtype=dtype, requires_grad=True)


@each_gelu
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_values_and_gradients_are_those_of_three_plain_calls(gelu: str, scale: float) -> None:
    inner, outer, hidden = _layers(torch.float64)
    leaves = [hidden, *inner.parameters(), *outer.parameters()]
    upstream = torch.randn(3, 4, 4, dtype=torch.float64)
    plain = outer(F.gelu(inner(scale * hidden), approximate=gelu))
    chunked = feed_forward(scale * hidden, inner, outer, gelu)
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(
        torch.autograd.grad(chunked, leaves, upstream), torch.autograd.grad(plain, leaves, upstream)
    )


@each_gelu
def test_gradients_are_the_slopes_of_the_values(gelu: str) -> None:
    inner, outer, hidden = _layers(torch.float64)
    assert torch.autograd.gradcheck(lambda x: feed_forward(x, inner, outer, gelu), hidden)


@each_gelu
def test_what_follows_gelu_is_not_kept(gelu: str) -> None:
    inner, outer, hidden = _layers(torch.float32)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        feed_forward(hidden, inner, outer, gelu)
    assert sum(t.shape == (12, 10) for t in kept) == 1


@each_gelu
def test_autocast_takes_the_plain_way(gelu: str) -> None:
    inner, outer, hidden = _layers(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = feed_forward(hidden, inner, outer, gelu)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), feed_forward(hidden, inner, outer, gelu), rtol=0.05, atol=0.02)
