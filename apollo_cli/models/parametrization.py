"""A model in another parametrization: other multipliers, and weights with which it computes the same."""

from dataclasses import replace

import torch
from torch import Tensor

from apollo_cli.models.build import build_on_meta
from apollo_cli.models.model_config import CompleteP, Multipliers
from apollo_cli.models.transformer import LanguageModel


def restated(name: str, tensor: Tensor, hidden: int, old: Multipliers, new: Multipliers) -> Tensor:
    """The parameter with which a model that has the multipliers `new` computes what it computed with `old`.

    Branches are linear in their last projection, scores in the queries (rotations too are linear), logits in the
    norm before the decoder. `hidden`, the width of the model, is the number of query rows.
    """
    module = name.rpartition(".")[0].rpartition(".")[2]
    if module in ("attention_out", "ffn_out"):
        factor = old.branch / new.branch
    elif module in ("final_norm", "transform_norm"):
        factor = old.logits / new.logits
    elif module == "qkv" and old.scores != new.scores:
        return torch.cat((tensor[:hidden] * (old.scores / new.scores), tensor[hidden:]))
    else:
        factor = 1.0
    return tensor if factor == 1 else tensor * factor


@torch.no_grad()
def in_parametrization(model: LanguageModel, complete_p: CompleteP | None) -> LanguageModel:
    """The model in another parametrization, equal at its stored depth; the model itself if it has that already."""
    config = replace(model.model_config, complete_p=complete_p)
    if config == model.model_config:
        return model
    depth = len(model.blocks)
    old, new = model.model_config.multipliers(depth), config.multipliers(depth)
    result = build_on_meta(config, depth)
    state = {name: restated(name, p, config.hidden, old, new) for name, p in model.state_dict().items()}
    result.load_state_dict(state, assign=True)
    return result.train(model.training)
