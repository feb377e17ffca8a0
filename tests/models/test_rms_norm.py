import torch
import torch.nn.functional as F

from apollo_cli.models.rms_norm import RmsNorm


def test_values_and_gradients_are_those_of_torch() -> None:
    random = torch.Generator().manual_seed(0)
    for shape in [(3, 5, 24), (7, 24)]:
        norm = RmsNorm(24, eps=1e-5)
        x = torch.randn(shape, generator=random, requires_grad=True)
        gain = torch.randn(24, generator=random, requires_grad=True)
        norm.weight = torch.nn.Parameter(gain.detach().clone())
        upstream = torch.randn(shape, generator=random)
        ours, theirs = norm(x), F.rms_norm(x, (24,), gain, 1e-5)
        torch.testing.assert_close(ours, theirs)
        found = torch.autograd.grad(ours, (x, norm.weight), upstream)
        expected = torch.autograd.grad(theirs, (x, gain), upstream)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_vector_by_hand() -> None:
    """sqrt(mean of 9 and 16) is 3.53553."""
    norm = RmsNorm(2, eps=0.0)
    torch.testing.assert_close(norm(torch.tensor([[3.0, -4.0]])), torch.tensor([[0.848528, -1.131371]]))


def test_numbers_close_to_zero_are_not_blown_up() -> None:
    assert RmsNorm(4, eps=1e-5)(torch.full((1, 4), 1e-6)).abs().max() < 1e-3
