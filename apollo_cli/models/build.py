"""Models by kind."""

import torch

from apollo_cli.models.bert import Bert
from apollo_cli.models.gpt import Gpt
from apollo_cli.models.shape import Shape
from apollo_cli.models.transformer import LanguageModel

MODELS: dict[str, type[LanguageModel]] = {"bert": Bert, "gpt": Gpt}


def build(shape: Shape, layers: int) -> LanguageModel:
    """A freshly initialised model of `shape` with `layers` stored blocks, on torch's default device."""
    return MODELS[shape.kind](shape, layers)


def num_parameters(shape: Shape, layers: int) -> int:
    """Trainable parameters with `layers` stored blocks; nothing is allocated."""
    with torch.device("meta"):
        return build(shape, layers).num_parameters()
