"""A model initialized with the weights of a smaller one, in width and in depth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from apollo_cli.growth.expanders import Expander, Growth
from apollo_cli.growth.expansion import grown_tensor, source_rows
from apollo_cli.growth.width import WIDTHS, Sizes, Spaces, State, spaces, widened, widened_layers
from apollo_cli.models.build import build_on_meta
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.parametrization import restated
from apollo_cli.models.transformer import LanguageModel

InitFrom = Callable[[LanguageModel, LanguageModel], None]
"""Initializes the first model from the second, a smaller one."""


def sizes(model_config: ModelConfig) -> Sizes:
    kv_heads = model_config.kv_heads or model_config.heads
    return Sizes(model_config.hidden, model_config.heads, model_config.ffn, model_config.heads // kv_heads)


def enlarged(source: LanguageModel, model_config: ModelConfig, layers: int, init_from: InitFrom) -> LanguageModel:
    """A model of these sizes on the device of `source`, initialized from it; draws no random numbers of torch."""
    model = build_on_meta(model_config, layers)
    model.to_empty(device=source.device).train(source.training)
    init_from(model, source)
    return model


@torch.no_grad()
def init_from_smaller(
    model: LanguageModel, source: LanguageModel, expander: Expander, rng: np.random.Generator
) -> None:
    """Initializes a model from a smaller one: widened first, then deepened by the expander's map.

    The source is moved to the CPU, where the weights are computed: a GPU may round products of fp32.
    """
    source.cpu()
    chosen = spaces(expander.width_rule, sizes(source.model_config), sizes(model.model_config), rng)
    rule = WIDTHS[expander.width_rule]
    params = params_for(source, model.model_config)
    layers = widened_layers(layers_of(params), chosen, new_from_above=rule.new_from_above)
    depths = len(source.blocks), len(model.blocks)
    growth = replace(expander.growth(*depths), branch_ratio=model.model_config.branch_ratio(*depths))
    post_norm = model.blocks[0].pre_norm is False
    deep = deepen(layers, growth, drawn_layers(model, growth, rng), post_norm=post_norm)
    state = non_block_params(params, chosen, tied=model.model_config.tied) | deep
    model.load_state_dict(with_positions_of(state, model))


def params_for(source: LanguageModel, target: ModelConfig) -> State:
    """The parameters of a source, without gradient, as they compute the same with the multipliers of the target."""
    depth, hidden = len(source.blocks), source.model_config.hidden
    old, new = source.model_config.multipliers(depth), target.multipliers(depth)
    return {name: restated(name, p.detach(), hidden, old, new) for name, p in source.named_parameters()}


def layers_of(params: State) -> list[State]:
    """The parameters of each layer by their names within it."""
    layers: dict[str, State] = {}
    for name, tensor in params.items():
        if name.startswith("blocks."):
            _, layer, inner = name.split(".", 2)
            layers.setdefault(layer, {})[inner] = tensor
    return list(layers.values())


def non_block_params(params: State, spaces: Spaces, *, tied: bool) -> State:
    """Embeddings, norms and head, widened."""
    named = {name: tensor for name, tensor in params.items() if not name.startswith("blocks.")}
    return {name: widened(name, tensor, spaces, tied=tied) for name, tensor in named.items()}


def deepen(layers: Sequence[State], growth: Growth, drawn: Mapping[int, State], *, post_norm: bool) -> State:
    """The layers that a growth makes of these, under their names in the model."""
    state: State = {}
    for name in layers[0]:
        rows, sources = source_rows(growth, name, post_norm=post_norm), [layer[name] for layer in layers]
        for slot in range(len(growth.matrix)):
            state[f"blocks.{slot}.{name}"] = grown_tensor(growth, slot, name, rows, sources, drawn)
    return state


def drawn_layers(model: LanguageModel, growth: Growth, rng: np.random.Generator) -> dict[int, State]:
    """The parameters of each of `growth.drawn`, drawn on the CPU as a new model's are."""
    if not growth.drawn:
        return {}
    random = torch.Generator().manual_seed(int(rng.integers(2**63)))
    found = {}
    for slot in growth.drawn:
        block = model.new_block().to("cpu")
        model.draw(block, random)
        found[slot] = {name: p.detach() for name, p in block.named_parameters()}
    return found


def with_positions_of(state: State, model: LanguageModel) -> dict[str, Tensor]:
    """The state with its position embedding, if it has one, cut to that of the model."""
    cut = {name: state[name][: model.model_config.positions] for name in ("positions.weight",) if name in state}
    return state | cut
