"""A model filled with the weights of a smaller one, in width and in depth."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from apollo_cli.growth.expanders import Expander, Growth
from apollo_cli.growth.expansion import grown_tensor
from apollo_cli.growth.width import WIDTHS, Sizes, Spaces, State, spaces, widened, widened_layers
from apollo_cli.models.build import build
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel

Filling = Callable[[LanguageModel, LanguageModel], None]
"""Gives the first model the weights of the second, a smaller one."""


def sizes(model_config: ModelConfig) -> Sizes:
    """The widths of a model."""
    return Sizes(model_config.hidden, model_config.heads, model_config.ffn)


def enlarged(source: LanguageModel, model_config: ModelConfig, layers: int, filling: Filling) -> LanguageModel:
    """A model of this shape and depth where the smaller one is, filled from it; torch's luck is not touched."""
    with torch.device("meta"):
        model = build(model_config, layers)
    model.to_empty(device=source.device).train(source.training)
    filling(model, source)
    return model


@torch.no_grad()
def fill(model: LanguageModel, source: LanguageModel, expander: Expander, random: np.random.Generator) -> None:
    """Gives a model the weights of a smaller one: widened first, then in depth by the expander's map.

    The smaller one is moved to the CPU and they are made there, for a GPU may round products of fp32.
    """
    source.cpu()
    chosen = spaces(expander.width_rule, sizes(source.model_config), sizes(model.model_config), random)
    rule = WIDTHS[expander.width_rule]
    layers = widened_layers(layers_of(source), chosen, new_from_above=rule.new_from_above)
    growth = expander.growth(len(source.blocks), len(model.blocks))
    state = non_block_params(source, chosen) | deepen(layers, growth)
    model.load_state_dict(fitting(state, model))


def layers_of(model: LanguageModel) -> list[State]:
    """The parameters of each layer by their names within it, without gradient."""
    return [{name: p.detach() for name, p in block.named_parameters()} for block in model.blocks]


def non_block_params(model: LanguageModel, spaces: Spaces) -> State:
    """What is not in a layer, widened."""
    named = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("blocks.")}
    return {name: widened(name, tensor, spaces) for name, tensor in named.items()}


def deepen(layers: Sequence[State], growth: Growth) -> State:
    """Layers by a map, under their names in the model."""
    state: State = {}
    for slot in range(len(growth.matrix)):
        for name in layers[0]:
            sources = [layer[name] for layer in layers]
            state[f"blocks.{slot}.{name}"] = grown_tensor(growth, slot, name, sources)
    return state


def fitting(state: State, model: LanguageModel) -> dict[str, Tensor]:
    """The same with as many positions as the model has."""
    return state | {"positions.weight": state["positions.weight"][: model.model_config.positions]}
