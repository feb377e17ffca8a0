import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apollo_cli.models import cross_entropy
from apollo_cli.models.cross_entropy import decoder_loss

with_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def _inputs(
    bias: bool, predictions: int = 11, width: int = 6, vocabulary: int = 13, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(predictions, width, generator=rng, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=rng, dtype=dtype).requires_grad_()
    offsets = torch.randn(vocabulary, generator=rng, dtype=dtype).requires_grad_() if bias else None
    return hidden, weight, offsets, torch.randint(vocabulary, (predictions,), generator=rng)


@pytest.fixture(params=[1, 4, 11, 1000])
def rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of one row, of some with a rest, of all, and larger than there are rows."""
    monkeypatch.setattr(cross_entropy, "chunk_bytes", lambda device, bf16: 4 * 13 * request.param)
    return request.param


@with_bias
def test_loss_and_gradients_are_those_of_whole_logits(bias: bool, rows_at_once: int) -> None:
    hidden, weight, offsets, targets = _inputs(bias)
    leaves = [t for t in (hidden, weight, offsets) if t is not None]
    expected = F.cross_entropy(F.linear(hidden, weight, offsets), targets)
    of_whole = torch.autograd.grad(3 * expected, leaves)
    loss = decoder_loss(hidden, weight, offsets, targets)
    of_chunks = torch.autograd.grad(3 * loss, leaves)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(of_chunks, of_whole)


@with_bias
def test_gradients_are_the_slopes_of_the_loss(bias: bool, rows_at_once: int) -> None:
    hidden, weight, offsets, targets = _inputs(bias)
    leaves = [t for t in (hidden, weight, offsets) if t is not None]
    of_loss = torch.autograd.grad(decoder_loss(hidden, weight, offsets, targets), leaves)
    for leaf, gradient in zip(leaves, of_loss, strict=True):
        direction = torch.randn_like(leaf)
        with torch.no_grad():
            leaf += 1e-6 * direction
            above = decoder_loss(hidden, weight, offsets, targets)
            leaf -= 2e-6 * direction
            below = decoder_loss(hidden, weight, offsets, targets)
            leaf += 1e-6 * direction
        torch.testing.assert_close((above - below) / 2e-6, (gradient * direction).sum(), rtol=1e-6, atol=1e-8)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, _, targets = _inputs(False, dtype=torch.float32)
    loss = decoder_loss(hidden * 1e4, weight, None, targets)
    assert loss.isfinite()
    torch.testing.assert_close(loss, F.cross_entropy(hidden * 1e4 @ weight.t(), targets))


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, targets = _inputs(True)
    expected = decoder_loss(hidden, weight, bias, targets).item()
    for name in ("empty_like", "zeros_like"):
        monkeypatch.setattr(torch, name, None)
    with torch.no_grad():
        assert decoder_loss(hidden, weight, bias, targets).item() == expected


@with_bias
def test_under_autocast_only_the_products_are_short(bias: bool, rows_at_once: int) -> None:
    hidden, weight, offsets, targets = _inputs(bias, dtype=torch.float32)
    leaves = [t for t in (hidden, weight, offsets) if t is not None]
    exact = decoder_loss(hidden, weight, offsets, targets)
    of_exact = torch.autograd.grad(exact, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        loss = decoder_loss(hidden, weight, offsets, targets)
    of_short = torch.autograd.grad(loss, leaves)
    assert loss.dtype == torch.float32
    assert loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    torch.testing.assert_close(of_short, of_exact, rtol=0.05, atol=0.02)


def test_no_more_logits_are_held_than_a_chunk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that is made stays below a limit that whole logits would break."""
    monkeypatch.setattr(cross_entropy, "chunk_bytes", lambda device, bf16: 4 * 1000 * 8)
    hidden, weight, _, targets = _inputs(False, predictions=400, width=2, vocabulary=1000, dtype=torch.float32)
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            made = function(*arguments, **(named or {}))
            largest = max([largest, *(t.numel() for t in [made] if isinstance(t, Tensor))])
            return made

    with Watch():
        decoder_loss(hidden, weight, None, targets).backward()
    assert largest == 8 * 1000
