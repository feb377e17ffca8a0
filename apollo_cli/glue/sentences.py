"""Batches of sentences: with special tokens, truncated, and padded to the longest row of the batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from apollo_cli.data.row_order import shuffled
from apollo_cli.data.tokenizer import special_ids
from apollo_cli.models.transformer import Batch


@dataclass(frozen=True)
class SentenceBatch(Batch):
    """A batch of sentences with one prediction per row, the label."""

    segments: Tensor  # (rows, seq_len) int64, 1 in the second sentence
    attention_mask: Tensor  # (rows, seq_len) bool, False at padding
    token_indices: Tensor  # (tokens,) int64, no padding in the flattened rows; from the CPU, to wait for no device

    def chunks(self, count: int) -> Sequence[Batch]:
        if count == 1:  # `nonzero` below would wait for the device
            return [self]
        masks = self.attention_mask.chunk(count)
        parts = zip(super().chunks(count), self.segments.chunk(count), masks, strict=True)
        return [
            SentenceBatch(
                **chunk.tensors,
                segments=segments,
                attention_mask=mask,
                token_indices=mask.flatten().nonzero().squeeze(1),
            )
            for chunk, segments, mask in parts
        ]


def framed(kind: str, tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """A tokenizer that puts special tokens around the sentences, and cuts the longer one of a pair first.

    BERT reads [CLS] a [SEP], or [CLS] a [SEP] b [SEP] (Devlin 2019, figure 4). Others read the end-of-text token
    after each sentence, as between the documents of its pretraining (Radford 2018, figure 1, where it is learned
    with the task). A row has at most `max_length` tokens, special ones included.
    """
    ids = special_ids(kind, tokenizer)
    begin, end = (["cls"] if kind == "bert" else []), "sep" if kind == "bert" else "eos"
    names = {name: tokenizer.id_to_token(ids[name]) for name in (*begin, end)}
    single = [*(names[name] for name in begin), "$A", names[end]]
    special = [(names[name], ids[name]) for name in names]
    found = Tokenizer.from_str(tokenizer.to_str())
    found.post_processor = TemplateProcessing(single, [*single, "$B:1", f"{names[end]}:1"], special)
    found.enable_truncation(max_length, strategy="longest_first")
    found.no_padding()
    return found


@dataclass(frozen=True)
class SentenceDataset:
    """The encoded rows of a split; BERT predicts the label at [CLS], GPT at the last token."""

    kind: str  # of the model
    padding: int  # fills rows up; GPT has no token for it, and nothing reads what follows its last one
    rows: list[np.ndarray]  # tokens of each row
    firsts: np.ndarray  # (rows,), how many tokens belong to the first segment
    labels: np.ndarray  # (rows,); zeros for a test split

    @classmethod
    def encode(
        cls, texts: Sequence[tuple[str, ...]], labels: np.ndarray, kind: str, tokenizer: Tokenizer, max_length: int
    ) -> "SentenceDataset":
        """Encodes texts of one or two sentences; `labels` may be empty."""
        inputs = [text if len(text) > 1 else text[0] for text in texts]
        found = framed(kind, tokenizer, max_length).encode_batch_fast(inputs)
        return cls(
            kind=kind,
            padding=special_ids(kind, tokenizer)["pad" if kind == "bert" else "eos"],
            rows=[np.array(each.ids, dtype=np.int64) for each in found],
            firsts=np.array([each.type_ids.count(0) for each in found]),
            labels=labels if len(labels) else np.zeros(len(found), dtype=labels.dtype),
        )

    @property
    def lengths(self) -> np.ndarray:
        """(rows,), tokens of each row."""
        return np.array([len(row) for row in self.rows])

    def batch(self, numbers: np.ndarray) -> SentenceBatch:
        rows = [self.rows[number] for number in numbers]
        lengths = np.array([len(row) for row in rows])
        width = lengths.max()
        tokens = np.full((len(rows), width), self.padding, dtype=np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row)] = row
        columns = np.arange(width)
        is_token = columns < lengths[:, None]
        second = (columns >= self.firsts[numbers][:, None]) & is_token
        positions = np.zeros_like(lengths) if self.kind == "bert" else lengths - 1
        return SentenceBatch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(positions + np.arange(len(rows)) * width),
            targets=torch.from_numpy(self.labels[numbers]),
            segments=torch.from_numpy(second.astype(np.int64)),
            attention_mask=torch.from_numpy(is_token),
            token_indices=torch.from_numpy(np.flatnonzero(is_token)),
        )

    def by_length(self, size: int) -> Iterator[np.ndarray]:
        """All row numbers in batches of similar length, so that there is little padding."""
        order = np.argsort(self.lengths, kind="stable")
        yield from (order[first : first + size] for first in range(0, len(order), size))


@dataclass(frozen=True)
class TrainingSentences:
    """The batches of a fine-tuning run, as functions of seed and step; the last one of an epoch may be smaller."""

    sentences: SentenceDataset
    seed: int  # of the order of the rows
    batch_size: int  # rows per step

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.sentences.rows) // self.batch_size)

    def micro_batch(self, step: int, part: int) -> SentenceBatch:
        return self.sentences.batch(self.row_numbers(step, part))

    def row_numbers(self, step: int, part: int) -> np.ndarray:
        """The numbers of the rows of a batch; each epoch has its own order."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = len(self.sentences.rows)
        positions = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, rows))
        return shuffled(rows, self.seed, epoch, positions)

    def sizes(self, steps: int) -> np.ndarray:
        """(steps, 3): for each step its rows, the tokens of the longest row and the tokens of all rows."""
        lengths = self.sentences.lengths
        taken = [lengths[self.row_numbers(step, 0)] for step in range(steps)]
        return np.array([(len(each), each.max(), each.sum()) for each in taken], dtype=np.int64).reshape(-1, 3)
