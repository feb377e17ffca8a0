"""Tokenizers: trained on the corpus, or loaded from the files that the field uses."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

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
    tokenizer = _train_wordpiece(vocabulary, documents) if kind == "bert" else _train_bpe(vocabulary, documents)
    if tokenizer.get_vocab_size() != vocabulary:
        few = tokenizer.get_vocab_size() < vocabulary
        raise DataError(
            f"data.vocab_size={vocabulary} is {'more than' if few else 'too small for'} this corpus: "
            f"{'it fills' if few else 'its letters alone need'} {tokenizer.get_vocab_size()} entries. "
            f"Type data.vocab_size={tokenizer.get_vocab_size()}{' or less, or give more text' if few else ''}"
        )
    return tokenizer


def _train_bpe(vocabulary: int, documents: Iterable[str]) -> Tokenizer:
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS["gpt"].values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(documents), trainer)
    return tokenizer


def _train_wordpiece(vocabulary: int, documents: Iterable[str]) -> Tokenizer:
    """The library's trainer numbers letters in the order of a hash table, so they are given to it in ours.

    A letter costs two entries (inside a word it is ##x): rare ones must not eat a small vocabulary.
    """
    texts = list(_sample(documents))
    special = list(SPECIAL_TOKENS["bert"].values())
    learner = _word_level(models.WordPiece(unk_token="[UNK]"))
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(learner.normalizer.normalize_str(text))
    frequent = sorted((letter for letter in counts if not letter.isspace()), key=lambda c: (-counts[c], c))
    letters = frequent[: min(1000, max(vocabulary // 16, 64))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[*special, *letters, *(f"##{letter}" for letter in letters)],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = _word_level(models.WordPiece(learner.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(special)
    _frame(tokenizer)
    return tokenizer


def load(kind: str, name: str) -> Tokenizer:
    """The tokenizer that `name` means: a file, a folder, or a name on the hub.

    Files: `tokenizer.json`, `vocab.txt` (WordPiece, lower-casing), `vocab.json` with `merges.txt` beside it
    (byte-level BPE); a folder that holds one of these.

    Raises:
        DataError: nothing there, unreadable, or without the special tokens of a `kind` model.
    """
    try:
        path = _file_of(name)
        tokenizer = _from_file(path) if path else Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"data.tokenizer={name}: cannot be loaded ({str(error).strip() or type(error).__name__}). Give a "
            "tokenizer.json, a vocab.txt, a vocab.json beside its merges.txt, a folder with one of these, or a "
            "name on the hub"
        ) from error
    tokenizer.no_truncation()  # a document is packed whole, whatever the file was made for
    tokenizer.no_padding()
    if (highest := max(tokenizer.get_vocab().values())) >= tokenizer.get_vocab_size():
        raise DataError(
            f"data.tokenizer={name}: its ids have gaps ({tokenizer.get_vocab_size()} entries, the highest id is "
            f"{highest}), which an embedding cannot have"
        )
    if missing := [token for token in SPECIAL_TOKENS[kind].values() if tokenizer.token_to_id(token) is None]:
        raise DataError(f"data.tokenizer={name}: model={kind} needs the token {', '.join(missing)}, it has none")
    return tokenizer


def identity(name: str) -> list[Any]:
    """What decides a loaded tokenizer, for the cache: the name, and the content of the files that it means."""
    try:
        path = _file_of(name)
    except FileNotFoundError:
        return [name]
    files = [path, path.with_name("merges.txt")] if path else []
    return [name, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file())]


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


def _file_of(name: str) -> Path | None:
    """The file that `name` means; None where it can only be a name on the hub.

    Raises:
        FileNotFoundError: it names a file, and there is none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        names = ("tokenizer.json", "vocab.txt", "vocab.json")
        path = next((path / file for file in names if (path / file).is_file()), path / names[0])
    if path.is_file():
        return path
    if path.suffix in (".json", ".txt") or name.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"there is no file {path}")
    return None


def _from_file(path: Path) -> Tokenizer:
    if path.name == "vocab.txt":
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a token may hold other breaks
        vocabulary = {token: i for i, token in enumerate(lines)}
        tokenizer = _word_level(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.add_special_tokens([t for t in SPECIAL_TOKENS["bert"].values() if t in vocabulary])
        _frame(tokenizer)
        return tokenizer
    if path.name == "vocab.json":
        tokenizer = _byte_level(models.BPE.from_file(str(path), str(path.with_name("merges.txt"))))
        tokenizer.add_special_tokens(
            [t for t in SPECIAL_TOKENS["gpt"].values() if tokenizer.token_to_id(t) is not None]
        )
        return tokenizer
    return Tokenizer.from_file(str(path))


def _word_level(model: Any) -> Tokenizer:
    """BERT's lower-casing surroundings of a WordPiece model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_level(model: Any) -> Tokenizer:
    """GPT-2's surroundings of a BPE model."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


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
