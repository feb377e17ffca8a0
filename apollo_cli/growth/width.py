"""Growth of the width: every axis of every tensor belongs to a space, and each space grows by one pair of matrices.

With x' = out x for the values of a space and W' = W into^T for the weights that read them, W' x' = W x if
into^T out = I. `AXES` has the ties of bert2BERT (Chen 2022, section 3.2) and LiGO (Wang 2023, section 3.2): one
pair for the residual stream, one for the attention heads, one for the inside of the feed-forward part.

A norm's statistics are those of the old units if all have equally many copies: LayerNorm's and RMSNorm's alike.
Heads are copied whole, so that rotations by position stay what they were; where several query heads share a head of
keys and values, they are copied with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # a config is checked without torch, which takes a second to import
    from torch import Tensor

State = dict[str, "Tensor"]

# The space of each dimension of a module's weight, the first of which a bias has; with `<` the module reads the
# space, else it writes to it. A tied decoder is the token embedding, which writes: so the norm before the decoder
# reads. Other parameters do not grow.
AXES: dict[str, tuple[str | None, ...]] = {
    "qkv": ("qkv", "<residual"),
    "attention_out": ("residual", "<mixed"),
    "attention_norm": ("residual",),
    "ffn_in": ("ffn", "<residual"),
    "gate_up": ("gate_up", "<residual"),
    "ffn_out": ("residual", "<ffn"),
    "ffn_norm": ("residual",),
    "tokens": (None, "residual"),
    "positions": (None, "residual"),
    "segments": (None, "residual"),
    "embedding_norm": ("residual",),
    "encoder_norm": ("residual",),
    "transform": ("residual", "<residual"),
    "transform_norm": ("<residual",),
    "final_norm": ("<residual",),
}
UNTIED_AXES = {"decoder": (None, "<residual"), "final_norm": ("residual",)}
# the parts of a parameter that has several in one tensor, in their order, and the space of each
PARTS = {"qkv": {part: part for part in ("query", "key", "value")}, "gate_up": {"gate": "ffn", "up": "ffn"}}


@dataclass(frozen=True)
class Space:
    """How n units become m: `out` (m, n) makes the new values, `into` (m, n) the weights that read them."""

    out: "Tensor"
    into: "Tensor"


Spaces = Mapping[str, Space]


@dataclass(frozen=True)
class Sizes:
    """The widths of a model."""

    hidden: int  # of the residual stream
    heads: int  # query heads
    ffn: int  # inside of the feed-forward part
    heads_per_kv: int = 1  # query heads that read the same keys and values


class WidthRule(NamedTuple):
    """How a model becomes wider: each new unit copies an old one, and the weights that read the copies sum to 1.

    The copies are random and read alike (Net2Net, FPI), unless the rule is lossless (LEMON): then the old units are
    repeated in turn, so that a whole multiple has equally many copies of each, and their weights differ, so that
    they diverge in training.
    """

    new_from_above: bool = False  # whether new units come from the layer above (AKI)
    is_lossless: bool = False  # it is defined only for whole multiples of the width


WIDTHS = {"fpi": WidthRule(), "aki": WidthRule(new_from_above=True), "lemon": WidthRule(is_lossless=True)}


def width_problems(rule: str, source: Sizes, target: Sizes) -> list[str]:
    """Messages about why a model of widths `source` cannot grow to `target`."""
    found = []
    for name in ("hidden", "heads", "ffn"):
        old, new = getattr(source, name), getattr(target, name)
        if old > new:
            found.append(f"model.{name}={new} is less than the source's {old}: nothing shrinks")
    if source.hidden * target.heads != target.hidden * source.heads:
        size = source.hidden // source.heads
        heads, rest = divmod(target.hidden, size)
        remedy = "and that is no multiple of it" if rest else f"so model.heads must be {heads}"
        found.append(
            f"heads are copied whole, and the source's have {size} units: model.hidden={target.hidden}, {remedy}"
        )
    if source.heads_per_kv != target.heads_per_kv:
        kv_heads, rest = divmod(target.heads, source.heads_per_kv)
        remedy = "and that is no multiple of it" if rest else f"so model.kv_heads must be {kv_heads}"
        found.append(
            f"query heads are copied with the keys and values that they read, which {source.heads_per_kv} of the "
            f"source's share: model.heads={target.heads}, {remedy}"
        )
    if WIDTHS[rule].is_lossless and target.hidden % source.hidden:
        found.append(
            f"model.hidden={target.hidden} is not a whole multiple of the source's {source.hidden}, and LEMON is "
            "lossless only for those; take another width or expander=bert2bert"
        )
    return found


def spaces(rule: str, source: Sizes, target: Sizes, random: np.random.Generator) -> Spaces:
    """The matrices of a rule; whole heads are copied, the same ones for queries, keys and values."""
    import torch

    def space(old: int, new: int, *units: int) -> list[Space]:
        """One space for each number of units that are copied together."""
        if WIDTHS[rule].is_lossless:
            g = np.arange(new) % old  # the unit that each unit copies
            weights = random.uniform(0.5, 1.5, new)
        else:
            g = np.concatenate([np.arange(old), random.integers(old, size=new - old)])
            weights = np.ones(new)
        out = np.eye(old)[g]
        both = out, out * (weights / np.bincount(g, weights)[g])[:, None]
        return [Space(*(torch.from_numpy(np.kron(matrix, np.eye(n))).float() for matrix in both)) for n in units]

    group, head = source.heads_per_kv, source.hidden // source.heads
    kv, queries = space(source.heads // group, target.heads // group, head, group * head)
    (residual,), (ffn,) = space(source.hidden, target.hidden, 1), space(source.ffn, target.ffn, 1)
    return {"query": queries, "key": kv, "value": kv, "mixed": queries, "residual": residual, "ffn": ffn}


def axes_of(name: str, *, tied: bool = True) -> tuple[str | None, ...]:
    """The spaces of a parameter within the model or the layer; empty if it does not grow."""
    module, _, leaf = name.partition(".")
    axes = (AXES if tied else AXES | UNTIED_AXES).get(module, ())
    return axes[:1] if leaf == "bias" else axes


def parts_of(name: str) -> dict[str, str]:
    """The parts of a parameter of a layer and the space that each writes to; empty for one that has no parts."""
    return PARTS.get(name.partition(".")[0], {})


def widened(name: str, tensor: "Tensor", spaces: Spaces, *, tied: bool = True) -> "Tensor":
    """The parameter `name` (within the model or the layer) at the new width; differentiable in the matrices."""
    import torch

    for dimension, axis in enumerate(axes_of(name, tied=tied)):
        if axis is None:
            continue
        if axis in PARTS:
            matrices = [spaces[space].out for space in PARTS[axis].values()]
            parts = tensor.split([matrix.shape[1] for matrix in matrices])
            tensor = torch.cat([matrix @ part for matrix, part in zip(matrices, parts, strict=True)])
            continue
        space = spaces[axis.removeprefix("<")]
        matrix = space.into if axis.startswith("<") else space.out
        tensor = matrix @ tensor if dimension == 0 else tensor @ matrix.t()
    return tensor


def flops_of_widening(
    name: str, shape: tuple[int, ...], spaces: Mapping[str, tuple[int, int]], *, tied: bool = True
) -> list[int]:
    """FLOPs of the products in `widened`, one dimension after the other, from the (new, old) sizes of each space.

    Forward only. The first is the one with the parameter itself.
    """
    found, sizes = [], list(shape)
    for dimension, axis in enumerate(axes_of(name, tied=tied)):
        if axis is not None:
            written = PARTS[axis].values() if axis in PARTS else [axis.removeprefix("<")]
            rest = int(np.prod(sizes)) // sizes[dimension]
            found.append(sum(2 * new * old * rest for new, old in map(spaces.__getitem__, written)))
            sizes[dimension] = sum(spaces[space][0] for space in written)
    return found


def from_above(name: str, own: "Tensor", above: "Tensor", spaces: Spaces) -> "Tensor":
    """AKI (Chen 2022, section 3.3): new output units are those of the layer above, at the same place.

    `own` and `above` are the parameter of a layer and of the next one, both widened by `spaces`.
    """
    import torch

    written = parts_of(name).values() or [axes_of(name)[0]]
    sizes = [spaces[str(space)].out.shape for space in written]
    new = [size[0] for size in sizes]
    parts = zip(own.split(new), above.split(new), sizes, strict=True)
    return torch.cat([torch.cat((lower[:old], upper[old:])) for lower, upper, (_, old) in parts])


def widened_layers(layers: list[State], spaces: Spaces, *, new_from_above: bool) -> list[State]:
    """All layers at the new width; norms never come from the layer above (inferred)."""
    wide = [{name: widened(name, tensor, spaces) for name, tensor in layer.items()} for layer in layers]
    if not new_from_above:
        return wide
    mixed = [
        {name: own if "norm" in name else from_above(name, own, above[name], spaces) for name, own in layer.items()}
        for layer, above in pairwise(wide)
    ]
    return [*mixed, wide[-1]]
