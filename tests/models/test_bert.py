import pytest
import torch
import torch.nn.functional as F

from apollo_cli.models.bert import Bert
from apollo_cli.models.model_config import ModelConfig

SHAPE = ModelConfig("bert", vocabulary=31, positions=12, hidden=16, heads=4, ffn=40, layers=6)


@pytest.fixture
def model() -> Bert:
    torch.manual_seed(0)
    bert = Bert(SHAPE, 3)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return bert


@pytest.mark.parametrize("changed", [0, 5, 9])
def test_every_token_attends_to_every_token(model: Bert, changed: int) -> None:
    tokens = torch.arange(10)[None]
    other = tokens.clone()
    other[0, changed] = 30
    difference = (model.logits(tokens, (0,)) - model.logits(other, (0,))).abs().amax(dim=2)[0]
    assert (difference > 1e-4).all()


def test_norm_follows_each_residual_sum(model: Bert) -> None:
    with torch.no_grad():
        for block in model.blocks:
            block.get_parameter("ffn_norm.weight").fill_(1)
            block.get_parameter("ffn_norm.bias").fill_(0)
    hidden = model.trunk(torch.arange(10)[None], range(3))
    torch.testing.assert_close(hidden.mean(dim=-1), torch.zeros(1, 10), rtol=0, atol=1e-6)
    torch.testing.assert_close(hidden.var(dim=-1, correction=0), torch.ones(1, 10))


def test_embeddings_are_tokens_positions_and_the_first_segment_normalised(model: Bert) -> None:
    tokens = torch.tensor([[3, 1, 4], [1, 5, 9]])
    norm = model.embedding_norm
    for row, ids in enumerate(tokens.tolist()):
        for place, token in enumerate(ids):
            summed = model.tokens.weight[token] + model.positions.weight[place] + model.segments.weight[0]
            centred = summed - summed.mean()
            expected = centred / centred.square().mean().sqrt() * norm.weight + norm.get_parameter("bias")
            torch.testing.assert_close(model.embed(tokens)[row, place], expected)


def test_decoder_is_the_token_embedding_and_a_bias(model: Bert) -> None:
    hidden = torch.randn(5, 16)
    transformed = model.transform_norm(F.gelu(model.transform(hidden)))
    torch.testing.assert_close(model.head(hidden), transformed @ model.tokens.weight.T + model.head_bias)


def test_order_of_the_tokens_matters_through_positions_alone(model: Bert) -> None:
    tokens, turned = torch.arange(10)[None], torch.arange(10).flip(0)[None]
    forward, backward = model.logits(tokens, range(3)), model.logits(turned, range(3)).flip(1)
    assert not torch.allclose(forward, backward, atol=1e-3)
    with torch.no_grad():
        model.positions.weight.zero_()
    forward, backward = model.logits(tokens, range(3)), model.logits(turned, range(3)).flip(1)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-5)
