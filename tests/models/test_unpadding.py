import torch

from apollo_cli.models.unpadding import Unpadding

SEEN = torch.tensor([[True, False, True], [False, True, False]])


def test_only_what_is_seen_is_kept_and_comes_back_to_its_place() -> None:
    unpadding = Unpadding.of(SEEN, SEEN[:, None, None])
    padded = torch.arange(1.0, 13).view(2, 3, 2)
    packed = unpadding.together(padded)
    assert packed.tolist() == [[1, 2], [5, 6], [9, 10]]
    assert unpadding.apart(packed).tolist() == [[[1, 2], [0, 0], [5, 6]], [[0, 0], [9, 10], [0, 0]]]


def test_gradients_take_the_same_ways() -> None:
    unpadding = Unpadding.of(SEEN, SEEN[:, None, None])
    padded = torch.ones(2, 3, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unpadding.together, (padded,))
    assert torch.autograd.gradcheck(unpadding.apart, (packed,))
