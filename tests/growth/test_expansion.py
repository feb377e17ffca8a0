from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apollo_cli.config.training import OptimArgs
from apollo_cli.growth.expanders import CopyLayers, Expander, Fresh, Growth, Interpolate, Msg, Net2Net, SplitCopies
from apollo_cli.growth.expansion import MOMENT_RULES, grow, hand_over_norm
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.models.bert import Bert
from apollo_cli.models.build import build
from apollo_cli.models.model_config import CompleteP, Kind, ModelConfig, Norm
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.init_from.weights import drawn_layers
from apollo_cli.training.optimizer import build_optimizer, parameter_groups
from tests.models import test_transformer

KINDS: tuple[Kind, ...] = ("bert", "gpt")
EXPANDERS: dict[str, Expander] = {
    "nearest": Interpolate("nearest"),
    "stack": CopyLayers("stack"),
    "linear": Interpolate("linear"),
    "net2net": Net2Net(),
    "split": SplitCopies(1.0),
    "fresh": Fresh(0.1),
}
VOCABULARY, LENGTH, TARGET = 23, 8, 12
OPTIM = OptimArgs(
    lr=1e-2,
    schedule="constant",
    knots=None,
    warmup=0.0,
    decay=0.1,
    final_lr=0.0,
    at_growth="continue",
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.1,
    clip=1.0,
)

each_model = pytest.mark.parametrize("kind", KINDS)
each_map = pytest.mark.parametrize("growth", EXPANDERS)
MOMENTS = (*MOMENT_RULES, "reset")
each_rule = pytest.mark.parametrize("moments", MOMENTS)


def make_model(kind: Kind, layers: int, norm: Norm = "post") -> LanguageModel:
    config = ModelConfig(kind, VOCABULARY, LENGTH, hidden=16, heads=2, ffn=32, layers=TARGET, norm=norm)
    return test_transformer.make_model(config, layers)


def train(model: LanguageModel, optimizer: AdamW, steps: int = 1) -> None:
    layers = len(model.blocks)
    for seed in range(steps):
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randint(VOCABULARY, (4, LENGTH), generator=random)
        batch = Batch(tokens, torch.arange(4 * LENGTH), tokens.roll(-1, dims=1).flatten())
        model.loss(batch, layer_map("nearest", layers, layers + 1)).backward()  # one layer runs twice
        optimizer.step()
        optimizer.zero_grad()


def trained(kind: Kind, layers: int, steps: int = 3, norm: Norm = "post") -> tuple[LanguageModel, AdamW]:
    model = make_model(kind, layers, norm)
    optimizer = build_optimizer(model, OPTIM)
    train(model, optimizer, steps)
    return model, optimizer


def expand(model: LanguageModel, optimizer: AdamW, growth: str, layers: int, moments: str = "map") -> None:
    expand_by(EXPANDERS[growth].growth(len(model.blocks), layers), model, optimizer, moments)


def expand_by(growth: Growth, model: LanguageModel, optimizer: AdamW, moments: str = "map") -> None:
    grown = nn.ModuleList(model.new_block() for _ in growth.matrix)
    drawn = drawn_layers(model, growth, np.random.default_rng(0))
    grow(model.blocks, grown, optimizer, growth, moments, drawn)
    model.blocks = grown


def weights(blocks: nn.ModuleList) -> dict[str, Tensor]:
    """A copy of every parameter, (layers, ...), by its name within a layer."""
    return {
        name: torch.stack([block.get_parameter(name).detach() for block in blocks])
        for name, _ in blocks[0].named_parameters()
    }


def states(
    blocks: nn.ModuleList, optimizer: AdamW, key: str, of: Callable[[Tensor], bool] = lambda _: True
) -> dict[str, list[Any]]:
    """A copy of one entry of the optimizer's state by name and layer; None where there is no state."""
    found: dict[str, list[Any]] = {}
    for block in blocks:
        for name, parameter in filter(lambda named: of(named[1]), block.named_parameters()):
            state = optimizer.state.get(parameter)
            found.setdefault(name, []).append(state[key].clone() if state else None)
    return found


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def weighted(coefficients: np.ndarray, tensors: Sequence[Tensor]) -> Tensor:
    return torch.tensordot(torch.from_numpy(coefficients), torch.stack(list(tensors)).double(), dims=1)


@each_model
@pytest.mark.parametrize("growth", ["nearest", "stack"])
@pytest.mark.parametrize(("source", "target"), [(1, 3), (3, 6), (3, 5), (5, 12), (4, 4)])
def test_copying_growth_copies_bit_for_bit(kind: Kind, growth: str, source: int, target: int) -> None:
    model, optimizer = trained(kind, source)
    with torch.no_grad():
        bias = model.blocks[0].get_parameter("ffn_out.bias")
        bias[:2] = torch.tensor([-0.0, 1e-42])  # lost by an addition or a flush to zero
    before = weights(model.blocks)
    expand(model, optimizer, growth, target)
    assert len(model.blocks) == target
    for name, grown in weights(model.blocks).items():
        assert same_bits(grown, before[name][list(layer_map(growth, source, target))]), name


@each_model
@pytest.mark.parametrize(("source", "target"), [(2, 3), (3, 5), (3, 6), (5, 12)])
def test_linear_growth_blends_neighbours(kind: Kind, source: int, target: int) -> None:
    model, optimizer = trained(kind, source)
    before = weights(model.blocks)
    expand(model, optimizer, "linear", target)
    for name, grown in weights(model.blocks).items():
        for i, layer in enumerate(grown):
            position = i * (source - 1) / (target - 1)
            low, high = before[name][int(position)], before[name][min(int(position) + 1, source - 1)]
            expected = torch.lerp(low.double(), high.double(), position - int(position))
            torch.testing.assert_close(layer.double(), expected, rtol=0, atol=1e-6)
        assert same_bits(grown[[0, -1]], before[name][[0, -1]])


@each_model
@each_rule
def test_embeddings_and_head_are_not_touched(kind: Kind, moments: str) -> None:
    model, optimizer = trained(kind, 3)
    non_block_params = {name: p for name, p in model.named_parameters() if not name.startswith("blocks.")}
    before = {name: parameter.detach().clone() for name, parameter in non_block_params.items()}
    expand(model, optimizer, "nearest", 6, moments)
    after = dict(model.named_parameters())
    for name, parameter in non_block_params.items():
        assert after[name] is parameter
        assert same_bits(parameter.detach(), before[name]), name


@each_model
def test_nearest_growth_preserves_the_full_depth_function_exactly(kind: Kind) -> None:
    model, optimizer = trained(kind, 1)
    model.eval()
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    for layers in (3, 6, 12):
        before = model.logits(tokens, layer_map("nearest", len(model.blocks), TARGET))
        expand(model, optimizer, "nearest", layers)
        assert len(model.blocks) == layers
        assert same_bits(model.logits(tokens, layer_map("nearest", layers, TARGET)), before)
        train(model, optimizer)  # so that the copies differ before they are copied again


@pytest.mark.parametrize(("kind", "norm"), [("gpt", "post"), ("bert", "pre")])
@pytest.mark.parametrize(("source", "target"), [(3, 6), (3, 5), (1, 4)])
def test_inserted_layers_add_nothing_in_a_pre_norm_model(kind: Kind, norm: Norm, source: int, target: int) -> None:
    model, optimizer = trained(kind, source, norm=norm)
    model.eval()
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    before = model.logits(tokens, range(source))
    expand(model, optimizer, "net2net", target)
    assert same_bits(model.logits(tokens, range(target)), before)


def on_top(source: int, target: int) -> Growth:
    matrix = CopyLayers("append").growth(source, target).matrix
    return Growth(matrix, zero_init=tuple(range(source, target)))


@pytest.mark.parametrize("make", [Net2Net().growth, Fresh(0.0).growth, on_top], ids=["net2net", "fresh", "on top"])
@pytest.mark.parametrize(("source", "target"), [(2, 4), (3, 5), (1, 4)])
def test_inserted_layers_add_nothing_in_a_post_norm_model(
    make: Callable[[int, int], Growth], source: int, target: int
) -> None:
    model, optimizer = trained("bert", source)
    model.eval()
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    for layers in (target, 2 * target):  # also where the norms of old layers are the identity
        before = model.logits(tokens, range(len(model.blocks)))
        expand_by(make(len(model.blocks), layers), model, optimizer)
        after = model.logits(tokens, range(layers))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
        train(model, optimizer)


@each_model
def test_net2net_by_hand(kind: Kind) -> None:
    """2 -> 4 is 0 0' 1 1': the copies have all of their layer but what they add to the residual stream.

    In a post-norm model the copies have norms with gain 1 and bias 0, but their output norm is that of the layer
    below, which has gain 1 and bias 0 instead.
    """
    model, optimizer = trained(kind, 2)
    before = weights(model.blocks)
    expand(model, optimizer, "net2net", 4)
    for name, grown in weights(model.blocks).items():
        zeros, fixed = torch.zeros_like(before[name]), torch.full_like(before[name], float("weight" in name))
        old, new = before[name], zeros if "_out." in name else before[name]
        if kind == "bert" and "attention_norm" in name:
            new = fixed
        if kind == "bert" and "ffn_norm" in name:
            old, new = fixed, before[name]
        assert same_bits(grown[[0, 2]], old), name
        assert same_bits(grown[[1, 3]], new), name


def test_the_output_norm_goes_to_the_last_new_layer_and_takes_its_moments_with_it() -> None:
    """1 -> 3 is 0 0' 0'': under `new` every other parameter of the copies is without moments."""
    model, optimizer = trained("bert", 1)
    norm = weights(model.blocks)["ffn_norm.weight"]
    before = states(model.blocks, optimizer, "exp_avg")
    expand(model, optimizer, "net2net", 3, "new")
    assert same_bits(
        weights(model.blocks)["ffn_norm.weight"], torch.cat((torch.ones_like(norm).repeat(2, 1), norm))
    )
    for name, (first, second, third) in states(model.blocks, optimizer, "exp_avg").items():
        assert second is None
        kept, none = (third, first) if name.startswith("ffn_norm.") else (first, third)
        assert none is None
        assert same_bits(kept, before[name][0]), name


@each_model
@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_split_by_hand(kind: Kind, exponent: float) -> None:
    """2 -> 5 is 0 0 0 1 1: the copies of layer 0 have a third of its output projections, those of 1 the half."""
    model, optimizer = trained(kind, 2)
    before = weights(model.blocks)
    expand_by(SplitCopies(exponent).growth(2, 5), model, optimizer)
    for name, grown in weights(model.blocks).items():
        for slot, (source, copies) in enumerate([(0, 3), (0, 3), (0, 3), (1, 2), (1, 2)]):
            factor = copies**-exponent if "_out." in name else 1.0
            torch.testing.assert_close(grown[slot], before[name][source] * factor)


@each_model
def test_fresh_by_hand(kind: Kind) -> None:
    """2 -> 4 is 0 new 1 new, drawn with a deviation of 0.02."""
    model = build(ModelConfig(kind, VOCABULARY, LENGTH, hidden=64, heads=2, ffn=128, layers=4), 2)
    optimizer = build_optimizer(model, OPTIM)
    train(model, optimizer)
    before = weights(model.blocks)
    expand_by(Fresh(0.1).growth(2, 4), model, optimizer, "map")
    for name, grown in weights(model.blocks).items():
        assert same_bits(grown[[0, 2]], before[name]), name
        for slot in (1, 3):
            if name.endswith("bias") or "norm" in name:
                assert (grown[slot] == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name
            else:
                assert grown[slot].std().item() == pytest.approx(0.002 if "_out." in name else 0.02, rel=0.1)
    assert not torch.equal(weights(model.blocks)["qkv.weight"][1], weights(model.blocks)["qkv.weight"][3])
    steps = states(model.blocks, optimizer, "step")
    assert all([value is not None for value in values] == [True, False, True, False] for values in steps.values())


@each_model
@pytest.mark.parametrize(
    ("growth", "old"),
    [
        ("nearest", {0: 0, 2: 1, 4: 2}),
        ("stack", {0: 0, 1: 1, 2: 2}),
        ("linear", {0: 0, 5: 2}),
        ("fresh", {0: 0, 2: 1, 4: 2}),
    ],
)
def test_new_moments_are_those_of_each_old_layer_where_it_now_stands(
    kind: Kind, growth: str, old: dict[int, int]
) -> None:
    model, optimizer = trained(kind, 3)
    before = states(model.blocks, optimizer, "exp_avg_sq")
    expand(model, optimizer, growth, 6, "new")
    for name, after in states(model.blocks, optimizer, "exp_avg_sq").items():
        for slot, tensor in enumerate(after):
            if slot in old:
                assert same_bits(tensor, before[name][old[slot]]), name
            else:
                assert tensor is None, name


def test_zero_init_copies_differ_from_their_originals_after_the_first_steps() -> None:
    model, optimizer = trained("gpt", 3)
    expand(model, optimizer, "net2net", 6, "reset")
    train(model, optimizer)
    assert all((block.get_parameter("ffn_out.weight") != 0).float().mean() > 0.9 for block in model.blocks)
    train(model, optimizer, steps=2)
    after = weights(model.blocks)["qkv.weight"]
    assert not torch.allclose(after[0], after[1])


@each_model
def test_stored_depth_function_changes_where_layers_are_added(kind: Kind) -> None:
    model, optimizer = trained(kind, 3)
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    before = model.logits(tokens, range(3))
    expand(model, optimizer, "nearest", 6)
    assert not torch.allclose(model.logits(tokens, range(6)), before, atol=1e-3)


@each_model
@each_map
@each_rule
def test_every_parameter_of_every_layer_trains_after_growth(kind: Kind, growth: str, moments: str) -> None:
    model, optimizer = trained(kind, 3)
    for layers in (5, 12):
        expand(model, optimizer, growth, layers, moments)
        if growth == "net2net":
            train(model, optimizer)  # what is behind a zero projection has its first gradient at the second step
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        train(model, optimizer)
        assert len(model.blocks) == layers
        for name, parameter in model.named_parameters():
            changed = (parameter.detach() != before[name]).float().mean()
            assert changed > 0.9, name


@each_model
@each_map
@each_rule
def test_optimizer_holds_the_model_and_nothing_else(kind: Kind, growth: str, moments: str) -> None:
    model, optimizer = trained(kind, 3)
    old = {id(parameter) for parameter in model.blocks.parameters()}
    expand(model, optimizer, growth, 6, moments)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters()}
    assert not old & set(held)
    assert {id(parameter) for parameter in optimizer.state} <= set(held)


@each_model
@each_map
@each_rule
def test_norms_and_biases_stay_without_weight_decay(kind: Kind, growth: str, moments: str) -> None:
    model, optimizer = trained(kind, 3)
    expand(model, optimizer, growth, 6, moments)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and "norm" not in name
        assert decay[id(parameter)] == (0.1 if is_matrix else 0.0), name


def test_settings_of_the_groups_are_kept() -> None:
    model, optimizer = trained("gpt", 3)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0123
    before = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    expand(model, optimizer, "nearest", 6, "reset")
    after = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    assert after == before


@each_model
@pytest.mark.parametrize("growth", ["nearest", "stack"])
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_mapped_moments_are_copied_with_their_layer(kind: Kind, growth: str, key: str) -> None:
    model, optimizer = trained(kind, 3)
    before = states(model.blocks, optimizer, key)
    expand(model, optimizer, growth, 5, "map")
    for name, after in states(model.blocks, optimizer, key).items():
        for slot, source in enumerate(layer_map(growth, 3, 5)):
            assert same_bits(after[slot], before[name][source]), name


@each_model
def test_mapped_moments_blend_by_coefficients_and_by_their_squares(kind: Kind) -> None:
    model, optimizer = trained(kind, 3)
    first, second = (states(model.blocks, optimizer, key) for key in ("exp_avg", "exp_avg_sq"))
    expand(model, optimizer, "linear", 5, "map")
    shares = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]])
    squares = np.array([[1, 0, 0], [0.25, 0.25, 0], [0, 1, 0], [0, 0.25, 0.25], [0, 0, 1]])
    for old, key, matrix in ((first, "exp_avg", shares), (second, "exp_avg_sq", squares)):
        for name, after in states(model.blocks, optimizer, key).items():
            expected = weighted(matrix, old[name])
            torch.testing.assert_close(torch.stack(after).double(), expected, rtol=1e-6, atol=1e-12)
    assert all(step == 3 for steps in states(model.blocks, optimizer, "step").values() for step in steps)


@each_map
def test_mapped_second_moments_are_never_negative(growth: str) -> None:
    model, optimizer = trained("bert", 5)
    expand(model, optimizer, growth, 12, "map")
    second = states(model.blocks, optimizer, "exp_avg_sq")
    assert all((moment >= 0).all() for layers in second.values() for moment in layers if moment is not None)


@each_map
@pytest.mark.parametrize("moments", ["map", "keep"])
def test_layers_of_one_source_have_moments_of_their_own(growth: str, moments: str) -> None:
    model, optimizer = trained("gpt", 2)
    expand(model, optimizer, growth, 6, moments)
    memory = [tensor.data_ptr() for state in optimizer.state.values() for tensor in state.values()]
    assert len(memory) == len(set(memory))
    had_state = {p for p in model.parameters() if p in optimizer.state}
    train(model, optimizer)
    assert all(optimizer.state[p]["step"] == (4 if p in had_state else 1) for p in model.parameters())


@each_model
@each_map
def test_kept_moments_stay_in_their_slot_and_new_slots_start_empty(kind: Kind, growth: str) -> None:
    model, optimizer = trained(kind, 3)
    before = {key: states(model.blocks, optimizer, key) for key in ("exp_avg", "exp_avg_sq", "step")}
    expand(model, optimizer, growth, 6, "keep")
    for key, old in before.items():
        for name, after in states(model.blocks, optimizer, key).items():
            assert all(same_bits(now, then) for now, then in zip(after[:3], old[name], strict=True)), name
            assert after[3:] == [None] * 3
    train(model, optimizer)
    assert all(
        [float(step) for step in steps] == [4, 4, 4, 1, 1, 1]
        for steps in states(model.blocks, optimizer, "step").values()
    )


@each_model
@pytest.mark.parametrize("moments", ["map", "keep"])
def test_moments_of_embeddings_and_head_stay(kind: Kind, moments: str) -> None:
    model, optimizer = trained(kind, 3)
    non_block_params = {name: p for name, p in model.named_parameters() if not name.startswith("blocks.")}
    before = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in non_block_params.items()}
    expand(model, optimizer, "nearest", 6, moments)
    for name, parameter in non_block_params.items():
        after = optimizer.state[parameter]
        assert all(same_bits(after[key], tensor) for key, tensor in before[name].items()), name


@each_model
@each_map
def test_reset_starts_the_whole_optimizer_afresh(kind: Kind, growth: str) -> None:
    model, optimizer = trained(kind, 3)
    expand(model, optimizer, growth, 6, "reset")
    assert len(optimizer.state) == 0
    train(model, optimizer)
    assert all(optimizer.state[parameter]["step"] == 1 for parameter in model.parameters())


@each_map
@each_rule
def test_growth_before_the_first_step_leaves_the_optimizer_fresh(growth: str, moments: str) -> None:
    model, optimizer = trained("bert", 2, steps=0)
    expand(model, optimizer, growth, 4, moments)
    assert len(optimizer.state) == 0
    train(model, optimizer)
    assert all(optimizer.state[parameter]["step"] == 1 for parameter in model.parameters())


@each_model
@pytest.mark.parametrize("training", [True, False])
def test_new_layers_are_ready_to_train(kind: Kind, training: bool) -> None:
    model, optimizer = trained(kind, 1)
    model.train(training)
    expand(model, optimizer, "linear", 3)
    assert all(module.training == training for block in model.blocks for module in block.modules())
    for parameter in model.blocks.parameters():
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize("growth", ["nearest", "stack", "linear"])
def test_momentum_of_matrices_follows_the_rules_of_first_moments(growth: str) -> None:
    """Its coefficients are those of the weights: both are linear in the gradients."""
    for moments in MOMENTS:
        model = make_model("gpt", 3)
        optimizer = build_optimizer(model, OPTIM.model_copy(update={"kind": "muon"}))
        train(model, optimizer, steps=2)
        before = matrix_states(model.blocks, optimizer)
        expand(model, optimizer, growth, 5, moments)
        after = matrix_states(model.blocks, optimizer)
        assert (
            after.keys() == before.keys() == {f"{n}.weight" for n in ("qkv", "attention_out", "ffn_in", "ffn_out")}
        )
        for name, old in before.items():
            match moments:
                case "reset":
                    assert after[name] == [None] * 5
                case "keep":
                    assert all(map(same_bits, after[name][:3], old))
                    assert after[name][3:] == [None] * 2
                case "new":
                    new = EXPANDERS[growth].growth(3, 5).new
                    assert [slot for slot, tensor in enumerate(after[name]) if tensor is None] == list(new)
                case "map":
                    matrix = EXPANDERS[growth].growth(3, 5).matrix
                    for tensor, row in zip(after[name], matrix, strict=True):
                        torch.testing.assert_close(tensor.double(), weighted(row, old), rtol=0, atol=1e-7)
        train(model, optimizer)
        assert all(None not in found for found in matrix_states(model.blocks, optimizer).values())


@each_map
@each_rule
def test_averages_grow_as_the_weights_do(growth: str, moments: str) -> None:
    model = make_model("gpt", 3)
    optimizer = build_optimizer(model, OPTIM.model_copy(update={"ema": 0.5}))
    train(model, optimizer, steps=2)
    averaged = make_model("gpt", 3)
    with optimizer.averaged():
        averaged.load_state_dict(model.state_dict())
    assert not torch.equal(averaged.tokens.weight, model.tokens.weight)
    expand(model, optimizer, growth, 5, moments)
    expand(averaged, build_optimizer(averaged, OPTIM), growth, 5, moments)
    assert optimizer.averages.keys() == set(model.parameters())
    with optimizer.averaged():
        for name, parameter in model.named_parameters():
            assert same_bits(parameter.detach(), averaged.get_parameter(name).detach()), name
    train(model, optimizer)


def matrix_states(blocks: nn.ModuleList, optimizer: AdamW) -> dict[str, list[Any]]:
    """Those of Muon's momentum, which only matrices have."""
    return states(blocks, optimizer, "momentum_buffer", lambda parameter: parameter.ndim == 2)


BASE = CompleteP(hidden=8, layers=2, head_width=8)
PRE_NORM: tuple[Kind, ...] = ("bert", "gpt", "llama")


def trained_completep(kind: Kind, layers: int) -> tuple[LanguageModel, AdamW]:
    config = ModelConfig(kind, VOCABULARY, LENGTH, 16, 2, 32, TARGET, complete_p=BASE, norm="pre")
    model = test_transformer.make_model(config, layers)
    optimizer = build_optimizer(model, OPTIM)
    train(model, optimizer, 3)
    return model, optimizer


def at_depths(growth: Growth, source: int, target: int) -> Growth:
    return replace(growth, branch_ratio=source / target)


@pytest.mark.parametrize("kind", PRE_NORM)
@pytest.mark.parametrize("expander", [Net2Net(), Fresh(0.0)], ids=["net2net", "fresh"])
@pytest.mark.parametrize(("source", "target"), [(3, 6), (3, 5), (1, 4)])
def test_exact_growths_stay_exact_where_the_multiplier_falls(
    kind: Kind, expander: Expander, source: int, target: int
) -> None:
    """Twice the layers, half the multiplier: the projections of old layers are doubled, as are their averages."""
    model, optimizer = trained_completep(kind, source)
    model.eval()
    optimizer.averages = {p: p.detach().clone() for p in model.parameters()}
    before, tokens = weights(model.blocks), torch.randint(VOCABULARY, (3, LENGTH))
    expected = model.logits(tokens, range(source))
    growth = at_depths(expander.growth(source, target), source, target)
    expand_by(growth, model, optimizer)
    torch.testing.assert_close(model.logits(tokens, range(target)), expected, rtol=0, atol=1e-5)
    old = [slot for slot in range(target) if slot not in growth.new]
    for name, grown in weights(model.blocks).items():
        factor = target / source if "_out." in name else 1
        torch.testing.assert_close(grown[old], before[name] * factor)
    assert all(torch.equal(optimizer.averages[p], p) for block in model.blocks for p in block.parameters())


def test_gated_growth_stays_exact_where_the_multiplier_falls() -> None:
    model, optimizer = trained_completep("gpt", 2)
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    expected = model.eval().logits(tokens, range(2))
    growth = at_depths(Msg(0.1).growth(2, 4), 2, 4)
    expand_by(growth, model, optimizer)
    hidden = model.trunk(tokens, range(4), gates=dict.fromkeys(growth.gated, 0.0))
    torch.testing.assert_close(model.head(hidden), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("growth", ["nearest", "stack"])
def test_copies_share_what_their_layer_added_by_the_multiplier_alone(growth: str) -> None:
    """3 -> 6 by interpolation is a split with the exponent 1: the weights stay, bit for bit."""
    model, optimizer = trained_completep("gpt", 3)
    before = weights(model.blocks)
    matrix = EXPANDERS[growth].growth(3, 6)
    expand_by(at_depths(matrix, 3, 6), model, optimizer)
    for name, grown in weights(model.blocks).items():
        assert same_bits(grown, before[name][matrix.matrix.argmax(axis=1)]), name


def test_a_split_adds_the_stated_share_whatever_the_multiplier() -> None:
    """3 -> 6, exponent 1: two copies add the half each, and the multiplier has done that; with 0 each adds all."""
    for exponent, factor in ((1.0, 1.0), (0.0, 2.0)):
        model, optimizer = trained_completep("gpt", 3)
        before = weights(model.blocks)
        expand_by(at_depths(SplitCopies(exponent).growth(3, 6), 3, 6), model, optimizer)
        for name, grown in weights(model.blocks).items():
            scale = factor if "_out." in name else 1.0
            torch.testing.assert_close(grown, before[name].repeat_interleave(2, 0) * scale)


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    model.zero_grad()
    tokens = torch.randint(VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(5))
    model.loss(Batch(tokens, torch.arange(32), tokens.flatten()), range(len(model.blocks))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_moments_follow_the_gradients_where_the_multiplier_falls() -> None:
    """3 -> 6 by net2net: exactly, half as large for the last projections, equal for all other parameters."""
    model, optimizer = trained_completep("gpt", 3)
    before, moments = gradients(model), {k: states(model.blocks, optimizer, k) for k in ("exp_avg", "exp_avg_sq")}
    expand_by(at_depths(Net2Net().growth(3, 6), 3, 6), model, optimizer, "new")
    after = gradients(model)
    for old, new in ((0, 0), (1, 2), (2, 4)):
        for name, p in model.blocks[new].named_parameters():
            scale = 0.5 if "_out." in name else 1.0
            torch.testing.assert_close(
                after[f"blocks.{new}.{name}"], before[f"blocks.{old}.{name}"] * scale, rtol=1e-3, atol=1e-6
            )
            torch.testing.assert_close(optimizer.state[p]["exp_avg"], moments["exp_avg"][name][old] * scale)
            torch.testing.assert_close(
                optimizer.state[p]["exp_avg_sq"], moments["exp_avg_sq"][name][old] * scale**2
            )
            assert optimizer.state[p]["step"] == 3


def test_moments_of_copies_fall_with_the_multiplier() -> None:
    model, optimizer = trained_completep("gpt", 3)
    before = states(model.blocks, optimizer, "exp_avg")
    expand_by(at_depths(Interpolate("nearest").growth(3, 6), 3, 6), model, optimizer, "map")
    for name, values in states(model.blocks, optimizer, "exp_avg").items():
        for slot, value in enumerate(values):
            torch.testing.assert_close(value, before[name][slot // 2] * 0.5)


@pytest.mark.parametrize(("kind", "norm"), [("bert", "post"), ("bert", "pre"), ("gpt", "pre")])
def test_moments_follow_the_gradients_of_layers_that_are_split(kind: Kind, norm: Norm) -> None:
    """Two copies whose last projections are halved: what is before these has half the gradient, all else all of it.

    Norms are before the projections in pre-norm models and after them in post-norm ones.
    """
    model, optimizer = trained(kind, 3, norm=norm)
    with torch.no_grad():  # branches that hardly change the stream, so that the function hardly changes
        for name, p in model.blocks.named_parameters():
            if "_out." in name:
                p.mul_(1e-2)
            elif "_norm.weight" in name:
                p.fill_(1.0)
            elif "_norm.bias" in name:
                p.zero_()
    before = gradients(model)
    moments = {key: states(model.blocks, optimizer, key) for key in ("exp_avg", "exp_avg_sq")}
    expand_by(SplitCopies(1.0).growth(3, 6), model, optimizer, "map")
    after = gradients(model)
    for slot, block in enumerate(model.blocks):
        for name, p in block.named_parameters():
            scale = 1.0 if "_out." in name or (norm == "post" and "_norm." in name) else 0.5
            if name.endswith("weight"):
                grown, old = after[f"blocks.{slot}.{name}"], before[f"blocks.{slot // 2}.{name}"]
                assert float(grown.norm() / old.norm()) == pytest.approx(scale, rel=0.1), (slot, name)
            for power, (key, values) in enumerate(moments.items(), 1):
                torch.testing.assert_close(optimizer.state[p][key], values[name][slot // 2] * scale**power)


def test_from_no_layers_all_are_drawn() -> None:
    growth = Fresh(0.0).growth(0, 3)
    assert growth.matrix.shape == (3, 0)
    assert growth.new == growth.drawn == growth.zero_init == (0, 1, 2)
    assert Fresh(0.5).growth(0, 2).residual_scale == {0: 0.5, 1: 0.5}


@pytest.mark.parametrize(("kind", "norm"), [("bert", "post"), ("bert", "pre"), ("gpt", "post")])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_first_layers_add_nothing_and_all_parameters_train(kind: Kind, norm: Norm, ema: float | None) -> None:
    """The norm of post-norm BERT's embedding goes, with its moments, to the output norm of the last layer."""
    model = make_model(kind, 0, norm)
    settings = OPTIM.model_copy(update={"ema": ema})
    optimizer = build_optimizer(model, settings)
    tokens = torch.randint(VOCABULARY, (4, LENGTH))
    batch = Batch(tokens, torch.arange(32), tokens.roll(-1, dims=1).flatten())
    for _ in range(3):
        model.loss(batch, ()).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = model.logits(tokens, ())
    growth = Fresh(0.0).growth(0, 3)
    expand_by(growth, model, optimizer, "new")
    if isinstance(model, Bert) and norm == "post":
        moments = optimizer.state[model.embedding_norm.get_parameter("weight")]["exp_avg"]
        hand_over_norm(model.embedding_norm, model.blocks[-1].get_submodule("ffn_norm"), optimizer, "new")
        assert optimizer.state[model.blocks[-1].get_parameter("ffn_norm.weight")]["exp_avg"] is moments
        assert model.embedding_norm.get_parameter("weight") not in optimizer.state
    torch.testing.assert_close(model.logits(tokens, range(3)), expected, rtol=0, atol=1e-5)
    optimizer.param_groups = parameter_groups(model, settings)
    model.loss(batch, range(3)).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert not {name for name in still if "_out.weight" in name or not name.startswith("blocks.")}
    assert optimizer.averages.keys() == (set(model.parameters()) if ema else set())
