import pytest
import torch
import torch.nn.functional as F

from apollo_cli.models.gpt import Gpt
from apollo_cli.models.model_config import ModelConfig

SHAPE = ModelConfig("gpt", vocabulary=31, positions=12, hidden=16, heads=4, ffn=40, layers=6)


@pytest.fixture
def model() -> Gpt:
    torch.manual_seed(0)
    gpt = Gpt(SHAPE, 3)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return gpt


@pytest.mark.parametrize("changed", [0, 1, 5, 9])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "with mask"])
def test_later_token_does_not_change_earlier_logits(model: Gpt, changed: int, masked: bool) -> None:
    tokens = torch.arange(20).view(2, 10)
    other = tokens.clone()
    other[:, changed] = 30
    seen = torch.ones_like(tokens, dtype=torch.bool) if masked else None
    before, after = (model.logits(ids, (0, 0, 1, 2), seen) for ids in (tokens, other))
    torch.testing.assert_close(before[:, :changed], after[:, :changed], rtol=0, atol=1e-6)
    assert ((before - after)[:, changed:].abs().amax(dim=2) > 1e-4).all()


def test_loss_at_a_position_has_no_gradient_for_later_tokens(model: Gpt) -> None:
    embedded = model.embed(torch.arange(10)[None]).detach().requires_grad_()
    hidden = embedded
    for block in model.blocks:
        hidden = block(hidden)
    hidden[0, 4].square().sum().backward()
    assert embedded.grad is not None
    assert (embedded.grad[0, :5].abs().amax(dim=1) > 0).all()
    assert (embedded.grad[0, 5:] == 0).all()


def test_residual_stream_is_normed_only_on_its_way_into_a_part(model: Gpt) -> None:
    with torch.no_grad():
        for block in model.blocks:
            for projection in ("attention_out", "ffn_out"):
                block.get_parameter(f"{projection}.weight").zero_()
                block.get_parameter(f"{projection}.bias").zero_()
    tokens = torch.arange(10)[None]
    assert torch.equal(model.trunk(tokens, range(3)), model.embed(tokens))


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
