"""The row that a run sees as its n-th: a function of its seed, at any size, with nothing kept in memory."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from apollo_cli.growth.rng import Purpose, generator

_ROUNDS = 8  # of the Feistel network; 4 make it pseudorandom (Luby & Rackoff 1988), small corpora need more
_FEWEST_BITS = 4  # of each half: fewer leave too few permutations to choose from
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
_BLOCK = 10_000  # rows among which each part of a mixture has its share, to 0.01 %


def shuffled(
    rows: int, seed: int, epoch: int, positions: np.ndarray, purpose: Purpose = Purpose.ROW_ORDER
) -> np.ndarray:
    """The row at each of `positions` of a permutation of range(rows) that is determined by (seed, epoch).

    A Feistel network on the bits of the position, applied until the result is inside the range: a bijection that
    needs no memory for any number of rows.
    """
    half = max(_FEWEST_BITS, (max(rows - 1, 1).bit_length() + 1) // 2)
    keys = generator(seed, purpose, epoch).integers(0, 2**64, size=_ROUNDS, dtype=np.uint64)
    result, outside = positions.astype(np.uint64), np.ones(len(positions), dtype=bool)
    # few rows are outside up to 255 times of 256: then a table of the network is faster
    table = _feistel(np.arange(4**half, dtype=np.uint64), keys, half) if half == _FEWEST_BITS else None
    while outside.any():
        result[outside] = _feistel(result[outside], keys, half) if table is None else table[result[outside]]
        outside = result >= rows
    return result.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    """A permutation of range(4^half), applied to `values`."""
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        mixed = (right ^ key) * _MULTIPLIER
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _MULTIPLIER
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << shift) | right


@dataclass(frozen=True)
class RowOrder:
    """The order of the training rows."""

    rows: tuple[int, ...]  # of each part of the corpus; the parts are stored one after another
    weights: tuple[float, ...] | None = None  # None treats all parts as one, with every row once an epoch

    def row_numbers(self, seed: int, samples: np.ndarray) -> np.ndarray:
        """The row of each sample; samples are numbered from the start of the run."""
        if self.weights is None:
            return _epochs(sum(self.rows), seed, 0, samples)
        parts, numbers = self._mixed(seed, samples)
        picked = np.empty(len(samples), dtype=np.int64)
        for part in np.unique(parts):
            here = parts == part
            first = sum(self.rows[:part])
            picked[here] = first + _epochs(self.rows[part], seed, int(part), numbers[here])
        return picked

    def _mixed(self, seed: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each sample, and the number of samples of that part before it."""
        assert self.weights is not None
        counts = np.array(allotted(_BLOCK, self.weights))
        blocks, offsets = np.divmod(samples, _BLOCK)
        parts, numbers = np.empty_like(samples), np.empty_like(samples)
        for block in np.unique(blocks):
            here = blocks == block
            part_at, number_at = _block(self.weights, seed, int(block))
            parts[here] = part_at[offsets[here]]
            numbers[here] = block * counts[parts[here]] + number_at[offsets[here]]
        return parts, numbers


def most_needed(samples: int, weights: tuple[float, ...]) -> list[int]:
    """An upper bound of the rows of each part among the first `samples` of a run."""
    blocks, rest = divmod(samples, _BLOCK)
    return [blocks * count + min(rest, count) for count in allotted(_BLOCK, weights)]


def allotted(count: int, weights: tuple[float, ...]) -> list[int]:
    """`count` divided by weights into whole numbers, by the largest remainders."""
    exact = [count * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


@lru_cache(maxsize=4)
def _block(weights: tuple[float, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of each sample of a block, and the number of samples of that part before it in the block."""
    slots = np.repeat(np.arange(len(weights)), allotted(_BLOCK, weights))
    parts = slots[shuffled(_BLOCK, seed, block, np.arange(_BLOCK), Purpose.MIXTURE)]
    numbers = np.empty(_BLOCK, dtype=np.int64)
    for part in range(len(weights)):
        here = parts == part
        numbers[here] = np.arange(here.sum())
    return parts, numbers


def _epochs(rows: int, seed: int, part: int, samples: np.ndarray) -> np.ndarray:
    """The row of each sample of a part: every row once an epoch, each epoch in another order."""
    epochs, positions = np.divmod(samples, rows)
    picked = np.empty(len(samples), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        picked[here] = shuffled(rows, seed, (part << 48) + int(epoch), positions[here])
    return picked
