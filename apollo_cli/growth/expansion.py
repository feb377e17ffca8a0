"""Growth of the depth: a matrix over layers maps N stored layers to the next N, weights and AdamW's moments."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from apollo_cli.growth.expanders import Growth

State = dict[str, Tensor]
INTO_RESIDUAL = ("attention_out.", "ffn_out.")  # a layer's projections into the residual stream


def mix(row: np.ndarray, sources: Sequence[Tensor]) -> Tensor:
    """sum_j row[j] sources[j] over the non-zero row[j]; a one-hot row copies bit for bit."""
    first, *rest = np.flatnonzero(row).tolist()
    mixed = sources[first] * float(row[first])
    for j in rest:
        mixed += sources[j] * float(row[j])
    return mixed


def grown_tensor(growth: Growth, slot: int, name: str, sources: Sequence[Tensor]) -> Tensor:
    """The parameter `name` of new layer `slot`, from `sources`, the same parameter of the old layers."""
    if slot in growth.zero_init and name.startswith(INTO_RESIDUAL):
        return torch.zeros_like(sources[0])
    return mix(growth.matrix[slot], sources)


def keep_moments(slot: int, row: np.ndarray, states: Sequence[State]) -> State:
    """Old slots keep their own moments, new slots start without (the authors' release)."""
    return states[slot] if slot < len(states) else {}


def map_moments(slot: int, row: np.ndarray, states: Sequence[State]) -> State:
    """The layer map applied to the moments: its coefficients for means, their squares for `exp_avg_sq`.

    The variance of a weighted sum of independent gradients has the squared weights. The step counts are
    equal wherever moments exist, so the first contributing one is used.
    """
    contributing = [states[j] for j in np.flatnonzero(row).tolist()]
    if not all(contributing):
        return {}
    mapped = {}
    for key in contributing[0]:
        if key == "step":
            mapped[key] = contributing[0][key].clone()
        else:
            coefficients = row**2 if key == "exp_avg_sq" else row
            mapped[key] = mix(coefficients, [state.get(key, torch.empty(0)) for state in states])
    return mapped


# "reset" is not a rule for one slot: `grow` clears the whole optimizer
MOMENT_RULES: dict[str, Callable[[int, np.ndarray, Sequence[State]], State]] = {
    "keep": keep_moments,
    "map": map_moments,
}
MOMENTS = (*MOMENT_RULES, "reset")


class Optimizer(Protocol):
    """What `grow` needs of a torch optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    @property
    def state(self) -> MutableMapping[Any, Any]: ...

    @property
    def averages(self) -> MutableMapping[Any, Tensor]: ...


@torch.no_grad()
def grow(
    blocks: nn.ModuleList,
    grown: nn.ModuleList,
    optimizer: Optimizer,
    growth: Growth,
    moments: str,
) -> None:
    """Gives `grown` the weights that a growth makes of `blocks`, and their place in the optimizer.

    Args:
        blocks: the N stored layers, all of one shape.
        grown: the new layers, of the same shape, devices and sharding; their weights are overwritten.
        optimizer: over (at least) the parameters of `blocks`; its groups are edited in place, and every new
            parameter joins the group of the old parameter of its name. Averages of weights grow as the weights do.
            Other parameters are not changed.
        growth: from N layers to the new N.
        moments: `keep`, `map`, or `reset` (the whole optimizer is cleared, embeddings and head included).

    Raises:
        ValueError: `moments` is unknown, or the growth is for other numbers of layers.
    """
    if moments not in MOMENTS:
        raise ValueError(f"unknown rule for the moments {moments!r}: choose one of {', '.join(MOMENTS)}")
    matrix = growth.matrix
    if matrix.shape != (len(grown), len(blocks)):
        raise ValueError(
            f"a growth of {matrix.shape[1]} layers to {len(matrix)} cannot grow {len(blocks)} to {len(grown)}"
        )
    grown.train(blocks.training)
    for name, first in blocks[0].named_parameters():
        old = [block.get_parameter(name) for block in blocks]
        new = [block.get_parameter(name) for block in grown]
        states = [optimizer.state.pop(parameter, {}) for parameter in old]
        averages = [optimizer.averages.pop(parameter) for parameter in old if parameter in optimizer.averages]
        for slot, (parameter, row) in enumerate(zip(new, matrix, strict=True)):
            parameter.copy_(grown_tensor(growth, slot, name, old))
            if averages:
                optimizer.averages[parameter] = grown_tensor(growth, slot, name, averages)
            if moments != "reset" and (state := MOMENT_RULES[moments](slot, row, states)):
                optimizer.state[parameter] = state
        group = next(g for g in optimizer.param_groups if any(p is first for p in g["params"]))
        gone = {id(parameter) for parameter in old}
        group["params"] = [p for p in group["params"] if id(p) not in gone] + new
    if moments == "reset":
        optimizer.state.clear()
