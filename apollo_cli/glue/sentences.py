"""Sentences to batches: framed, cut, and padded to the longest of the batch and no further."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from apollo_cli.data.row_order import shuffled
from apollo_cli.data.tokenizer import special_ids
from apollo_cli.models.transformer import Batch


@dataclass(frozen=True)
class SentenceBatch(Batch):
    """A batch of sentences: one prediction a row, the label.

    Attributes:
        segments: (rows, seq_len) int64, 1 in the second sentence.
        seen: (rows, seq_len) bool, False at padding.
        places: (tokens,) int64, of what is seen in the flattened rows; known here, so that no device is waited for.
    """

    segments: Tensor
    seen: Tensor
    places: Tensor

    def pieces(self, count: int) -> Sequence[Batch]:
        """The batch as `count` batches of as many rows each."""
        if count == 1:  # nothing to look for, which would wait for the device
            return [self]
        parts = zip(super().pieces(count), self.segments.chunk(count), self.seen.chunk(count), strict=True)
        return [
            SentenceBatch(**piece.tensors, segments=segments, seen=seen, places=seen.flatten().nonzero().squeeze(1))
            for piece, segments, seen in parts
        ]


@dataclass(frozen=True)
class Framing:
    """How sentences become the tokens of a row.

    BERT has [CLS] a [SEP], or [CLS] a [SEP] b [SEP], and answers at [CLS] (Devlin 2019, figure 4). GPT has the
    end-of-text token behind each sentence, as between the documents that it was pretrained on, and answers at
    the last one (Radford 2018, figure 1, where that token is learned with the task).

    Attributes:
        kind: bert or gpt.
        ids: of the special tokens.
        max_length: tokens of a row, these included.
    """

    kind: str
    ids: dict[str, int]
    max_length: int

    @classmethod
    def of(cls, kind: str, tokenizer: Tokenizer, max_length: int) -> "Framing":
        """With the special tokens of a tokenizer."""
        return cls(kind, special_ids(kind, tokenizer), max_length)

    @property
    def padding(self) -> int:
        """GPT has no token for it; what stands behind the last token changes nothing before it."""
        return self.ids["pad" if self.kind == "bert" else "eos"]

    def row(self, sentences: Sequence[Sequence[int]]) -> tuple[list[int], int]:
        """The tokens of a row, and how many of them are the first segment's."""
        ends = [self.ids["sep" if self.kind == "bert" else "eos"]]
        begin = [self.ids["cls"]] if self.kind == "bert" else []
        first, *rest = cut(sentences, self.max_length - len(begin) - len(sentences))
        tokens = [*begin, *first, *ends]
        return tokens + [token for sentence in rest for token in [*sentence, *ends]], len(tokens)

    def place(self, length: int) -> int:
        """Of the token in a row of this length where the answer is read."""
        return 0 if self.kind == "bert" else length - 1


def cut(sentences: Sequence[Sequence[int]], room: int) -> list[Sequence[int]]:
    """The sentences with their ends cut off so that together they fit; the longer one loses first."""
    if len(sentences) == 1:
        return [sentences[0][:room]]
    first, second = sentences
    short = min(len(first), len(second), room // 2)
    if len(first) <= len(second):
        return [first[:short], second[: room - short]]
    return [first[: room - short], second[:short]]


@dataclass(frozen=True)
class Sentences:
    """The encoded rows of a split.

    Attributes:
        rows: tokens of each.
        firsts: how many of them are the first segment's, (rows,).
        labels: (rows,); zeros for a test.
        framing: theirs.
    """

    rows: list[np.ndarray]
    firsts: np.ndarray
    labels: np.ndarray
    framing: Framing

    @classmethod
    def encode(
        cls, texts: Sequence[tuple[str, ...]], labels: np.ndarray, framing: Framing, tokenizer: Tokenizer
    ) -> "Sentences":
        """Rows of these texts; `labels` may be empty."""
        columns = [
            tokenizer.encode_batch_fast(list(column), add_special_tokens=False)
            for column in zip(*texts, strict=True)
        ]
        framed = [framing.row([encoding.ids for encoding in encodings]) for encodings in zip(*columns, strict=True)]
        return cls(
            rows=[np.array(tokens, dtype=np.int64) for tokens, _ in framed],
            firsts=np.array([first for _, first in framed]),
            labels=labels if len(labels) else np.zeros(len(framed), dtype=labels.dtype),
            framing=framing,
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        return np.array([len(row) for row in self.rows])

    def batch(self, numbers: np.ndarray) -> SentenceBatch:
        """These rows."""
        rows = [self.rows[number] for number in numbers]
        lengths = np.array([len(row) for row in rows])
        width = lengths.max()
        tokens = np.full((len(rows), width), self.framing.padding, dtype=np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row)] = row
        at = np.arange(width)
        seen = at < lengths[:, None]
        places = np.array([self.framing.place(length) for length in lengths])
        return SentenceBatch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(places + np.arange(len(rows)) * width),
            targets=torch.from_numpy(self.labels[numbers]),
            segments=torch.from_numpy(((at >= self.firsts[numbers][:, None]) & seen).astype(np.int64)),
            seen=torch.from_numpy(seen),
            places=torch.from_numpy(np.flatnonzero(seen)),
        )

    def by_length(self, size: int) -> Iterator[np.ndarray]:
        """All row numbers in batches of rows of like length, so that little is padded."""
        order = np.argsort(self.lengths, kind="stable")
        yield from (order[first : first + size] for first in range(0, len(order), size))


@dataclass(frozen=True)
class TrainingSentences:
    """The batches of a fine-tuning run, as functions of the step; the last one of an epoch may be smaller.

    Attributes:
        sentences: the training rows.
        seed: of the run.
        batch_size: rows a step.
    """

    sentences: Sentences
    seed: int
    batch_size: int

    @property
    def micro_size(self) -> int:
        """A step is one micro-step."""
        return self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Every row comes once an epoch."""
        return -(-len(self.sentences.rows) // self.batch_size)

    def micro_batch(self, step: int, part: int) -> SentenceBatch:
        """The batch of a step."""
        return self.sentences.batch(self.row_numbers(step, part))

    def row_numbers(self, step: int, part: int) -> np.ndarray:
        """Which rows these are: each epoch has an order of its own."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = len(self.sentences.rows)
        positions = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, rows))
        return shuffled(rows, self.seed, epoch, positions)

    def sizes(self, steps: int) -> np.ndarray:
        """(steps, 3): rows, tokens of the longest one, tokens of all, of the first steps."""
        lengths = self.sentences.lengths
        taken = [lengths[self.row_numbers(step, 0)] for step in range(steps)]
        return np.array([(len(each), each.max(), each.sum()) for each in taken], dtype=np.int64).reshape(-1, 3)
