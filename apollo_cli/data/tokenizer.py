"""Tokenizers: trained on the corpus, or loaded from the files that the field uses."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from apollo_cli.errors import DataError

AUTO = "auto"  # data.tokenizer: train one on the corpus
SAMPLE_CHARACTERS = 200_000_000  # of the corpus, from its start: enough for stable merges
# the names that transformers' configs use, and the tokens, in the order of their ids when trained here
SPECIAL_TOKENS = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "gpt": {"eos": "<|endoftext|>"},
}


def train(kind: str, vocabulary: int, documents: Iterable[str]) -> Tokenizer:
    """A lower-casing WordPiece (bert) or a byte-level BPE (gpt) with exactly `vocabulary` entries.

    Raises:
        DataError: the corpus cannot fill the vocabulary.
    """
    special = list(SPECIAL_TOKENS[kind].values())
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        # each letter costs two entries (inside a word it is ##x): rare ones must not eat a small vocabulary
        trainer: trainers.Trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            limit_alphabet=min(1000, max(vocabulary // 16, 64)),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    tokenizer.train_from_iterator(_sample(documents), trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        few = tokenizer.get_vocab_size() < vocabulary
        raise DataError(
            f"data.vocab_size={vocabulary} is {'more than' if few else 'too small for'} this corpus: "
            f"{'it fills' if few else 'its letters alone need'} {tokenizer.get_vocab_size()} entries. "
            f"Type data.vocab_size={tokenizer.get_vocab_size()}{' or less, or give more text' if few else ''}"
        )
    if kind == "bert":
        _frame(tokenizer)
    return tokenizer


def load(kind: str, name: str) -> Tokenizer:
    """The tokenizer that `name` means: a file, a folder, or a name on the hub.

    Files: `tokenizer.json`, `vocab.txt` (WordPiece, lower-casing), `vocab.json` with `merges.txt` beside it
    (byte-level BPE); a folder that holds one of these.

    Raises:
        DataError: nothing there, unreadable, or without the special tokens of a `kind` model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        path = next((path / f for f in ("tokenizer.json", "vocab.txt", "vocab.json") if (path / f).exists()), path)
    try:
        tokenizer = _from_file(path) if path.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"data.tokenizer={name}: cannot be loaded ({str(error).strip() or type(error).__name__}). Give a "
            "tokenizer.json, a vocab.txt, a vocab.json beside its merges.txt, a folder with one of these, or a "
            "name on the hub"
        ) from error
    if missing := [token for token in SPECIAL_TOKENS[kind].values() if tokenizer.token_to_id(token) is None]:
        raise DataError(f"data.tokenizer={name}: model={kind} needs the token {', '.join(missing)}, it has none")
    return tokenizer


def special_ids(kind: str, tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the model's special tokens by their names in transformers: pad, cls, eos, ..."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {name: vocabulary[token] for name, token in SPECIAL_TOKENS[kind].items()}


def save_companions(kind: str, tokenizer: Tokenizer, seq_len: int, folder: Path) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` that transformers' AutoTokenizer reads."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {f"{name}_token": token for name, token in SPECIAL_TOKENS[kind].items()}
    if kind == "gpt":  # GPT-2 has one special token for all ends, and pads with nothing
        tokens |= {"bos_token": tokens["eos_token"], "unk_token": tokens["eos_token"]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": seq_len, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2) + "\n", encoding="utf-8")


def _from_file(path: Path) -> Tokenizer:
    if path.name == "vocab.txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        model = models.WordPiece({token: i for i, token in enumerate(lines)}, unk_token="[UNK]")
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens([t for t in SPECIAL_TOKENS["bert"].values() if t in lines])
        _frame(tokenizer)
        return tokenizer
    if path.name == "vocab.json":
        tokenizer = Tokenizer(models.BPE.from_file(str(path), str(path.with_name("merges.txt"))))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if tokenizer.token_to_id("<|endoftext|>") is not None:
            tokenizer.add_special_tokens(["<|endoftext|>"])
        return tokenizer
    return Tokenizer.from_file(str(path))


def _frame(tokenizer: Tokenizer) -> None:
    """Sentences come out as [CLS] ... [SEP], pairs as [CLS] ... [SEP] ... [SEP]."""
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    if all(i is not None for _, i in ends):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )


def _sample(documents: Iterable[str]) -> Iterator[str]:
    """Documents from the start until they hold SAMPLE_CHARACTERS."""
    iterator = iter(documents)
    first = next(iterator, None)
    if first is None:
        raise DataError("the corpus is empty: there is no document to train a tokenizer on")
    total = 0
    for document in chain([first], iterator):
        yield document
        total += len(document)
        if total > SAMPLE_CHARACTERS:
            return
