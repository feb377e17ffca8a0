"""What determines the packed rows, apart from their source: the tokenizer, its special tokens, the row length."""

from dataclasses import dataclass

import numpy as np

BYTES = "bytes"  # data.tokenizer: the byte values, nothing trained

# the names that transformers' configs use, and the tokens, in the order of their ids in tokenizers made here
SPECIAL_TOKENS = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "gpt": {"eos": "<|endoftext|>"},
}


def entries_of_bytes(kind: str) -> int:
    """The size of the vocabulary of data.tokenizer=bytes."""
    return 256 + len(SPECIAL_TOKENS[kind])


@dataclass(frozen=True)
class Bound:
    """Rows that a run needs; a source without an end is read no further."""

    training: int
    validation: int


@dataclass(frozen=True)
class Recipe:
    """How documents become rows.

    Attributes:
        kind: bert ([CLS] text [SEP] in each row) or gpt (documents separated by the end-of-text token).
        tokenizer: an algorithm to train one by, `bytes`, or what `tokenizer.load` takes.
        vocabulary: entries of the tokenizer.
        seq_len: tokens in a row.
        validation: share of the documents held out, where none are given.
        validation_seed: decides which; 0 takes the hash of a document as it is.
        bound: for a source without an end, what is needed of it.
    """

    kind: str
    tokenizer: str
    vocabulary: int
    seq_len: int
    validation: float
    validation_seed: int = 0
    bound: Bound | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of a token on disk: 2 bytes where the vocabulary allows, else 4."""
        return np.dtype(np.uint16 if self.vocabulary <= 1 << 16 else np.uint32)
