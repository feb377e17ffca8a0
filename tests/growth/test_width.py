from dataclasses import replace

import numpy as np
import pytest
import torch

from apollo_cli.growth.expanders import Bert2Bert, Expander, Lemon
from apollo_cli.growth.width import Sizes, Space, axes_of, spaces, widened, widened_layers, width_problems
from apollo_cli.models.build import build
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.training.init_from.weights import init_from_smaller, sizes

BERT = ModelConfig("bert", vocabulary=31, positions=12, hidden=8, heads=2, ffn=12, layers=2)
GPT, PRE_NORM_BERT = replace(BERT, kind="gpt"), replace(BERT, norm="pre")
LLAMA = replace(BERT, kind="llama", tied=False)
GROUPED = replace(BERT, kind="llama", hidden=16, heads=4, kv_heads=2)
each_model = pytest.mark.parametrize(
    "model_config", [BERT, PRE_NORM_BERT, GPT, LLAMA, GROUPED], ids=["bert", "pre-norm", "gpt", "llama", "grouped"]
)


def make_model(model_config: ModelConfig, layers: int) -> LanguageModel:
    """None of its parameters is at a round value."""
    torch.manual_seed(0)
    model = build(model_config, layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def grown(source: LanguageModel, model_config: ModelConfig, layers: int, expander: Expander) -> LanguageModel:
    model = build(model_config, layers).eval()
    init_from_smaller(model, source, expander, np.random.default_rng(0))
    return model


def logits(model: LanguageModel) -> torch.Tensor:
    tokens = torch.arange(30).view(3, 10) % 31
    with torch.no_grad():
        return model.logits(tokens, range(len(model.blocks)))


@each_model
def test_every_parameter_has_its_axes(model_config: ModelConfig) -> None:
    model = build(model_config, 1)
    names = {name.removeprefix("blocks.0."): p for name, p in model.named_parameters()}
    axes = {name: axes_of(name, tied=model_config.tied) for name in names}
    assert {name for name in names if not axes[name]} <= {"head_bias"}
    assert all(len(axes[name]) == parameter.ndim for name, parameter in names.items() if axes[name])


@pytest.mark.parametrize("rule", ["fpi", "aki", "lemon"])
def test_weights_that_read_copies_have_the_sum_of_the_old_ones(rule: str) -> None:
    found = spaces(rule, Sizes(8, 2, 12), Sizes(16, 4, 30), np.random.default_rng(1))
    for space in found.values():
        old = space.out.shape[1]
        torch.testing.assert_close(space.into.t() @ space.out, torch.eye(old))
        assert torch.equal(space.out[:old], torch.eye(old))
        assert torch.equal(space.out.sum(1), torch.ones(len(space.out)))


@each_model
@pytest.mark.parametrize("expander", [Bert2Bert("fpi"), Lemon()], ids=str)
def test_heads_and_feed_forward_of_any_width_keep_the_function(
    expander: Expander, model_config: ModelConfig
) -> None:
    source = make_model(model_config, 2)
    wide = grown(source, replace(model_config, ffn=29), 2, expander)
    torch.testing.assert_close(logits(wide), logits(source), rtol=1e-4, atol=1e-4)


@each_model
@pytest.mark.parametrize("times", [2, 3])
def test_lemon_keeps_the_function_exactly_but_for_rounding(model_config: ModelConfig, times: int) -> None:
    source = make_model(model_config, 2)
    large = replace(model_config.narrowed(times), ffn=12 * times + 5)
    wide = grown(source, large, 2, Lemon())
    torch.testing.assert_close(logits(wide), logits(source), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model_config", [PRE_NORM_BERT, GPT, LLAMA, GROUPED], ids=["pre-norm", "gpt", "llama", "grouped"]
)
def test_lemon_keeps_the_function_of_a_pre_norm_model_in_depth_too(model_config: ModelConfig) -> None:
    source = make_model(model_config, 2)
    large = replace(model_config.narrowed(2), ffn=30)
    deep = grown(source, large, 5, Lemon())
    torch.testing.assert_close(logits(deep), logits(source), rtol=1e-4, atol=1e-4)


def test_copies_of_lemon_are_read_with_different_weights() -> None:
    space = spaces("lemon", Sizes(8, 2, 12), Sizes(16, 4, 24), np.random.default_rng(0))["residual"]
    read = space.into.sum(1).view(2, 8)
    assert ((read[0] - read[1]).abs() > 1e-3).all()


@each_model
def test_fpi_keeps_the_function_up_to_the_statistics_of_the_norms(model_config: ModelConfig) -> None:
    """A width that is no multiple counts some units twice and others once; AKI changes far more."""
    source = make_model(model_config, 2)
    large = replace(model_config.narrowed(1.5), ffn=20)
    before = logits(source)
    fpi, aki = (
        (logits(grown(source, large, 2, rule)) - before).std() for rule in (Bert2Bert("fpi"), Bert2Bert("aki"))
    )
    assert 0.001 < fpi < 0.8 * before.std()
    assert aki > 0.001


def test_fpi_by_hand() -> None:
    """bert2BERT's figure: 2 -> 3 units, the new one a copy of the first."""
    out = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    into = torch.tensor([[0.5, 0], [0, 1], [0.5, 0]])
    found = {name: Space(out, into) for name in ("residual", "ffn", "query", "key", "value", "mixed")}
    weight = torch.tensor([[1.0, 2], [3, 4]])  # (out, in)
    expected = torch.tensor([[0.5, 2, 0.5], [1.5, 4, 1.5], [0.5, 2, 0.5]])
    assert torch.equal(widened("ffn_in.weight", weight, found), expected)
    assert torch.equal(widened("ffn_out.weight", weight, found), expected)
    qkv = widened("qkv.weight", torch.cat((weight, 10 * weight, 100 * weight)), found)
    assert torch.equal(qkv, torch.cat((expected, 10 * expected, 100 * expected)))
    assert torch.equal(widened("ffn_in.bias", torch.tensor([1.0, 2]), found), torch.tensor([1.0, 2, 1]))
    assert torch.equal(widened("final_norm.weight", torch.tensor([1.0, 2]), found), torch.tensor([0.5, 2, 0.5]))
    assert torch.equal(widened("tokens.weight", torch.tensor([[1.0, 2]]), found), torch.tensor([[1.0, 2, 1]]))
    assert torch.equal(widened("head_bias", torch.tensor([1.0, 2]), found), torch.tensor([1.0, 2]))


def test_aki_by_hand() -> None:
    """New output units come from the layer above, read as in the own layer; the last layer has its own."""
    out = torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    into = torch.tensor([[1.0, 0], [0, 0.5], [0, 0.5]])
    found = {name: Space(out, into) for name in ("residual", "ffn", "query", "key", "value")}
    layers = [
        {"ffn_in.weight": torch.tensor([[1.0, 2], [3, 4]]) * k, "ffn_norm.weight": torch.tensor([5.0, 6]) * k}
        for k in (1, 10)
    ]
    low, high = widened_layers(layers, found, new_from_above=True)
    assert torch.equal(low["ffn_in.weight"], torch.tensor([[1.0, 1, 1], [3, 2, 2], [30, 20, 20]]))
    assert torch.equal(high["ffn_in.weight"], torch.tensor([[10.0, 10, 10], [30, 20, 20], [30, 20, 20]]))
    assert torch.equal(low["ffn_norm.weight"], torch.tensor([5.0, 6, 6]))


def test_widths_that_cannot_grow_are_reported() -> None:
    assert width_problems("fpi", Sizes(8, 2, 12), Sizes(12, 3, 12)) == []
    (shrinks,) = width_problems("fpi", Sizes(8, 2, 12), Sizes(8, 2, 6))
    assert "model.ffn=6 is less than the source's 12" in shrinks
    (heads,) = width_problems("fpi", Sizes(8, 2, 12), Sizes(16, 2, 12))
    assert "heads are copied whole" in heads
    assert "so model.heads must be 4" in heads
    odd = width_problems("fpi", Sizes(16, 1, 16), Sizes(40, 2, 40))
    assert "have 16 units: model.hidden=40, and that is no multiple of it" in odd[0]
    (multiple,) = width_problems("lemon", Sizes(8, 2, 12), Sizes(12, 3, 12))
    assert "not a whole multiple" in multiple
    (grouped,) = width_problems("fpi", Sizes(16, 4, 12, 2), Sizes(32, 8, 24, 8))
    assert "model.heads=8, so model.kv_heads must be 4" in grouped
    assert sizes(BERT) == Sizes(8, 2, 12)
    assert sizes(GROUPED) == Sizes(16, 4, 12, heads_per_kv=2)


def test_query_heads_are_copied_with_the_keys_and_values_that_they_read() -> None:
    """Query head i reads key head i // 2; key head 2 is a copy of key head g, so heads 4 and 5 of 2g and 2g + 1."""
    found = spaces("fpi", Sizes(8, 4, 4, 2), Sizes(12, 6, 4, 2), np.random.default_rng(3))
    key, query = found["key"].out, found["query"].out
    assert key.shape == (6, 4)
    assert query.shape == (12, 8)
    g = key[4].argmax().item() // 2
    assert torch.equal(query[8:], torch.eye(8)[4 * g : 4 * g + 4])


def test_a_decoder_of_its_own_reads_what_the_final_norm_writes() -> None:
    space = Space(torch.tensor([[1.0, 0], [0, 1], [1, 0]]), torch.tensor([[0.5, 0], [0, 1], [0.5, 0]]))
    row = torch.tensor([[1.0, 2]])
    assert torch.equal(
        widened("decoder.weight", row, {"residual": space}, tied=False), torch.tensor([[0.5, 2, 0.5]])
    )
    norm = widened("final_norm.weight", row[0], {"residual": space}, tied=False)
    assert torch.equal(norm, torch.tensor([1.0, 2, 1]))
