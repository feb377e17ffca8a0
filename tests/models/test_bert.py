from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apollo_cli.models.bert import Bert
from apollo_cli.models.model_config import ModelConfig
from tests.models.test_transformer import make_model

SHAPE = ModelConfig("bert", vocabulary=31, positions=12, hidden=16, heads=4, ffn=40, layers=6)


@pytest.fixture
def model() -> Bert:
    return make_bert(SHAPE)


def make_bert(model_config: ModelConfig) -> Bert:
    bert = make_model(model_config, 3)
    assert isinstance(bert, Bert)
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
    weight, bias = (model.get_parameter(f"embedding_norm.{leaf}") for leaf in ("weight", "bias"))
    for row, ids in enumerate(tokens.tolist()):
        for place, token in enumerate(ids):
            summed = model.tokens.weight[token] + model.positions.weight[place] + model.segments.weight[0]
            centred = summed - summed.mean()
            expected = centred / centred.square().mean().sqrt() * weight + bias
            torch.testing.assert_close(model.embed(tokens)[row, place], expected)


def test_decoder_is_the_token_embedding_and_a_bias(model: Bert) -> None:
    hidden = torch.randn(5, 16)
    transformed = model.transform_norm(F.gelu(model.transform(hidden)))
    torch.testing.assert_close(model.head(hidden), transformed @ model.tokens.weight.T + model.head_bias)


def test_pre_norm_normalises_before_each_part_and_after_the_last_layer_alone() -> None:
    """The embeddings are their sum; a token that all attend to alike would be the mean of the values."""
    model, tokens = make_bert(replace(SHAPE, norm="pre")), torch.arange(10)[None]
    assert "embedding_norm.weight" not in model.state_dict()
    hidden = model.tokens.weight[:10] + model.positions.weight[:10] + model.segments.weight[0]
    torch.testing.assert_close(model.embed(tokens)[0], hidden)
    with torch.no_grad():
        for block in model.blocks:
            block.get_parameter("qkv.weight")[:16].zero_()  # no query, so all scores are equal
            block.get_parameter("qkv.bias")[:16].zero_()

    def normalised(values: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        centred = values - values.mean(-1, keepdim=True)
        scaled = centred / centred.square().mean(-1, keepdim=True).sqrt()
        return scaled * norm.get_parameter("weight") + norm.get_parameter("bias")

    for block in model.blocks:
        part = block.get_submodule
        values = part("qkv")(normalised(hidden, part("attention_norm")))[:, 32:].mean(0)
        hidden = hidden + part("attention_out")(values)
        inner = F.gelu(part("ffn_in")(normalised(hidden, part("ffn_norm"))))
        hidden = hidden + part("ffn_out")(inner)
    torch.testing.assert_close(model.trunk(tokens, range(3))[0], hidden)
    transformed = F.gelu(model.transform(normalised(hidden, model.encoder_norm)))
    expected = normalised(transformed, model.transform_norm) @ model.tokens.weight.T + model.get_parameter(
        "head_bias"
    )
    torch.testing.assert_close(model.logits(tokens, range(3))[0], expected)


def test_order_of_the_tokens_matters_through_positions_alone(model: Bert) -> None:
    tokens, turned = torch.arange(10)[None], torch.arange(10).flip(0)[None]
    forward, backward = model.logits(tokens, range(3)), model.logits(turned, range(3)).flip(1)
    assert not torch.allclose(forward, backward, atol=1e-3)
    with torch.no_grad():
        model.positions.weight.zero_()
    forward, backward = model.logits(tokens, range(3)), model.logits(turned, range(3)).flip(1)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-5)
