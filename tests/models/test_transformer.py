"""What holds for BERT and GPT alike."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.models import dropout, transformer
from apollo_cli.models.build import build, num_parameters
from apollo_cli.models.model_config import Kind, ModelConfig
from apollo_cli.models.transformer import Batch, LanguageModel

BERT = ModelConfig("bert", vocabulary=31, positions=12, hidden=16, heads=4, ffn=40, layers=6)
GPT, PRE_NORM_BERT = replace(BERT, kind="gpt"), replace(BERT, norm="pre")
LLAMA = replace(BERT, kind="llama", kv_heads=2)
each_model = pytest.mark.parametrize("model_config", [BERT, PRE_NORM_BERT, GPT], ids=["bert", "pre-norm", "gpt"])
each_causal = pytest.mark.parametrize("model_config", [GPT, LLAMA], ids=["gpt", "llama"])


def make_model(model_config: ModelConfig, layers: int) -> LanguageModel:
    """A model none of whose parameters is at a round value."""
    torch.manual_seed(0)
    model = build(model_config, layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_batch(model_config: ModelConfig, rows: int = 3, length: int = 10) -> Batch:
    random = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(model_config.vocabulary, (rows, length), generator=random) for _ in range(2))
    positions = torch.tensor([0, 4, 9, 13, 29])
    return Batch(tokens, positions, targets.flatten()[positions])


def unshared(model: LanguageModel, indices: tuple[int, ...]) -> LanguageModel:
    """A model that stores a copy of a layer for each of its uses."""
    copy = build(model.model_config, len(indices)).to(model.tokens.weight.dtype)
    copy.load_state_dict(model.state_dict(), strict=False)
    for block, i in zip(copy.blocks, indices, strict=True):
        block.load_state_dict(model.blocks[i].state_dict())
    return copy


def gradient(model: LanguageModel, name: str) -> Tensor:
    found = model.get_parameter(name).grad
    assert found is not None, name
    return found


@each_model
@pytest.mark.parametrize("indices", [(0,), (0, 0, 1), (0, 1, 2, 1, 2), layer_map("nearest", 3, 8)])
def test_shared_layers_compute_what_copies_of_them_compute(
    model_config: ModelConfig, indices: tuple[int, ...]
) -> None:
    model, tokens = make_model(model_config, 3), make_batch(model_config).tokens
    copy = unshared(model, indices)
    assert torch.equal(model.logits(tokens, indices), copy.logits(tokens, range(len(indices))))


@each_model
@pytest.mark.parametrize("indices", [(0, 1, 2), (0, 0, 1, 2), layer_map("nearest", 3, 8), (0, 1, 2, 1, 2)])
def test_shared_layer_gets_the_sum_of_gradients_over_its_uses(
    model_config: ModelConfig, indices: tuple[int, ...]
) -> None:
    model, batch = make_model(model_config, 3).double(), make_batch(model_config)
    copy = unshared(model, indices)
    model.loss(batch, indices).backward()
    copy.loss(batch, range(len(indices))).backward()
    for name, _ in model.named_parameters():
        if name.startswith("blocks."):
            _, i, leaf = name.split(".", 2)
            uses = [j for j, source in enumerate(indices) if source == int(i)]
            expected = sum(gradient(copy, f"blocks.{j}.{leaf}") for j in uses)
        else:
            expected = gradient(copy, name)
        assert gradient(model, name).abs().max() > 1e-12, name
        torch.testing.assert_close(gradient(model, name), expected, rtol=1e-10, atol=1e-14)


@each_causal
@pytest.mark.parametrize("changed", [0, 1, 5, 9])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "with mask"])
def test_later_token_does_not_change_earlier_logits(model_config: ModelConfig, changed: int, masked: bool) -> None:
    model, tokens = make_model(model_config, 3), torch.arange(20).view(2, 10)
    other = tokens.clone()
    other[:, changed] = 30
    seen = torch.ones_like(tokens, dtype=torch.bool) if masked else None
    before, after = (model.logits(ids, (0, 0, 1, 2), seen) for ids in (tokens, other))
    torch.testing.assert_close(before[:, :changed], after[:, :changed], rtol=0, atol=1e-6)
    assert ((before - after)[:, changed:].abs().amax(dim=2) > 1e-4).all()


@each_causal
def test_residual_stream_is_normed_only_on_its_way_into_a_part(model_config: ModelConfig) -> None:
    model, tokens = make_model(model_config, 3), torch.arange(10)[None]
    with torch.no_grad():
        for name, parameter in model.blocks.named_parameters():
            if "_out." in name:
                parameter.zero_()
    assert torch.equal(model.trunk(tokens, range(3)), model.embed(tokens))


@each_model
def test_layer_outside_the_map_gets_no_gradient(model_config: ModelConfig) -> None:
    model = make_model(model_config, 3)
    model.loss(make_batch(model_config), (0, 2)).backward()
    assert all(parameter.grad is None for parameter in model.blocks[1].parameters())
    assert all(parameter.grad is not None for parameter in model.blocks[2].parameters())


@each_model
def test_logical_layers_run_in_the_order_of_the_map(model_config: ModelConfig) -> None:
    model, tokens = make_model(model_config, 2), make_batch(model_config).tokens
    assert not torch.allclose(model.logits(tokens, (0, 1)), model.logits(tokens, (1, 0)), atol=1e-3)


@each_model
def test_loss_is_the_mean_cross_entropy_at_the_positions_by_hand(model_config: ModelConfig) -> None:
    model, batch = make_model(model_config, 3), make_batch(model_config)
    logits = model.logits(batch.tokens, (0, 0, 1, 2)).detach().double().numpy()
    losses = []
    for position, target in zip(batch.positions.tolist(), batch.targets.tolist(), strict=True):
        scores = logits[position // 10, position % 10]
        losses.append(np.log(np.exp(scores).sum()) - scores[target])
    assert model.loss(batch, (0, 0, 1, 2)).item() == pytest.approx(np.mean(losses), rel=1e-5)


@each_model
def test_untrained_loss_is_near_that_of_a_uniform_guess(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    loss = build(model_config, 3).loss(make_batch(model_config), range(3)).item()
    assert loss == pytest.approx(np.log(model_config.vocabulary), abs=0.1)


@each_model
@pytest.mark.parametrize("padded", [slice(7, None), slice(0, 3), slice(4, 6)], ids=["right", "left", "middle"])
def test_padding_does_not_change_the_logits_of_real_tokens(model_config: ModelConfig, padded: slice) -> None:
    model, tokens = make_model(model_config, 3).eval(), make_batch(model_config).tokens
    is_token = torch.ones_like(tokens, dtype=torch.bool)
    is_token[1, padded] = False
    other = torch.where(is_token, tokens, (tokens + 7) % model_config.vocabulary)
    logits, changed = (model.logits(ids, range(3), is_token) for ids in (tokens, other))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[is_token], changed[is_token], rtol=0, atol=1e-6)
    unmasked = model.logits(tokens, range(3))
    torch.testing.assert_close(logits[[0, 2]], unmasked[[0, 2]], rtol=0, atol=1e-5)


@each_model
def test_right_padding_equals_the_shorter_row_alone(model_config: ModelConfig) -> None:
    model, tokens = make_model(model_config, 3).eval(), make_batch(model_config).tokens
    is_token = torch.ones_like(tokens, dtype=torch.bool)
    is_token[:, 6:] = False
    padded, alone = model.logits(tokens, range(3), is_token), model.logits(tokens[:, :6], range(3))
    torch.testing.assert_close(padded[:, :6], alone, rtol=0, atol=1e-5)


def unpadded(model: LanguageModel, tokens: Tensor, is_token: Tensor, **more: Any) -> Tensor:
    """Logits of the tokens, (tokens, vocabulary); a causal model needs no mask for padding at the end."""
    indices = is_token.flatten().nonzero().squeeze(1)
    mask = None if model.model_config.kind == "gpt" else is_token
    hidden = model.trunk(tokens, range(len(model.blocks)), mask, token_indices=indices, **more)
    assert not hidden[~is_token].any()
    return model.head(hidden[is_token])


LENGTHS = torch.tensor([10, 1, 6])


@each_model
@pytest.mark.parametrize("more", [{}, {"frozen": 1}, {"gates": {2: 0.3}}], ids=["plain", "frozen", "gates"])
def test_without_padding_rows_and_gradients_are_those_of_each_row_alone(
    model_config: ModelConfig, more: dict[str, Any]
) -> None:
    model, tokens = make_model(model_config, 3), make_batch(model_config).tokens
    is_token = torch.arange(10) < LENGTHS[:, None]
    weights = torch.randn(*tokens.shape, model_config.vocabulary)
    logits = unpadded(model, tokens, is_token, **more)
    (logits * weights[is_token]).sum().backward()
    together = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    alone = [
        model.head(model.trunk(row[None, :length], range(3), **more))[0]
        for row, length in zip(tokens, LENGTHS.tolist(), strict=True)
    ]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-4)
    (torch.cat(alone) * weights[is_token]).sum().backward()
    torch.testing.assert_close(together, [parameter.grad for parameter in model.parameters()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_padding_that_attends_to_nothing_leaves_gradients_finite(dropout: float) -> None:
    """Padding before the first token of a causal row."""
    model, tokens = make_model(replace(GPT, dropout=dropout), 3).train(), make_batch(GPT).tokens
    is_token = torch.ones_like(tokens, dtype=torch.bool)
    is_token[1, :4] = False
    model.logits(tokens, range(3), is_token)[is_token].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@each_model
def test_rows_of_a_batch_do_not_attend_to_each_other(model_config: ModelConfig) -> None:
    model, tokens = make_model(model_config, 3), make_batch(model_config).tokens
    together = model.logits(tokens, range(3))
    for row, expected in zip(tokens, together, strict=True):
        torch.testing.assert_close(model.logits(row[None], range(3))[0], expected, rtol=0, atol=1e-5)


@each_model
def test_dropout_acts_in_training_only(model_config: ModelConfig) -> None:
    model, tokens = make_model(replace(model_config, dropout=0.3), 3), make_batch(model_config).tokens
    plain = build(model_config, 3)
    plain.load_state_dict(model.state_dict())
    expected = plain.logits(tokens, range(3))
    model.train()
    first, second = model.logits(tokens, range(3)), model.logits(tokens, range(3))
    assert not torch.allclose(first, second, atol=1e-2)
    assert not torch.allclose(first, expected, atol=1e-2)
    model.eval()
    assert torch.equal(model.logits(tokens, range(3)), expected)
    model.train()
    assert torch.equal(plain.train().logits(tokens, range(3)), expected)


@each_model
def test_dropout_acts_in_embeddings_attention_and_both_halves_of_a_layer(
    model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []

    def spy_dropout(hidden: Tensor, probability: float) -> Tensor:
        used.append(probability)
        return hidden

    def spy_attention(query: Tensor, *_: Tensor, probability: float, **more: Any) -> Tensor:
        used.append(probability)
        return query

    monkeypatch.setattr(dropout, "dropout", spy_dropout)
    monkeypatch.setattr(transformer, "attention", spy_attention)
    model, tokens = make_model(replace(model_config, dropout=0.3), 2), make_batch(model_config).tokens
    model.train().logits(tokens, (0, 1))
    assert used == [0.3] * 7
    used.clear()
    model.eval().logits(tokens, (0, 1))
    assert used == [0.0] * 7


@each_model
def test_weights_begin_at_the_published_spread(model_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build(replace(model_config, hidden=64, ffn=256, vocabulary=500, positions=64), 4)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif model_config.kind == "bert" or not name.endswith(("attention_out.weight", "ffn_out.weight")):
            tolerance = 4 * 0.02 / (2 * parameter.numel()) ** 0.5  # four standard errors
            assert parameter.std().item() == pytest.approx(0.02, abs=tolerance), name
            assert parameter.mean().item() == pytest.approx(0, abs=4 * 0.02 / parameter.numel() ** 0.5), name


@each_model
def test_initial_weights_follow_the_seed(model_config: ModelConfig) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build(model_config, 2).tokens.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@each_model
def test_layers_of_a_fresh_model_differ(model_config: ModelConfig) -> None:
    first, second = (block.get_parameter("qkv.weight") for block in build(model_config, 2).blocks)
    assert not torch.equal(first, second)


@each_model
def test_new_block_fits_among_the_others(model_config: ModelConfig) -> None:
    model, tokens = make_model(model_config, 2), make_batch(model_config).tokens
    expected = model.logits(tokens, (0, 1))
    block = model.new_block()
    block.load_state_dict(model.blocks[1].state_dict())
    model.blocks[1] = block
    assert torch.equal(model.logits(tokens, (0, 1)), expected)


@pytest.mark.parametrize(
    ("model_config", "parameters"),
    [  # counted by transformers: BertForMaskedLM of bert-base-uncased, GPT2LMHeadModel of gpt2 and gpt2-medium
        (ModelConfig("bert", 30522, 512, 768, 12, 3072, 12), 109_514_298),
        (ModelConfig("gpt", 50257, 1024, 768, 12, 3072, 12), 124_439_808),
        (ModelConfig("gpt", 50257, 1024, 1024, 16, 4096, 24), 354_823_168),
    ],
)
def test_published_models_have_their_published_size(model_config: ModelConfig, parameters: int) -> None:
    assert num_parameters(model_config, model_config.layers) == parameters


@each_model
@pytest.mark.parametrize("layers", [1, 3, 6])
def test_parameters_are_counted_by_stored_layers(model_config: ModelConfig, layers: int) -> None:
    model = build(model_config, layers)
    assert len(model.blocks) == layers
    assert num_parameters(model_config, layers) == model.num_parameters()
    assert model.num_parameters() == sum(tensor.numel() for tensor in model.state_dict().values())
    # Q K V and O 4 h^2 + 4 h, feed-forward 2 h f + f + h, two norms 4 h
    block = 4 * 16**2 + 4 * 16 + 2 * 16 * 40 + 40 + 16 + 4 * 16
    assert num_parameters(model_config, layers) - num_parameters(model_config, 1) == (layers - 1) * block


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_batch_moves_as_a_whole(kind: Kind) -> None:
    moved = make_batch(replace(BERT, kind=kind)).to(torch.device("meta"))
    assert {t.device.type for t in (moved.tokens, moved.positions, moved.targets)} == {"meta"}
