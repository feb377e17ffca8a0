"""Growth of the depth: a matrix over layers maps N stored layers to the next N, weights and AdamW's moments."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from apollo_cli.growth.expanders import Growth
from apollo_cli.growth.layer_maps import inserted

State = dict[str, Tensor]
Rows = Sequence[np.ndarray | None]
INTO_RESIDUAL = ("attention_out.", "ffn_out.")  # a layer's projections into the residual stream


def mix(row: np.ndarray, sources: Sequence[Tensor]) -> Tensor:
    """sum_j row[j] sources[j] over the non-zero row[j]; a one-hot row copies bit for bit."""
    first, *rest = np.flatnonzero(row).tolist()
    mixed = sources[first] * float(row[first])
    for j in rest:
        mixed += sources[j] * float(row[j])
    return mixed


def source_rows(growth: Growth, name: str, *, post_norm: bool) -> Rows:
    """The coefficients by which each new layer has the parameter `name` from the old ones; None if it has not.

    A post-norm layer that adds nothing still normalises, and what it gets is g n + b already, n normalised. So
    zero-init layers change nothing if all norms from the output norm of the old layer below them on have gain 1 and
    bias 0, but for the output norm of the last of them, which takes over g and b.
    """
    rows: list[np.ndarray | None] = list(growth.matrix)
    neutral = growth.zero_init if post_norm else ()
    for slot in growth.drawn:
        rows[slot] = None
    if name.startswith("attention_norm."):
        for slot in neutral:
            rows[slot] = None
    if name.startswith("ffn_norm."):
        for slot in sorted(neutral):  # from below: the row is handed on from layer to layer
            rows[slot], rows[slot - 1] = rows[slot - 1], None
    return rows


def grown_tensor(
    growth: Growth, slot: int, name: str, rows: Rows, sources: Sequence[Tensor], drawn: Mapping[int, State]
) -> Tensor:
    """The parameter `name` of new layer `slot`, from that of the old layers, `sources`, by `rows` of `source_rows`.

    `drawn` has the parameters of each of `growth.drawn`.
    """
    row = rows[slot]
    if slot in growth.zero_init and name.startswith(INTO_RESIDUAL):
        return torch.zeros_like(sources[0] if sources else drawn[slot][name])
    if row is not None:
        grown = mix(row, sources)
    elif slot in growth.drawn:
        grown = drawn[slot][name]
    else:
        grown = torch.full_like(sources[0], 1.0 if name.endswith("weight") else 0.0)  # of a norm
    return grown * growth.projection_factor(slot) if name.startswith(INTO_RESIDUAL) else grown


def keep_moments(slot: int, rows: Rows, states: Sequence[State]) -> State:
    """Old slots keep their own moments, new slots start without (the authors' release)."""
    return states[slot] if slot < len(states) else {}


def new_moments(slot: int, rows: Rows, states: Sequence[State]) -> State:
    """Every old parameter keeps its moments, wherever it now stands; new ones start without."""
    row = rows[slot]
    return {} if row is None or slot in inserted(rows) else states[int(row.argmax())]


def map_moments(slot: int, rows: Rows, states: Sequence[State]) -> State:
    """The layer map applied to the moments: its coefficients for means, their squares for `exp_avg_sq`.

    The variance of a weighted sum of independent gradients has the squared weights. Where layers have trained for
    different numbers of steps, a blend takes the first one's count.
    """
    row = rows[slot]
    if row is None:
        return {}
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


def gradient_ratio(growth: Growth, slot: int, name: str, moments: str, *, post_norm: bool) -> float:
    """What the gradient of the parameter `name` of new layer `slot` is, beside that of the layer it copies.

    The multiplier of the branches is behind all parameters, and the projections into the residual stream are behind
    the others of their layer, but for the norms of post-norm layers. A share of zero counts as one: with moments of
    zero the first steps after it would be too large. So does any under `keep`, whose moments stay in their slots,
    mostly those of another layer.
    """
    is_after = name.startswith(INTO_RESIDUAL) or (post_norm and "_norm." in name)
    if is_after or not growth.states_additions:
        return growth.branch_ratio
    share = 1.0 if moments == "keep" else growth.residual_scale.get(slot, 1.0)
    return share or 1.0


def scaled_moments(state: State, scale: float) -> State:
    """The moments of a parameter whose gradient becomes `scale` times what it was."""
    power = {"step": 0, "exp_avg_sq": 2}  # 1 for means
    return {key: value * scale ** power.get(key, 1) for key, value in state.items()}


# "reset" is not a rule for one slot: `grow` clears the whole optimizer
MOMENT_RULES: dict[str, Callable[[int, Rows, Sequence[State]], State]] = {
    "keep": keep_moments,
    "map": map_moments,
    "new": new_moments,
}


class Optimizer(Protocol):
    """What `grow` needs of an optimizer."""

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
    drawn: Mapping[int, State] = MappingProxyType({}),
) -> None:
    """Gives `grown` the weights that a growth makes of `blocks`, and their place in the optimizer.

    Where the multiplier of the branches or a layer's last projections fall, so do the gradients of what is behind
    them, and the moments follow, see `gradient_ratio`.

    Args:
        blocks: the N stored layers, all of one shape; there may be none, then the new parameters join no group.
        grown: the new layers, of the same shape, devices and sharding; their weights are overwritten.
        optimizer: over (at least) the parameters of `blocks`; its groups are edited in place, and every new
            parameter joins the group of the old parameter of its name. Averages of weights grow as the weights do.
            Other parameters are not changed.
        moments: `keep`, `map`, `new`, or `reset` (the whole optimizer is cleared, embeddings and head included).
        drawn: the parameters of each of `growth.drawn`.
    """
    post_norm = grown[0].pre_norm is False
    grown.train(blocks.training)
    for name, like in grown[0].named_parameters():
        old = [block.get_parameter(name) for block in blocks]
        new = [block.get_parameter(name) for block in grown]
        states = [optimizer.state.pop(parameter, {}) for parameter in old]
        averages = [optimizer.averages.pop(parameter) for parameter in old if parameter in optimizer.averages]
        rows = source_rows(growth, name, post_norm=post_norm)
        for slot, parameter in enumerate(new):
            parameter.copy_(grown_tensor(growth, slot, name, rows, old, drawn))
            if optimizer.averages:
                average = grown_tensor(growth, slot, name, rows, averages, drawn)
                optimizer.averages[parameter] = average.to(like.device)
            if moments != "reset" and (state := MOMENT_RULES[moments](slot, rows, states)):
                ratio = gradient_ratio(growth, slot, name, moments, post_norm=post_norm)
                optimizer.state[parameter] = state if ratio == 1 else scaled_moments(state, ratio)
        if not old:
            continue
        group = next(g for g in optimizer.param_groups if any(p is old[0] for p in g["params"]))
        gone = {id(parameter) for parameter in old}
        group["params"] = [p for p in group["params"] if id(p) not in gone] + new
    if moments == "reset":
        optimizer.state.clear()


@torch.no_grad()
def hand_over_norm(below: nn.Module, above: nn.Module, optimizer: Optimizer, moments: str) -> None:
    """Gives a norm the weights and moments of the one below it, which becomes neutral: gain 1, bias 0.

    For zero-init layers of a post-norm model between them, see `source_rows`; below the first layer stands the norm
    of the embedding.
    """
    for name, old in below.named_parameters():
        new, neutral = above.get_parameter(name), 1.0 if name == "weight" else 0.0
        new.copy_(old)
        old.fill_(neutral)
        if old in optimizer.averages:
            optimizer.averages[new].copy_(optimizer.averages[old])
            optimizer.averages[old].fill_(neutral)
        if moments != "reset" and old in optimizer.state:
            optimizer.state[new] = optimizer.state.pop(old)
