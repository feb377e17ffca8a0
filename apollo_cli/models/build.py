"""Models by kind."""

from apollo_cli.models.bert import SEGMENTS, Bert
from apollo_cli.models.gpt import Gpt
from apollo_cli.models.shape import Shape
from apollo_cli.models.transformer import LanguageModel

MODELS: dict[str, type[LanguageModel]] = {"bert": Bert, "gpt": Gpt}


def build(shape: Shape, layers: int) -> LanguageModel:
    """A freshly initialised model of `shape` with `layers` stored blocks, on torch's default device."""
    return MODELS[shape.kind](shape, layers)


def num_parameters(shape: Shape, layers: int) -> int:
    """Trainable parameters with `layers` stored blocks, in closed form: a plan is made before any model is."""
    h, f, norm = shape.hidden, shape.ffn, 2 * shape.hidden
    block = (4 * h * h + 4 * h) + (2 * h * f + f + h) + 2 * norm  # attention, feed-forward, norms
    embeddings = (shape.vocabulary + shape.positions) * h
    if shape.kind == "bert":
        segments, transform, bias = SEGMENTS * h, h * h + h, shape.vocabulary
        return embeddings + segments + norm + layers * block + transform + norm + bias
    return embeddings + layers * block + norm
