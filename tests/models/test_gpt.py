import pytest
import torch
import torch.nn.functional as F

from apollo_cli.models.gpt import Gpt
from apollo_cli.models.model_config import ModelConfig
from tests.models.test_transformer import make_model

SHAPE = ModelConfig("gpt", vocabulary=31, positions=12, hidden=16, heads=4, ffn=40, layers=6)


@pytest.fixture
def model() -> Gpt:
    gpt = make_model(SHAPE, 3)
    assert isinstance(gpt, Gpt)
    return gpt


def test_loss_at_a_position_has_no_gradient_for_later_tokens(model: Gpt) -> None:
    embedded = model.embed(torch.arange(10)[None]).detach().requires_grad_()
    hidden = embedded
    for block in model.blocks:
        hidden = block(hidden)
    hidden[0, 4].square().sum().backward()
    assert embedded.grad is not None
    assert (embedded.grad[0, :5].abs().amax(dim=1) > 0).all()
    assert (embedded.grad[0, 5:] == 0).all()


def test_embeddings_are_tokens_and_positions(model: Gpt) -> None:
    tokens = torch.tensor([[3, 1, 4], [1, 5, 9]])
    for row, ids in enumerate(tokens.tolist()):
        for place, token in enumerate(ids):
            expected = model.tokens.weight[token] + model.positions.weight[place]
            assert torch.equal(model.embed(tokens)[row, place], expected)


def test_decoder_is_the_token_embedding_after_the_final_norm(model: Gpt) -> None:
    hidden = torch.randn(5, 16)
    normed = F.layer_norm(hidden, (16,), model.final_norm.weight, model.get_parameter("final_norm.bias"), eps=1e-5)
    torch.testing.assert_close(model.head(hidden), normed @ model.tokens.weight.T)
