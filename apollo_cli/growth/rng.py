"""Random numbers as a function of (seed, purpose, index), without state.

With a counter-based generator (Philox, Salmon et al., SC 2011) the n-th number of a stream costs no more than the
first. So a resumed run, another rank and a plan made before training all draw the same numbers.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum

import numpy as np

_DRAWS_PER_BLOCK = 4  # Philox4x64 makes four 64-bit numbers from each counter value


class Purpose(IntEnum):
    """What the numbers are used for; different purposes of one seed are independent streams."""

    DEPTH = 1
    ROW_ORDER = 2
    MASK = 3
    EVALUATION_MASK = 4
    MIXTURE = 5
    FORWARD_PATH = 6
    GROWTH = 7
    DROPOUT = 8


def uniforms(seed: int, purpose: Purpose, start: int, count: int) -> np.ndarray:
    """Numbers `start` to `start + count - 1` of a stream, uniform on [0, 1), float64 (count,)."""
    block, offset = divmod(start, _DRAWS_PER_BLOCK)
    philox = np.random.Philox(key=(seed, purpose), counter=(block, 0, 0, 0))
    return np.random.Generator(philox).random(offset + count)[offset:]


def generator(seed: int, purpose: Purpose, index: int) -> np.random.Generator:
    """The generator of one index (a sample, an epoch): 2^128 numbers that no other index uses."""
    return np.random.Generator(np.random.Philox(key=(seed, purpose), counter=(0, 0, index, 1)))


def generators(seed: int, purpose: Purpose, indices: Iterable[int]) -> Iterator[np.random.Generator]:
    """The generator of each index: one object that is set to it, ten times as fast as a new one."""
    rng = generator(seed, purpose, 0)
    state = rng.bit_generator.state  # before any draw
    for index in indices:
        state["state"]["counter"][2] = index
        rng.bit_generator.state = state
        yield rng
