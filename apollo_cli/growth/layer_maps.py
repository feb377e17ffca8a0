"""Layer maps: from which of `source` layers each of `target` layers takes its weights.

A map has both uses of the paper: sharing N stored layers over a forward pass of any depth, and growing them to the
next N. A copying map is a tuple of indices. As a matrix G (target x source, rows sum to 1) it is
W_new[i] = sum_j G[i, j] W[j]; such a matrix can also blend layers.
"""

from collections.abc import Callable, Iterable
from functools import wraps

import numpy as np

from apollo_cli.errors import NameTakenError

LayerMap = tuple[int, ...]
Copy = Callable[[int, int], LayerMap]


def nearest(source: int, target: int) -> LayerMap:
    """Interpolation: layer i comes from floor(i * source / target), in integers (Apollo, section 3.3).

    3 -> 8 is 0 0 0 1 1 1 2 2.
    """
    return tuple(i * source // target for i in range(target))


def linear(source: int, target: int) -> np.ndarray:
    """Linear interpolation: layer i is at i (source-1) / (target-1) and blends its two neighbours.

    2 -> 3 is W0, (W0 + W1)/2, W1.
    """
    matrix = np.zeros((target, source))
    for i in range(target):
        below, remainder = divmod(i * (source - 1), target - 1) if target > 1 else (0, 0)
        share = remainder / (target - 1) if remainder else 0.0
        matrix[i, below] = 1.0 - share
        if share:
            matrix[i, below + 1] = share
    return matrix


COPIES: dict[str, Copy] = {"nearest": nearest}
BLENDS: dict[str, Callable[[int, int], np.ndarray]] = {"linear": linear}
EXPANDER_NAMES = {*COPIES, *BLENDS}  # of layer maps, and of the classes in `expanders`


def take_name(kind: str) -> None:
    """Marks the name of an expander or a layer map as taken; a NameTakenError if it is already."""
    if kind in EXPANDER_NAMES:
        raise NameTakenError(f"expander={kind}", f"there is an expander or a layer map {kind!r} already")
    EXPANDER_NAMES.add(kind)


def copies(kind: str) -> Callable[[Copy], Copy]:
    """Registers a function of (source, target) that copies layers, also as expander=kind; checks its name."""

    def register(function: Copy) -> Copy:
        take_name(kind)
        COPIES[kind] = function
        return function

    return register


@copies("stack")
def stack(source: int, target: int) -> LayerMap:
    """Stacking: all layers repeated; an incomplete last round has the top ones (StackBERT).

    3 -> 5 is 0 1 2 1 2.
    """
    rest = target % source
    whole_rounds = tuple(i % source for i in range(target - rest))
    return whole_rounds + tuple(range(source - rest, source))


def by_doubling(once: Copy) -> Copy:
    """A map for any target, from `once` for at most twice the layers: they are doubled as often as needed first."""

    @wraps(once)
    def copy(source: int, target: int) -> LayerMap:
        if target <= 2 * source:
            return once(source, target)
        doubled = once(source, 2 * source)
        return tuple(doubled[i] for i in copy(2 * source, target))

    return copy


@copies("append")
@by_doubling
def append(source: int, target: int) -> LayerMap:
    """Gradual stacking: all layers, then the last of them again (Reddi 2023; MSLT, Yang 2020).

    4 -> 6 is 0 1 2 3 2 3.
    """
    return (*range(source), *range(2 * source - target, source))


@copies("middle")
@by_doubling
def middle(source: int, target: int) -> LayerMap:
    """MIDAS (Saunshi 2024): of n blocks as long as the added one, the block ceil(n/2) - 1 is repeated in place.

    6 -> 8 is 0 1 2 3 2 3 4 5. Where the layers do not divide evenly, the last block is shorter.
    """
    if not (added := target - source):
        return tuple(range(source))
    blocks = -(-source // added)
    end = added * -(-blocks // 2)  # of the repeated block
    return (*range(end), *range(end - added, source))


@copies("boundary")
@by_doubling
def boundary(source: int, target: int) -> LayerMap:
    """LIDAS (Kapl 2025): the layers on both sides of the middle are repeated between them.

    6 -> 8 is 0 1 2 2 3 3 4 5. Of an odd number of layers, one more is from above the middle (inferred).
    """
    added, centre = target - source, source // 2
    first = centre - added // 2
    return (*range(centre), *range(first, first + added), *range(centre, source))


def layer_map(kind: str, source: int, target: int) -> LayerMap:
    """The copying map `kind` as `target` indices into `source` layers; of no layers an empty one.

    A ValueError if `kind` is unknown or blends, or 1 <= source <= target does not hold.
    """
    if source == target == 0:
        return ()
    _check(kind, COPIES, source, target)
    return COPIES[kind](source, target)


def mixing_matrix(kind: str, source: int, target: int) -> np.ndarray:
    """Any map `kind` as a float64 matrix (target, source) whose rows sum to 1; those of copies are one-hot.

    A ValueError if `kind` is unknown, or 1 <= source <= target does not hold.
    """
    _check(kind, COPIES | BLENDS, source, target)
    if kind in BLENDS:
        return BLENDS[kind](source, target)
    return np.eye(source)[list(COPIES[kind](source, target))]


def inserted(rows: Iterable[np.ndarray | None]) -> tuple[int, ...]:
    """The new layers among the rows of a map: those that are not the first copy of a layer. None is no copy."""
    old: set[int] = set()
    found = []
    for i, row in enumerate(rows):
        sources = [] if row is None else np.flatnonzero(row).tolist()
        if len(sources) == 1 and not old.issuperset(sources):
            old.update(sources)
        else:
            found.append(i)
    return tuple(found)


def _check(kind: str, known: dict, source: int, target: int) -> None:
    if kind not in known:
        raise ValueError(f"unknown layer map {kind!r}: choose one of {', '.join(known)}")
    if not 1 <= source <= target:
        raise ValueError(f"a layer map needs 1 <= source <= target, not {source} -> {target}")


def layers_to_run(stored: int, depth: int) -> tuple[int, ...]:
    """The stored layers of a pass of this depth: the lowest ones (early exit), or all, shared as in training."""
    return tuple(range(depth)) if depth < stored else layer_map("nearest", stored, depth)
