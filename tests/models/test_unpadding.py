import torch

from apollo_cli.models.unpadding import Unpadding

UNPADDING = Unpadding(torch.Size((2, 3)), torch.tensor([0, 2, 4]))


def test_padding_is_removed_and_restored() -> None:
    padded = torch.arange(1.0, 13).view(2, 3, 2)
    tokens = UNPADDING.unpad(padded)
    assert tokens.tolist() == [[1, 2], [5, 6], [9, 10]]
    assert UNPADDING.pad(tokens).tolist() == [[[1, 2], [0, 0], [5, 6]], [[0, 0], [9, 10], [0, 0]]]


def test_gradients_are_exact() -> None:
    padded = torch.ones(2, 3, 2, dtype=torch.float64, requires_grad=True)
    tokens = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(UNPADDING.unpad, (padded,))
    assert torch.autograd.gradcheck(UNPADDING.pad, (tokens,))
