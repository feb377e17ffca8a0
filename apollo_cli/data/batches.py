"""Rows to batches: the rows and what is to be predicted, as functions of (seed, sample)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from apollo_cli.data.row_order import RowOrder
from apollo_cli.growth.rng import Purpose, generators
from apollo_cli.models.transformer import Batch

_BLOCK = 1024  # samples whose rows are looked up together, in twice the time of a batch's; an epoch if that is less


@dataclass(frozen=True)
class NextToken:
    """GPT and LLaMA: at every position but the last, the next token."""

    def predictions(self, seq_len: int) -> int:
        """Predictions in a row of `seq_len` tokens."""
        return seq_len - 1

    def batch(self, rows: np.ndarray, seed: int, purpose: Purpose, indices: np.ndarray) -> Batch:
        """The batch of `rows` (n, seq_len); nothing in it is random."""
        tokens = torch.from_numpy(rows.astype(np.int64))
        positions = torch.arange(tokens.numel()).view(tokens.shape)[:, :-1]
        return Batch(tokens, positions.flatten(), tokens[:, 1:].flatten())


@dataclass(frozen=True, eq=False)
class MaskedTokens:
    """BERT (Devlin 2019): of round(fraction x maskable) positions a row, 80 % become [MASK], 10 % random.

    Maskable is all but [CLS] at the start and [SEP] at the end. The last 10 % keep their token.

    With `inside` whole words are chosen at random; one that is too long is skipped, and where no word fits, the
    first tokens of one are taken, so that every row has the same number.
    """

    fraction: float
    mask_id: int
    vocabulary: int  # entries, from which the random ones are drawn
    inside: np.ndarray | None = None  # (vocabulary,) of bool, the tokens that continue the word before them

    def predictions(self, seq_len: int) -> int:
        """Predictions in a row of `seq_len` tokens."""
        return max(1, round(self.fraction * (seq_len - 2)))

    def batch(self, rows: np.ndarray, seed: int, purpose: Purpose, indices: np.ndarray) -> Batch:
        """The batch of `rows` (n, seq_len); the i-th row's random numbers depend on (seed, purpose, indices[i])."""
        tokens = rows.astype(np.int64)
        count, seq_len = self.predictions(tokens.shape[1]), tokens.shape[1]
        chosen, other = np.empty((2, len(tokens), count), dtype=np.int64)
        choice = np.empty((len(tokens), count))
        for i, rng in enumerate(generators(seed, purpose, indices)):
            if self.inside is None:
                chosen[i] = rng.permutation(seq_len - 2)[:count]
            else:
                chosen[i] = _word_positions(self.inside[tokens[i, 1:-1]], count, rng)
            choice[i] = rng.random(count)
            other[i] = rng.integers(self.vocabulary, size=count)
        chosen.sort()
        flat = chosen + 1 + np.arange(len(tokens))[:, None] * seq_len
        targets = tokens.take(flat)
        tokens.put(flat, np.where(choice < 0.8, self.mask_id, np.where(choice < 0.9, other, targets)))
        return Batch(torch.from_numpy(tokens), torch.from_numpy(flat.ravel()), torch.from_numpy(targets.ravel()))


# what is to be predicted: the same number of tokens in each row, so that shapes and FLOPs are fixed
Task = NextToken | MaskedTokens


def _word_positions(inside: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` positions of a row that are whole words as far as words fit; `inside` as in `MaskedTokens`."""
    starts = np.flatnonzero(~inside)
    starts = starts if len(starts) and starts[0] == 0 else np.r_[0, starts]
    ends = np.r_[starts[1:], len(inside)]
    order = rng.permutation(len(starts))
    chosen: list[int] = []
    left_out = []
    for word in order:
        if ends[word] - starts[word] <= count - len(chosen):
            chosen.extend(range(starts[word], ends[word]))
        else:
            left_out.append(word)
        if len(chosen) == count:
            return np.array(chosen)
    first = int(starts[left_out[0]])  # no word is short enough for the rest
    return np.array([*chosen, *range(first, first + count - len(chosen))])


@dataclass(frozen=True)
class TrainingBatches:
    """The micro-batches of a run."""

    rows: np.ndarray  # (rows, seq_len)
    task: Task
    seed: int
    batch_size: int  # sequences a step
    micro_size: int  # sequences a micro-step
    order: RowOrder | None = None  # None for a corpus of one part
    rank: int = 0  # of this process among those that share a micro-step
    processes: int = 1  # number of these; a divisor of `micro_size`
    first_sample: int = 0  # those before it were read by another run

    def micro_batch(self, step: int, part: int) -> Batch:
        """Micro-batch `part` of a step, or this process's share of it."""
        share = self.micro_size // self.processes
        samples = self._samples(step, part)[self.rank * share : (self.rank + 1) * share]
        return self.task.batch(self.rows[self._rows_of(samples)], self.seed, Purpose.MASK, samples)

    def row_numbers(self, step: int, part: int) -> np.ndarray:
        """The numbers of the rows in that micro-batch, of all processes."""
        return self._rows_of(self._samples(step, part))

    def _rows_of(self, samples: np.ndarray) -> np.ndarray:
        order, first = self.order or RowOrder((len(self.rows),)), int(samples[0])
        size = min(_BLOCK, sum(order.rows))
        blocks = range(first // size, int(samples[-1]) // size + 1)
        numbers = np.concatenate([_row_numbers(order, self.seed, block, size) for block in blocks])
        return numbers[samples - blocks[0] * size]

    def _samples(self, step: int, part: int) -> np.ndarray:
        first = self.first_sample + step * self.batch_size + part * self.micro_size
        return np.arange(first, first + self.micro_size)


@lru_cache(maxsize=2)
def _row_numbers(order: RowOrder, seed: int, block: int, size: int) -> np.ndarray:
    """The rows of a block of samples, (size,)."""
    return order.row_numbers(seed, np.arange(block * size, (block + 1) * size))


@dataclass(frozen=True)
class EvaluationBatches:
    """The same rows and masks for every run on the same corpus, with any seed."""

    rows: np.ndarray  # (rows, seq_len), held out
    task: Task
    micro_size: int  # sequences at once, of all processes
    rank: int = 0  # of this process among those that share the rows
    processes: int = 1

    def __len__(self) -> int:
        return len(range(0, len(self.rows), self._share * self.processes))

    @property
    def _share(self) -> int:
        return max(1, self.micro_size // self.processes)

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        """The batches of this process, each with the number of its predictions that count.

        All processes have equally many batches, because they may have to run each together: a process that has no
        rows left repeats a row of another one, and none of its predictions count.
        """
        share = self._share
        for first in range(0, len(self.rows), share * self.processes):
            mine = np.arange(first + self.rank * share, first + (self.rank + 1) * share)
            counted = mine[mine < len(self.rows)]
            taken = counted if len(counted) else np.array([first])
            batch = self.task.batch(self.rows[taken], 0, Purpose.EVALUATION_MASK, taken)
            yield batch, len(batch.targets) if len(counted) else 0
