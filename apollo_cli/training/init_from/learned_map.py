"""LiGO (Wang 2023, arXiv 2303.00980): a map from a small model to a large one, learned on the large one's loss.

Every new layer is sum_j w[j] (B W_j A^T): one matrix for each space (`growth/width.py`; a reader A has the matrix
of its writer B), and for each module of a layer the weights w of the source's layers. The source is not trained.
"""

import math
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from apollo_cli.errors import TrainingError
from apollo_cli.growth.expanders import Expander, Ligo
from apollo_cli.growth.layer_maps import LayerMap
from apollo_cli.growth.width import Space, Spaces, State, flops_of_widening, parts_of, widened
from apollo_cli.models.build import build_on_meta
from apollo_cli.models.flops import FORWARD_AND_BACKWARD
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.training.device import Device
from apollo_cli.training.init_from.weights import layers_of, non_block_params, params_for, sizes, with_positions_of
from apollo_cli.training.memory import activation_limit, pieces_of

_NEW_STD = 0.02  # of the rows of B for new units: the deviation of fresh weights
_NOISE = 0.03  # added to the initial depth weights, uniform (the paper's release)


def widths_of(model_config: ModelConfig) -> dict[str, int]:
    """The size of each space that has a matrix of its own, of all heads together."""
    return {
        "query": model_config.hidden,
        "key": model_config.kv_hidden,
        "value": model_config.kv_hidden,
        "residual": model_config.hidden,
        "ffn": model_config.ffn,
    }


class LearnedMap(nn.Module):
    """The learned map: `extra` rows of B below the identity, and `depth` weights (layers, source layers) by module.

    `model_config` and `layers` are those of the large model. The initial depth weights are the expander's map, plus
    a little noise; `rng` draws it and the initial `extra` rows.
    """

    def __init__(
        self,
        source: LanguageModel,
        model_config: ModelConfig,
        expander: Expander,
        layers: int,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        old_sizes = sizes(source.model_config)
        self._head, self._heads_per_kv = old_sizes.hidden // old_sizes.heads, old_sizes.heads_per_kv
        self._params, self._tied = params_for(source, model_config), model_config.tied  # not trained
        self.layers = layers_of(self._params)
        old, new = widths_of(source.model_config), widths_of(model_config)
        self.extra = nn.ParameterDict(
            {space: _tensor(rng.normal(0, _NEW_STD, (new[space] - n, n))) for space, n in old.items()}
        )
        start = expander.growth(len(self.layers), layers).matrix
        modules = dict.fromkeys(module for name in self.layers[0] for module in _modules(name))
        noisy = {name: start + rng.uniform(0, _NOISE, start.shape) for name in modules}
        self.depth = nn.ParameterDict(
            {name: _tensor(matrix / matrix.sum(axis=1, keepdims=True)) for name, matrix in noisy.items()}
        )

    def spaces(self) -> Spaces:
        """B = [I; extra], for writers and readers; attention mixes values, for each head that reads them."""
        eyes = {name: torch.eye(extra.shape[1], device=extra.device) for name, extra in self.extra.items()}
        matrices = {name: torch.cat((eyes[name], extra)) for name, extra in self.extra.items()}
        matrices["mixed"] = _for_each_reader(matrices["value"], self._head, self._heads_per_kv)
        return {name: Space(matrix, matrix) for name, matrix in matrices.items()}

    def state(self) -> State:
        """The large model's parameters, differentiable in the map."""
        chosen = self.spaces()
        state = non_block_params(self._params, chosen, tied=self._tied)
        for name in self.layers[0]:
            # in fp32, as CUDA's autocast would run tensordot, and a CPU's would refuse it in two types
            wide = torch.stack([widened(name, layer[name], chosen) for layer in self.layers]).float()
            modules = _modules(name)
            rows = [len(chosen[space].out) for space in parts_of(name).values()] or wide.shape[1]
            parts = zip(modules, wide.split(rows, dim=1), strict=True)
            mixed = torch.cat([torch.tensordot(self.depth[module], part, dims=1) for module, part in parts], dim=1)
            state |= {f"blocks.{slot}.{name}": tensor for slot, tensor in enumerate(mixed)}
        return state


def map_flops(source: ModelConfig, target: ModelConfig, layers: int) -> int:
    """FLOPs of the map's own products in one step of it, forward and backward.

    A backward pass costs twice the forward one, but the parameters of the source, not trained, need no gradient.
    """
    old, new = widths_of(source), widths_of(target)
    both = {name: (new[name], old[name]) for name in old}
    both["mixed"] = both["query"]
    model, wide = build_on_meta(source, 1), build_on_meta(target, 1)
    total = 0
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("blocks.0.")
        times = source.layers if inner != name else 1
        products = flops_of_widening(inner, tuple(parameter.shape), both, tied=source.tied)
        total += times * (FORWARD_AND_BACKWARD * sum(products) - sum(products[:1]))
        if inner != name:
            mixing = 2 * layers * source.layers * prod(wide.get_parameter(name).shape)
            total += FORWARD_AND_BACKWARD * mixing
    return total


def learn(
    model: LanguageModel,
    learned: LearnedMap,
    batch: Callable[[int], Batch],
    learning: Ligo,
    device: Device,
) -> tuple[float, float]:
    """Trains the map by AdamW on the loss of the stored layers, each run once, then initializes the model by it.

    The model is the large one, whose own weights are not used; `batch` returns the micro-batch of a step. Returns
    the losses on the first batch before and after, without dropout; a TrainingError if a loss is not finite.
    """
    layer_map = tuple(range(len(model.blocks)))

    def measured() -> float:
        is_training = model.training
        with torch.no_grad(), device.autocast():
            loss = loss_of(model.eval(), learned, batch(0), layer_map)
        model.train(is_training)
        return loss.item()

    before = measured()
    # torch's own, whose kernel rounds differently from ours: all measured maps were learned by it
    optimizer = torch.optim.AdamW(learned.parameters(), lr=learning.lr, weight_decay=0.0)
    limit = activation_limit(device)
    for step in range(learning.steps):
        optimizer.zero_grad()
        pieces = pieces_of(batch(step), model.model_config, len(layer_map), device, limit)
        for piece in pieces:
            with device.autocast():
                loss = loss_of(model, learned, piece, layer_map)
            _check_finite(loss.item(), f"step {step}", learning.lr)
            (loss / len(pieces)).backward()
        optimizer.step()
    after = measured()
    _check_finite(after, "the end", learning.lr)
    with torch.no_grad():
        model.load_state_dict(with_positions_of(learned.state(), model))
    return before, after


def _check_finite(loss: float, where: str, lr: float) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"expander.lr={lr:g}: at {where} of the learned map its loss is {loss}; a lower expander.lr may help "
            "in a new run",
            resumable=False,
        )


def loss_of(model: LanguageModel, learned: LearnedMap, batch: Batch, layer_map: LayerMap) -> Tensor:
    """The large model's loss with the parameters that the map computes, in fp32 as those of a training step."""
    state = {name: value.float() for name, value in with_positions_of(learned.state(), model).items()}
    return functional_call(model, state, (batch, layer_map))


def _modules(name: str) -> tuple[str, ...]:
    """The modules of a parameter of a layer; queries, keys and values are in one tensor and are three."""
    return tuple(parts_of(name)) or (name.partition(".")[0],)


def _for_each_reader(values: Tensor, head: int, heads_per_kv: int) -> Tensor:
    """(new, old) of all values -> the same of all query heads, each mapped as the values that it reads."""
    if heads_per_kv == 1:
        return values
    by_head = values.unflatten(1, (-1, head)).unflatten(0, (-1, head))
    eye = torch.eye(heads_per_kv, device=values.device)
    return torch.einsum("aibj,rs->aribsj", by_head, eye).flatten(0, 2).flatten(1)


def _tensor(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values).float())
