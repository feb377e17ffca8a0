"""The special tokens of each model, and what follows from their number."""

BYTES = "bytes"  # data.tokenizer: the byte values, nothing trained

# the names that transformers' configs use, and the tokens, in the order of their ids in tokenizers made here
SPECIAL_TOKENS = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "gpt": {"eos": "<|endoftext|>"},
}


def entries_of_bytes(kind: str) -> int:
    """The size of the vocabulary of data.tokenizer=bytes."""
    return 256 + len(SPECIAL_TOKENS[kind])
