"""CompleteP (Dey 2025, arXiv 2505.01618, table 1): every factor by hand, and what it equals."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from apollo_cli.models.build import build
from apollo_cli.models.dropout import attention
from apollo_cli.models.flops import training_flops
from apollo_cli.models.model_config import CompleteP, Initialization, Kind, ModelConfig, Multipliers
from apollo_cli.models.parametrization import in_parametrization, restated
from apollo_cli.models.transformer import Batch, Block, LanguageModel
from tests.models.test_transformer import make_model

BASE = CompleteP(hidden=16, layers=2, head_width=4)
GPT = ModelConfig(
    "gpt", vocabulary=31, positions=12, hidden=48, heads=6, ffn=80, layers=6, complete_p=BASE, norm="pre"
)
each_kind = pytest.mark.parametrize("kind", ["bert", "gpt", "llama"])


def make_tokens() -> Tensor:
    return torch.randint(31, (3, 10), generator=torch.Generator().manual_seed(1))


def standard(model: LanguageModel) -> LanguageModel:
    """The same weights without any factor."""
    plain = build(replace(model.model_config, complete_p=None), len(model.blocks))
    plain.load_state_dict(model.state_dict())
    return plain


def test_the_factors_by_hand() -> None:
    """Three times the base's width, heads of 8 in place of 4; 6, 3 and 1 of its 2 layers."""
    assert GPT.multipliers(6) == Multipliers(1 / 3, 2**-0.5, 1 / 3)
    assert GPT.multipliers(3).branch == 2 / 3
    assert GPT.multipliers(1).branch == 2
    assert (GPT.width_ratio, GPT.depth_ratio(6), GPT.depth_ratio(1), GPT.depth_ratio(0)) == (3, 3, 0.5, 0.5)
    plain = replace(GPT, complete_p=None)
    assert (plain.multipliers(6), plain.width_ratio, plain.depth_ratio(6)) == (Multipliers(), 1, 1)
    assert GPT.narrowed(1 / 3).multipliers(2) == Multipliers(1, 2**-0.5, 1)


@each_kind
@pytest.mark.parametrize("residual", ["plain", "by_depth"])
def test_at_the_base_it_is_the_standard_parametrization_bit_for_bit(kind: Kind, residual: str) -> None:
    init = Initialization(residual=residual)  # type: ignore[arg-type]
    config = replace(GPT, kind=kind, hidden=16, heads=4, layers=2, init=init)
    losses, grads, states = [], [], []
    for complete_p in (BASE, None):
        torch.manual_seed(0)
        model = build(replace(config, complete_p=complete_p), 2)
        tokens = make_tokens()
        loss = model.loss(Batch(tokens, torch.arange(30), tokens.flatten()), (0, 1))
        loss.backward()
        losses.append(loss.item())
        grads.append([p.grad for p in model.parameters()])
        states.append(list(model.state_dict().values()))
    assert losses[0] == losses[1]
    assert all(map(torch.equal, *states))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True) if a is not None and b is not None)


@each_kind
@torch.no_grad()
def test_the_multiplier_follows_the_depth_that_runs(kind: Kind) -> None:
    """Shared or not: each half of a layer adds base layers / depth of what it adds without a factor."""
    model, tokens = make_model(replace(GPT, kind=kind), 3), make_tokens()
    rotation = model._rotation(0, 10)
    for layer_map in ((0, 1, 2), (0, 0, 1, 1, 2), (1,), (0, 2)):
        hidden = model.embed(tokens)
        for i in layer_map:
            block = model.blocks[i]
            assert isinstance(block, Block)
            hidden = hidden + 2 / len(layer_map) * block._attention(
                block.attention_norm(hidden), None, None, rotation, None
            )
            hidden = hidden + 2 / len(layer_map) * block._feed_forward(block.ffn_norm(hidden))
        torch.testing.assert_close(model.trunk(tokens, layer_map), hidden)
    torch.testing.assert_close(model.trunk(tokens, (0, 1, 2), frozen=2), model.trunk(tokens, (0, 1, 2)))
    part = model.trunk(tokens, (0,), depth=3)
    torch.testing.assert_close(part, model.trunk(tokens, (0, 1, 2), gates={1: 0.0, 2: 0.0}))


@torch.no_grad()
def test_scores_and_logits_by_hand() -> None:
    """Heads of 8 where the base's have 4: scores / (8 / 2); logits / 3, of a tied decoder and an untied one."""
    model, tokens = make_model(GPT, 1), make_tokens()
    block = model.blocks[0]
    assert isinstance(block, Block)
    hidden = torch.randn(3, 10, 48)
    query, key, value = block.qkv(hidden).unflatten(-1, (3, 6, 8)).permute(2, 0, 3, 1, 4)
    scores = query @ key.mT / 4
    mask = torch.ones(10, 10, dtype=torch.bool).tril()
    mixed = (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block._attention(hidden, None, None, None, None), block.attention_out(mixed))
    for tied in (True, False):
        llama = make_model(replace(GPT, kind="llama", tied=tied), 1)
        hidden = llama.trunk(tokens, (0,))
        torch.testing.assert_close(llama.head(hidden), standard(llama).head(hidden) / 3)
    plain = attention(query, key, value, None, causal=True, probability=0.0, scale=0.25)
    torch.manual_seed(0)
    dropped = [attention(query, key, value, None, causal=True, probability=0.2, scale=0.25) for _ in range(3000)]
    assert (torch.stack(dropped).mean(0) - plain).abs().max() < 0.06


@each_kind
@pytest.mark.parametrize(("residual", "parts"), [("plain", 1), ("by_depth", 4)])
def test_hidden_matrices_begin_smaller_and_embeddings_as_the_base(kind: Kind, residual: str, parts: int) -> None:
    """Four times the width: half of the deviation; by_depth counts the base's two layers, not the 6."""
    init = Initialization(std=0.02, positions_std=0.03, residual=residual)  # type: ignore[arg-type]
    sizes = {"hidden": 64, "heads": 4, "ffn": 256, "vocabulary": 200, "positions": 64}
    config = replace(GPT, kind=kind, init=init, tied=kind != "llama", **sizes)  # type: ignore[arg-type]
    for name, p in make_fresh(config).named_parameters():
        if p.ndim == 2:
            leaf = name.removeprefix("blocks.0.").partition(".")[0]
            embeddings = {"tokens": 0.02, "decoder": 0.02, "positions": 0.03, "segments": 0.02}
            into_residual = 0.01 / parts**0.5 if leaf.endswith("_out") else 0.01
            expected = embeddings.get(leaf, into_residual)
            assert p.std().item() == pytest.approx(expected, rel=4 / (2 * p.numel()) ** 0.5), name


def make_fresh(config: ModelConfig) -> LanguageModel:
    torch.manual_seed(0)
    return build(config, 1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_plain_weights_compute_the_same_and_there_is_a_way_back(
    tied: bool, kv_heads: int | None, layers: int
) -> None:
    for kind in ("bert", "gpt", "llama"):
        of_llama = {"tied": tied, "kv_heads": kv_heads} if kind == "llama" else {}
        model, tokens = make_model(replace(GPT, kind=kind, **of_llama), layers), make_tokens()  # type: ignore[arg-type]
        plain = in_parametrization(model, None)
        expected = model.logits(tokens, range(layers))
        assert plain.model_config.complete_p is None
        assert (standard(model).logits(tokens, range(layers)) - expected).abs().max() > 0.1
        torch.testing.assert_close(plain.logits(tokens, range(layers)), expected, rtol=0, atol=1e-5)
        back = in_parametrization(plain, BASE)
        torch.testing.assert_close(back.logits(tokens, (0, 0)), model.logits(tokens, (0, 0)), rtol=0, atol=1e-5)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(back.state_dict()[name], tensor)
        assert in_parametrization(plain, None) is plain


def test_each_parameter_takes_its_factor() -> None:
    old, new = Multipliers(branch=0.5, scores=0.25, logits=3.0), Multipliers()
    two = torch.full((6, 1), 2.0)
    expected = {
        "blocks.3.attention_out.bias": 1.0,
        "blocks.3.ffn_out.weight": 1.0,
        "final_norm.weight": 6.0,
        "transform_norm.bias": 6.0,
        "transform.weight": 2.0,
        "encoder_norm.weight": 2.0,
        "blocks.0.ffn_in.weight": 2.0,
        "blocks.0.attention_norm.weight": 2.0,
        "tokens.weight": 2.0,
        "head_bias": 2.0,
    }
    for name, value in expected.items():
        assert restated(name, two, 2, old, new).unique().item() == value, name
    queries = restated("blocks.0.qkv.bias", two, 2, old, new)
    assert queries.flatten().tolist() == [0.5, 0.5, 2, 2, 2, 2]


@each_kind
def test_the_factors_cost_no_flops(kind: Kind) -> None:
    config = replace(GPT, kind=kind)
    model, tokens = make_model(config, 2), make_tokens()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(Batch(tokens, torch.arange(30), tokens.flatten()), (0, 0, 1)).backward()
    assert counter.get_total_flops() == training_flops(config, 3, 10, 3, 30)


@pytest.mark.slow
def test_blocks_are_compiled_once_for_every_depth() -> None:
    """The factor is an input of the graph, not a constant of it; that of the base's depth, 1, has its own graph."""
    import torch._dynamo

    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model, tokens = make_model(GPT, 2), make_tokens()
    plain = make_model(GPT, 2)
    for block in model.blocks:
        block.compile()
    for depth in (2, 3, 4, 5, 6):
        layer_map = [i * 2 // depth for i in range(depth)]
        torch.testing.assert_close(model.trunk(tokens, layer_map), plain.trunk(tokens, layer_map))
    assert counters["stats"]["unique_graphs"] == 2


def test_a_block_outside_a_model_has_no_factor() -> None:
    block = make_model(GPT, 1).blocks[0]
    hidden = torch.randn(2, 5, 48)
    assert isinstance(block, nn.Module)
    assert torch.equal(block(hidden), block(hidden, multiplier=None))
