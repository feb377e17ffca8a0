"""Models by kind, and their number of parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from apollo_cli.models.bert import SEGMENTS, Bert
from apollo_cli.models.gpt import Gpt, Llama
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel

MODELS: dict[str, type[LanguageModel]] = {"bert": Bert, "gpt": Gpt, "llama": Llama}


def build(model_config: ModelConfig, layers: int) -> LanguageModel:
    """A freshly initialised model with `layers` stored blocks, on torch's default device."""
    return MODELS[model_config.kind](model_config, layers)


def build_on_meta(model_config: ModelConfig, layers: int) -> LanguageModel:
    """Such a model without memory for its weights, to be given them or for their shapes."""
    with torch.device("meta"), _NoInitialization():
        return build(model_config, layers)


class _NoInitialization(TorchFunctionMode):
    """Leaves out `torch.nn.init`, which would import torch's compiler on the meta device, for nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs else args[0]
        return func(*args, **(kwargs or {}))


def num_parameters(model_config: ModelConfig, layers: int) -> int:
    """Trainable parameters with `layers` stored blocks, in closed form: plans need it before any model exists."""
    h, f, architecture = model_config.hidden, model_config.ffn, model_config.architecture
    norm = h if architecture.rms_norm else 2 * h
    biases = 5 * h + f if architecture.biases else 0  # queries, keys, values, two projections; feed-forward
    block = model_config.layer_weights + biases + 2 * norm
    matrices = model_config.vocabulary * (1 if model_config.tied else 2)
    embeddings = (matrices + (0 if architecture.rotary else model_config.positions)) * h
    if model_config.kind == "bert":
        segments, transform, bias = SEGMENTS * h, h * h + h, model_config.vocabulary
        return embeddings + segments + norm + layers * block + transform + norm + bias
    return embeddings + layers * block + norm
