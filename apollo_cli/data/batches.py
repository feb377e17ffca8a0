"""Rows to batches: which rows, and what is to be predicted, as functions of (seed, sample)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from apollo_cli.growth.randomness import Purpose, generator
from apollo_cli.models.transformer import Batch

_ROUNDS = 8  # of the Feistel network; 4 make it pseudorandom (Luby & Rackoff 1988), small corpora like more
_FEWEST_BITS = 4  # of each half: fewer leave too few permutations to choose from
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)


def shuffled(rows: int, seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """The row at each of `positions` of a permutation of range(rows) that belongs to (seed, epoch).

    A Feistel network on the bits of the position, walked until it lands inside the range: a bijection that
    needs no memory, whatever the number of rows.
    """
    half = max(_FEWEST_BITS, (max(rows - 1, 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = generator(seed, Purpose.ROW_ORDER, epoch).integers(0, 2**64, size=_ROUNDS, dtype=np.uint64)
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


class Task(ABC):
    """What is asked of a row. Every row has the same number of predictions, so shapes and FLOPs are fixed."""

    @abstractmethod
    def predictions(self, seq_len: int) -> int:
        """Predictions in a row of `seq_len` tokens."""

    @abstractmethod
    def batch(self, rows: np.ndarray, seed: int, purpose: Purpose, indices: np.ndarray) -> Batch:
        """The batch of `rows` (n, seq_len); the i-th row's luck belongs to (seed, purpose, indices[i])."""


@dataclass(frozen=True)
class NextToken(Task):
    """GPT: at every position but the last, the next token."""

    def predictions(self, seq_len: int) -> int:
        """All positions but the last."""
        return seq_len - 1

    def batch(self, rows: np.ndarray, seed: int, purpose: Purpose, indices: np.ndarray) -> Batch:
        """No luck is needed."""
        tokens = torch.from_numpy(rows.astype(np.int64))
        positions = torch.arange(tokens.numel()).view(tokens.shape)[:, :-1]
        return Batch(tokens, positions.flatten(), tokens[:, 1:].flatten())


@dataclass(frozen=True)
class MaskedTokens(Task):
    """BERT (Devlin 2019): of round(fraction x maskable) positions a row, 80 % become [MASK], 10 % random.

    Maskable is all but [CLS] at the start and [SEP] at the end. The last 10 % keep their token.
    """

    fraction: float
    mask_id: int
    vocabulary: int

    def predictions(self, seq_len: int) -> int:
        """round(fraction x (seq_len - 2)), at least one."""
        return max(1, round(self.fraction * (seq_len - 2)))

    def batch(self, rows: np.ndarray, seed: int, purpose: Purpose, indices: np.ndarray) -> Batch:
        """Exactly `predictions` masked positions in every row."""
        tokens = rows.astype(np.int64)
        count, seq_len = self.predictions(tokens.shape[1]), tokens.shape[1]
        chosen = np.empty((len(tokens), count), dtype=np.int64)
        for row, index, places in zip(tokens, indices, chosen, strict=True):
            luck = generator(seed, purpose, int(index))
            places[:] = np.sort(luck.permutation(seq_len - 2)[:count]) + 1
            choice, other = luck.random(count), luck.integers(self.vocabulary, size=count)
            row[places] = np.where(choice < 0.8, self.mask_id, np.where(choice < 0.9, other, row[places]))
        flat = (chosen + np.arange(len(tokens))[:, None] * seq_len).ravel()
        targets = rows.reshape(-1)[flat].astype(np.int64)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(flat), torch.from_numpy(targets))


@dataclass(frozen=True)
class TrainingBatches:
    """The micro-batches of a run.

    Attributes:
        rows: (rows, seq_len), the training rows.
        task: what is asked.
        seed: of the run.
        batch_size: sequences a step.
        micro_size: sequences a micro-step.
    """

    rows: np.ndarray
    task: Task
    seed: int
    batch_size: int
    micro_size: int

    def micro_batch(self, step: int, part: int) -> Batch:
        """Micro-batch `part` of a step."""
        return self.task.batch(
            self.rows[self.row_numbers(step, part)], self.seed, Purpose.MASK, self._samples(step, part)
        )

    def row_numbers(self, step: int, part: int) -> np.ndarray:
        """Which rows these are: samples are numbered through the run, epoch after epoch."""
        samples = self._samples(step, part)
        epochs, positions = np.divmod(samples, len(self.rows))
        picked = np.empty(len(samples), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            picked[here] = shuffled(len(self.rows), self.seed, int(epoch), positions[here])
        return picked

    def _samples(self, step: int, part: int) -> np.ndarray:
        first = step * self.batch_size + part * self.micro_size
        return np.arange(first, first + self.micro_size)


@dataclass(frozen=True)
class EvaluationBatches:
    """The same rows and masks for every run on the same corpus, whatever its seed."""

    rows: np.ndarray
    task: Task
    micro_size: int

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.rows), self.micro_size):
            rows = self.rows[first : first + self.micro_size]
            yield self.task.batch(rows, 0, Purpose.EVALUATION_MASK, np.arange(first, first + len(rows)))
