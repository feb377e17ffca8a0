"""What determines the packed rows, besides their source: the tokenizer, its special tokens, the row length."""

from dataclasses import dataclass

import numpy as np

BYTES = "bytes"  # data.tokenizer: the byte values, nothing trained

# by their names in transformers' configs, in the order of their ids in tokenizers made here
SPECIAL_TOKENS = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "gpt": {"eos": "<|endoftext|>"},
    "llama": {"eos": "<|endoftext|>"},
}

OTHER_ENDS = ("</s>", "<|end_of_text|>")  # of a text, in other tokenizers; read where <|endoftext|> is missing


def byte_vocabulary(kind: str) -> int:
    return 256 + len(SPECIAL_TOKENS[kind])


@dataclass(frozen=True)
class Bound:
    """Rows that a run needs; a stream is read no further."""

    training: int
    validation: int


@dataclass(frozen=True)
class Recipe:
    """How documents become rows.

    `validation` is the share of the documents held out, if none are given; 1 for a corpus that is only measured:
    what is given for validation, else all documents.
    """

    kind: str  # bert ([CLS] text [SEP] in each row), gpt or llama (documents separated by the end-of-text token)
    tokenizer: str  # an algorithm to train one by, `bytes`, or what `load_tokenizer` takes
    vocabulary: int  # entries of the tokenizer
    seq_len: int
    validation: float
    validation_seed: int = 0  # decides which; 0 uses the hash of a document itself
    bound: Bound | None = None  # the rows needed of a stream

    @property
    def is_measured(self) -> bool:
        return self.validation == 1

    @property
    def row_kind(self) -> str:
        """The kind whose rows these are, bert or gpt: llama has those of gpt."""
        return "bert" if self.kind == "bert" else "gpt"

    @property
    def dtype(self) -> np.dtype:
        """The type of a token on disk: 2 bytes if the vocabulary allows, else 4."""
        return np.dtype(np.uint16 if self.vocabulary <= 1 << 16 else np.uint32)
