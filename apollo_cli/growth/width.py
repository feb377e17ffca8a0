"""Growth of the width: every axis of every tensor belongs to a space, and each space grows by one pair of matrices.

With x' = out x for the values of a space and W' = W into^T for the weights that read them, W' x' = W x if
into^T out = I. `AXES` has the ties of bert2BERT (Chen 2022, section 3.2) and LiGO (Wang 2023, section 3.2): one
pair for the residual stream, one for the attention heads, one for the inside of the feed-forward part.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # a config is checked without torch, which takes a second to import
    from torch import Tensor

State = dict[str, "Tensor"]

# The space of each dimension; with `<` the parameter reads the space, else it writes to it. The decoder is the
# token embedding, which writes: so the norm before the decoder reads. Other parameters do not grow.
AXES: dict[str, tuple[str | None, ...]] = {
    "qkv.weight": ("qkv", "<residual"),
    "qkv.bias": ("qkv",),
    "attention_out.weight": ("residual", "<value"),
    "attention_out.bias": ("residual",),
    "attention_norm.weight": ("residual",),
    "attention_norm.bias": ("residual",),
    "ffn_in.weight": ("ffn", "<residual"),
    "ffn_in.bias": ("ffn",),
    "ffn_out.weight": ("residual", "<ffn"),
    "ffn_out.bias": ("residual",),
    "ffn_norm.weight": ("residual",),
    "ffn_norm.bias": ("residual",),
    "tokens.weight": (None, "residual"),
    "positions.weight": (None, "residual"),
    "segments.weight": (None, "residual"),
    "embedding_norm.weight": ("residual",),
    "embedding_norm.bias": ("residual",),
    "transform.weight": ("residual", "<residual"),
    "transform.bias": ("residual",),
    "transform_norm.weight": ("<residual",),
    "transform_norm.bias": ("<residual",),
    "final_norm.weight": ("<residual",),
    "final_norm.bias": ("<residual",),
}
PARTS_OF_QKV = ("query", "key", "value")


@dataclass(frozen=True)
class Space:
    """How n units become m: `out` (m, n) makes the new values, `into` (m, n) the weights that read them."""

    out: "Tensor"
    into: "Tensor"


Spaces = Mapping[str, Space]


@dataclass(frozen=True)
class Sizes:
    """The widths of a model: the residual stream, the number of heads, the inside of the feed-forward part."""

    hidden: int
    heads: int
    ffn: int


def copied(source: int, target: int, random: np.random.Generator) -> np.ndarray:
    """g, the unit that each unit copies: old units copy themselves, new ones a random old one (Net2Net, FPI)."""
    return np.concatenate([np.arange(source), random.integers(source, size=target - source)])


def in_turn(source: int, target: int, random: np.random.Generator) -> np.ndarray:
    """g: the old units repeated, so that a whole multiple has equally many copies of each (LEMON)."""
    return np.arange(target) % source


def evenly(g: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The weights that read C copies of a unit: 1 / C each."""
    return 1 / np.bincount(g)[g]


def unevenly(g: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Different weights for the copies of a unit, with sum 1, so that the copies diverge in training (LEMON)."""
    weights = random.uniform(0.5, 1.5, len(g))
    return weights / np.bincount(g, weights)[g]


Choice = Callable[[int, int, np.random.Generator], np.ndarray]
Split = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class WidthRule(NamedTuple):
    """How a model becomes wider.

    Attributes:
        choose: the unit that each new one copies.
        split: the weights with which the copies of a unit are read.
        new_from_above: whether new units come from the layer above (AKI).
        whole_multiples: whether it is defined only for whole multiples of the width.
    """

    choose: Choice
    split: Split
    new_from_above: bool = False
    whole_multiples: bool = False


WIDTHS = {
    "fpi": WidthRule(copied, evenly),
    "aki": WidthRule(copied, evenly, new_from_above=True),
    "lemon": WidthRule(in_turn, unevenly, whole_multiples=True),
}


def width_problems(rule: str, source: Sizes, target: Sizes) -> list[str]:
    """Messages about why a model of widths `source` cannot grow to `target`."""
    found = []
    for name in ("hidden", "heads", "ffn"):
        old, new = getattr(source, name), getattr(target, name)
        if old > new:
            found.append(f"model.{name}={new} is less than the source's {old}: nothing shrinks")
    if source.hidden * target.heads != target.hidden * source.heads:
        size = source.hidden // source.heads
        found.append(
            f"heads are copied whole, and the source's have {size} units: model.hidden={target.hidden} needs "
            f"model.heads={target.hidden / size:g}"
        )
    if WIDTHS[rule].whole_multiples and target.hidden % source.hidden:
        found.append(
            f"model.hidden={target.hidden} is not a whole multiple of the source's {source.hidden}, and LEMON is "
            "lossless only for those; take another width or expander=bert2bert"
        )
    return found


def spaces(rule: str, source: Sizes, target: Sizes, random: np.random.Generator) -> Spaces:
    """The matrices of a rule; whole heads are copied, the same ones for queries, keys and values."""
    import torch

    choose, split = WIDTHS[rule][:2]

    def space(old: int, new: int, units: int = 1) -> Space:
        g = choose(old, new, random)
        out = np.eye(old)[g]
        both = (np.kron(matrix, np.eye(units)) for matrix in (out, out * split(g, random)[:, None]))
        return Space(*(torch.from_numpy(matrix).float() for matrix in both))

    heads = space(source.heads, target.heads, source.hidden // source.heads)
    found = dict.fromkeys(PARTS_OF_QKV, heads)
    return found | {"residual": space(source.hidden, target.hidden), "ffn": space(source.ffn, target.ffn)}


def widened(name: str, tensor: "Tensor", spaces: Spaces) -> "Tensor":
    """The parameter `name` (within the model or the layer) at the new width; differentiable in the matrices."""
    import torch

    for dimension, axis in enumerate(AXES.get(name, ())):
        if axis is None:
            continue
        if axis == "qkv":
            parts = zip(tensor.chunk(3), PARTS_OF_QKV, strict=True)
            tensor = torch.cat([spaces[space].out @ part for part, space in parts])
            continue
        space = spaces[axis.removeprefix("<")]
        matrix = space.into if axis.startswith("<") else space.out
        tensor = matrix @ tensor if dimension == 0 else tensor @ matrix.t()
    return tensor


def flops_of_widening(name: str, shape: tuple[int, ...], spaces: Mapping[str, tuple[int, int]]) -> int:
    """FLOPs of the products in `widened`, forward only, from the (new, old) sizes of each space."""
    total, sizes = 0, list(shape)
    for dimension, axis in enumerate(AXES.get(name, ())):
        if axis is not None:
            new, old = spaces["value" if axis == "qkv" else axis.removeprefix("<")]
            rest = int(np.prod(sizes)) // sizes[dimension]
            parts = sizes[dimension] // old  # 3 for queries, keys and values in one tensor
            total += 2 * parts * new * old * rest
            sizes[dimension] = parts * new
    return total


def from_above(name: str, own: "Tensor", above: "Tensor", source: int) -> "Tensor":
    """AKI (Chen 2022, section 3.3): new output units are those of the layer above, at the same place.

    Args:
        name: the parameter's name within the layer.
        own: the parameter, widened.
        above: the parameter of the next layer, widened.
        source: number of old output units, in each third where queries, keys and values are one tensor.
    """
    import torch

    thirds = 3 if AXES[name][0] == "qkv" else 1
    pieces = [
        torch.cat((lower[:source], upper[source:]))
        for lower, upper in zip(own.chunk(thirds), above.chunk(thirds), strict=True)
    ]
    return torch.cat(pieces)


def widened_layers(layers: list[State], spaces: Spaces, *, new_from_above: bool) -> list[State]:
    """All layers at the new width; norms never come from the layer above (inferred)."""
    wide = [{name: widened(name, tensor, spaces) for name, tensor in layer.items()} for layer in layers]
    if not new_from_above:
        return wide
    result = []
    for i, layer in enumerate(wide[:-1]):
        old = {name: len(tensor) // (3 if AXES[name][0] == "qkv" else 1) for name, tensor in layers[i].items()}
        result.append(
            {
                name: tensor if "norm" in name else from_above(name, tensor, wide[i + 1][name], old[name])
                for name, tensor in layer.items()
            }
        )
    return [*result, wide[-1]]
