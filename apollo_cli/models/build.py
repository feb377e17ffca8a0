"""Models by kind, and their number of parameters."""

from apollo_cli.models.bert import SEGMENTS, Bert
from apollo_cli.models.gpt import Gpt
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel

MODELS: dict[str, type[LanguageModel]] = {"bert": Bert, "gpt": Gpt}


def build(model_config: ModelConfig, layers: int) -> LanguageModel:
    """A freshly initialised model with `layers` stored blocks, on torch's default device."""
    return MODELS[model_config.kind](model_config, layers)


def num_parameters(model_config: ModelConfig, layers: int) -> int:
    """Trainable parameters with `layers` stored blocks, in closed form: plans need it before any model exists."""
    h, f, norm = model_config.hidden, model_config.ffn, 2 * model_config.hidden
    block = (4 * h * h + 4 * h) + (2 * h * f + f + h) + 2 * norm  # attention, feed-forward, norms
    embeddings = (model_config.vocabulary + model_config.positions) * h
    if model_config.kind == "bert":
        segments, transform, bias = SEGMENTS * h, h * h + h, model_config.vocabulary
        return embeddings + segments + norm + layers * block + transform + norm + bias
    return embeddings + layers * block + norm
