import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apollo_cli.models import dropout as module
from apollo_cli.models.dropout import attention, dropout

MANY = (250, 999)  # not a multiple of four
probabilities = pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])


@pytest.fixture(autouse=True)
def rng() -> None:
    torch.manual_seed(0)


@probabilities
def test_a_share_is_dropped_and_the_rest_keeps_the_mean(probability: float) -> None:
    kept = dropout(torch.ones(MANY), probability)
    count = kept.numel()
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert abs((kept == 0).sum().item() / count - probability) < 4 * deviation
    assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-4)


@probabilities
def test_neighbours_are_dropped_independently(probability: float) -> None:
    """Four elements share a random word."""
    dropped = (dropout(torch.ones(MANY), probability) == 0).flatten()
    for distance in range(1, 9):
        both = (dropped[distance:] & dropped[:-distance]).double()
        deviation = (probability**2 * (1 - probability**2) / len(both)) ** 0.5
        assert abs(both.mean().item() - probability**2) < 5 * deviation


def test_the_mask_is_drawn_from_torchs_generator() -> None:
    values = torch.randn(7, 5)
    torch.manual_seed(3)
    first, other = dropout(values, 0.5), dropout(values, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(values, 0.5), first)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("probability", "dropped"), [(1e-9, 0), (1 - 1e-9, 65535)])
def test_probabilities_at_the_ends_stay_finite(probability: float, dropped: int) -> None:
    kept = dropout(torch.ones(MANY), probability)
    assert kept.isfinite().all()
    assert abs((kept == 0).double().mean() * 65536 - dropped) < 4  # of 65536


def test_without_a_probability_or_training_nothing_is_dropped() -> None:
    values = torch.randn(7, 5)
    assert dropout(values, 0.0) is values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_is_dropped_alike(dtype: torch.dtype) -> None:
    values = torch.ones(7, 5, dtype=dtype, requires_grad=True)
    kept = dropout(values, 0.5)
    kept.sum().backward()
    assert kept.dtype == dtype
    assert torch.equal(kept, values.grad)  # type: ignore[arg-type]


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    return query, key, value


SOME = (torch.arange(5) < torch.tensor([[5], [1], [3]]))[:, None, None, :]


@pytest.mark.parametrize(
    ("causal", "mask"), [(True, None), (False, None), (False, SOME)], ids=["causal", "all", "some"]
)
def test_attention_equals_torchs(causal: bool, mask: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all weights kept, by the way that could drop some."""
    monkeypatch.setattr(module, "_mask", lambda values, probability: torch.ones_like(values))
    inputs = _inputs()
    expected = F.scaled_dot_product_attention(*inputs, mask, is_causal=causal)
    mixed = attention(*inputs, mask, causal=causal, probability=0.5)
    torch.testing.assert_close(mixed, expected)
    weights = torch.randn_like(expected)
    gradients = (torch.autograd.grad((out * weights).sum(), inputs) for out in (mixed, expected))
    torch.testing.assert_close(*gradients)


def test_attention_drops_weights() -> None:
    """With one key and a value of ones, the result is the mask."""
    query = torch.zeros(2, 3, MANY[0], 1)
    mixed = attention(query, query[:, :, :1], torch.ones(2, 3, 1, 1), None, causal=False, probability=0.25)
    assert mixed.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (mixed == 0).double().mean().item() == pytest.approx(0.25, abs=0.05)


def test_attention_in_bf16_computes_its_weights_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_mask", lambda values, probability: torch.ones_like(values))
    query, key, value = ((4 * part).to(torch.bfloat16) for part in _inputs())
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    mixed = attention(query, key, value, None, causal=False, probability=0.5)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.double(), expected, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize(("causal", "padded"), [(True, False), (False, False), (False, True)])
def test_attention_in_bf16_trains_as_two_products_with_the_gradients_of_fp64(
    causal: bool, padded: bool, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(3)
    shapes = [(2, heads, 7, 8) for heads in (4, key_heads, key_heads)]
    query, key, value = (torch.randn(shape, generator=rng).bfloat16().requires_grad_() for shape in shapes)
    short = (query, key, value)
    exact = [part.detach().double().requires_grad_() for part in short]
    mask = torch.arange(7)[None, None, None] < torch.tensor([7, 4])[:, None, None, None] if padded else None
    expected = F.scaled_dot_product_attention(exact[0], exact[1], exact[2], mask, is_causal=causal, enable_gqa=True)
    of_exact = torch.autograd.grad(expected.square().sum(), exact)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("not as products"))
    mixed = attention(query, key, value, mask, causal=causal, probability=0.0)
    of_short = torch.autograd.grad(mixed.double().square().sum(), short)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.double(), expected, rtol=0.02, atol=0.02)
    for gradient, of_fp64 in zip(of_short, of_exact, strict=True):
        assert (gradient - of_fp64).norm() < 0.02 * of_fp64.norm()


@pytest.mark.parametrize("case", ["fp32", "evaluated", "long"])
def test_other_attention_is_torchs_own(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_POSITIONS", 7 if case == "long" else 8)
    query = torch.randn(1, 1, 8, 4, dtype=torch.float32 if case == "fp32" else torch.bfloat16)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: query[0])
    with torch.set_grad_enabled(case != "evaluated"):
        assert attention(query, query, query, None, causal=True, probability=0.0).shape == query[0].shape


def test_torchs_dropout_is_used_on_a_gpu_and_by_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_uses_words", lambda values: False)
    kept = dropout(torch.ones(MANY), 0.25)
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    query = torch.zeros(2, 3, MANY[0], 1)
    mixed = attention(query, query[:, :, :1], torch.ones(2, 3, 1, 1), None, causal=False, probability=0.25)
    assert (mixed == 0).double().mean().item() == pytest.approx(0.25, abs=0.05)
