"""Which row is the n-th that a run sees: a function of its seed, at any size, with nothing kept in memory."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from apollo_cli.growth.rng import Purpose, generator

_ROUNDS = 8  # of the Feistel network; 4 make it pseudorandom (Luby & Rackoff 1988), small corpora like more
_FEWEST_BITS = 4  # of each half: fewer leave too few permutations to choose from
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
_BLOCK = 10_000  # rows among which each part of a mixture has its share, to 0.01 %


def shuffled(
    rows: int, seed: int, epoch: int, positions: np.ndarray, purpose: Purpose = Purpose.ROW_ORDER
) -> np.ndarray:
    """The row at each of `positions` of a permutation of range(rows) that belongs to (seed, epoch).

    A Feistel network on the bits of the position, walked until it lands inside the range: a bijection that
    needs no memory, whatever the number of rows.
    """
    half = max(_FEWEST_BITS, (max(rows - 1, 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = generator(seed, purpose, epoch).integers(0, 2**64, size=_ROUNDS, dtype=np.uint64)
    result = positions.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> shift, result[outside] & mask
        for key in keys:
            mixed = (right ^ key) * _MULTIPLIER
            mixed = (mixed ^ (mixed >> np.uint64(32))) * _MULTIPLIER
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        result[outside] = (left << shift) | right
        outside = result >= rows
    return result.astype(np.int64)


@dataclass(frozen=True)
class RowOrder:
    """The order of the training rows.

    Attributes:
        rows: of each part of the corpus, which lie one after another.
        weights: their shares; None makes all parts one, with every row once an epoch.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def row_numbers(self, seed: int, samples: np.ndarray) -> np.ndarray:
        """The row of each sample; samples are numbered through the run, epoch after epoch."""
        if self.weights is None:
            return _epochs(sum(self.rows), seed, 0, samples)
        parts, processes = self._mixed(seed, samples)
        picked = np.empty(len(samples), dtype=np.int64)
        for part in np.unique(parts):
            here = parts == part
            first = sum(self.rows[:part])
            picked[here] = first + _epochs(self.rows[part], seed, int(part), processes[here])
        return picked

    def _mixed(self, seed: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each sample, and how many samples of that part come before it."""
        assert self.weights is not None
        counts = np.array(allotted(_BLOCK, self.weights))
        blocks, places = np.divmod(samples, _BLOCK)
        parts, processes = np.empty_like(samples), np.empty_like(samples)
        for block in np.unique(blocks):
            here = blocks == block
            part_at, rank_at = _block(self.weights, seed, int(block))
            parts[here] = part_at[places[here]]
            processes[here] = block * counts[parts[here]] + rank_at[places[here]]
        return parts, processes


def most_needed(samples: int, weights: tuple[float, ...]) -> list[int]:
    """Rows of each part, at most, among the first `samples` of a run."""
    blocks, rest = divmod(samples, _BLOCK)
    return [blocks * count + min(rest, count) for count in allotted(_BLOCK, weights)]


def allotted(count: int, weights: tuple[float, ...]) -> list[int]:
    """`count` things shared out by weights, by the largest remainders."""
    exact = [count * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


@lru_cache(maxsize=4)
def _block(weights: tuple[float, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The part at each place of a block, and how many places before it in the block have the same part."""
    slots = np.repeat(np.arange(len(weights)), allotted(_BLOCK, weights))
    parts = slots[shuffled(_BLOCK, seed, block, np.arange(_BLOCK), Purpose.MIXTURE)]
    processes = np.empty(_BLOCK, dtype=np.int64)
    for part in range(len(weights)):
        here = parts == part
        processes[here] = np.arange(here.sum())
    return parts, processes


def _epochs(rows: int, seed: int, part: int, samples: np.ndarray) -> np.ndarray:
    """The row of each of a part's samples: every row once an epoch, each epoch in an order of its own."""
    epochs, positions = np.divmod(samples, rows)
    picked = np.empty(len(samples), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        picked[here] = shuffled(rows, seed, (part << 48) + int(epoch), positions[here])
    return picked
