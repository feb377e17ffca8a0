import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.models.build import build
from apollo_cli.models.flops import forward_flops, training_flops
from apollo_cli.models.model_config import Kind, ModelConfig, Norm
from apollo_cli.models.transformer import Batch

SIZES = [  # vocabulary, hidden, heads, ffn; rows, seq_len; stored, depth; predictions
    (31, 16, 2, 64, 2, 8, 1, 1, 3),
    (31, 16, 4, 64, 2, 8, 1, 12, 3),
    (31, 16, 1, 64, 1, 8, 3, 3, 1),
    (97, 24, 3, 50, 3, 11, 3, 8, 30),
    (1000, 32, 4, 128, 2, 16, 2, 5, 7),
    (50, 48, 2, 96, 1, 33, 6, 12, 33),
    (64, 64, 8, 256, 4, 2, 4, 4, 2),
    (513, 40, 5, 17, 5, 1, 3, 7, 5),
]
each_kind = pytest.mark.parametrize("kind", ["bert", "gpt", "llama"])
each_model = pytest.mark.parametrize(
    ("kind", "norm"), [("bert", "post"), ("bert", "pre"), ("gpt", "post"), ("llama", "post")]
)


@each_model
@pytest.mark.parametrize(
    ("vocabulary", "hidden", "heads", "ffn", "rows", "seq_len", "stored", "depth", "predictions"), SIZES
)
def test_formula_equals_torchs_own_count_to_the_last_digit(
    kind: Kind,
    norm: Norm,
    vocabulary: int,
    hidden: int,
    heads: int,
    ffn: int,
    rows: int,
    seq_len: int,
    stored: int,
    depth: int,
    predictions: int,
) -> None:
    check_against_torch(
        ModelConfig(kind, vocabulary, seq_len, hidden, heads, ffn, 12, norm=norm), rows, stored, depth, predictions
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("tied", [True, False])
def test_grouped_queries_and_an_untied_decoder_are_counted_as_torch_does(kv_heads: int, tied: bool) -> None:
    model_config = ModelConfig("llama", 97, 11, hidden=24, heads=6, ffn=50, layers=12, kv_heads=kv_heads, tied=tied)
    check_against_torch(model_config, rows=3, stored=2, depth=5, predictions=30)


def check_against_torch(model_config: ModelConfig, rows: int, stored: int, depth: int, predictions: int) -> None:
    model, seq_len = build(model_config, stored), model_config.positions
    tokens = torch.randint(model_config.vocabulary, (rows, seq_len))
    positions = torch.randperm(rows * seq_len)[:predictions]
    batch = Batch(tokens, positions, tokens.flatten()[positions])
    logical = layer_map("nearest", stored, depth)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        model.loss(batch, logical)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as both:
        model.loss(batch, logical).backward()
    assert forward_flops(model_config, rows, seq_len, depth, predictions) == forward.get_total_flops()
    assert training_flops(model_config, rows, seq_len, depth, predictions) == both.get_total_flops()


@each_model
@pytest.mark.parametrize(("layers", "frozen"), [(4, 1), (4, 3), (2, 1)])
@pytest.mark.parametrize("tied", [True, False])
def test_frozen_layers_and_a_decoder_that_stands_still_are_counted_as_torch_does(
    kind: Kind, norm: Norm, layers: int, frozen: int, tied: bool
) -> None:
    if not tied and kind != "llama":
        pytest.skip("only llama has a decoder of its own")
    model_config = ModelConfig(kind, 97, 11, hidden=24, heads=3, ffn=50, layers=layers, tied=tied, norm=norm)
    model = build(model_config, layers)
    tokens = torch.randint(97, (3, 11))
    batch = Batch(tokens, torch.arange(7), tokens.flatten()[:7])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(batch, range(layers), frozen=frozen).backward()
    assert training_flops(model_config, 3, 11, layers, 7, frozen) == counter.get_total_flops()


def test_bert_by_hand() -> None:
    model_config = ModelConfig("bert", vocabulary=100, positions=8, hidden=16, heads=2, ffn=64, layers=6)
    layer = (
        4 * 2 * 16 * 16 * 16  # Q, K, V, O: 16 tokens, 16 -> 16
        + 2 * 2 * 16 * 16 * 64  # feed-forward: 16 tokens, 16 -> 64 -> 16
        + 2 * 2 * (2 * 2) * 8 * 8 * 8  # scores and values: 2 rows x 2 heads of (8, 8) by (8, 8)
    )
    assert layer == 106_496
    head = 4 * (2 * 16 * 16 + 2 * 16 * 100)
    assert forward_flops(model_config, rows=2, seq_len=8, depth=3, predictions=4) == 3 * layer + head == 334_336
    assert training_flops(model_config, rows=2, seq_len=8, depth=3, predictions=4) == 1_003_008


def test_gpt_by_hand() -> None:
    model_config = ModelConfig("gpt", vocabulary=100, positions=8, hidden=16, heads=2, ffn=64, layers=6)
    decoder = 14 * 2 * 16 * 100
    assert forward_flops(model_config, rows=2, seq_len=8, depth=3, predictions=14) == 319_488 + decoder == 364_288
    assert training_flops(model_config, rows=2, seq_len=8, depth=3, predictions=14) == 1_092_864


def test_llama_by_hand() -> None:
    model_config = ModelConfig(
        "llama", vocabulary=100, positions=8, hidden=16, heads=4, ffn=48, layers=6, kv_heads=2
    )
    layer = (
        2 * 2 * 16 * 16 * 16  # Q and O: 16 tokens, 16 -> 16
        + 2 * 2 * 16 * 16 * 8  # K and V: 16 -> 2 heads of 4
        + 3 * 2 * 16 * 16 * 48  # SwiGLU's three matrices
        + 2 * 2 * (2 * 4) * 8 * 8 * 4  # scores and values: 2 rows x 4 heads of (8, 4) by (4, 8)
    )
    assert layer == 106_496
    decoder = 14 * 2 * 16 * 100
    assert forward_flops(model_config, rows=2, seq_len=8, depth=3, predictions=14) == 3 * layer + decoder == 364_288


@each_kind
def test_heads_and_stored_layers_do_not_change_the_cost(kind: Kind) -> None:
    costs = {
        forward_flops(ModelConfig(kind, 100, 8, 16, heads, 64, layers), 2, 8, 3, 4)
        for heads in (1, 4)
        for layers in (3, 12)
    }
    assert len(costs) == 1


@each_kind
def test_counts_beyond_64_bits_stay_exact(kind: Kind) -> None:
    model_config = ModelConfig(kind, 100, 10**6, 10**6, 1, 4 * 10**6, 1)
    per_token = 8 * 10**12 + (24 if kind == "llama" else 16) * 10**12 + 4 * 10**12
    assert forward_flops(model_config, 10**3, 10**6, 10**3, 0) == per_token * 10**12
