"""Tokenizers: trained on the corpus, or loaded from the usual files."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from apollo_cli import files
from apollo_cli.data import network
from apollo_cli.data.chunking import is_cut_anywhere, pieces
from apollo_cli.data.recipe import BYTES, OTHER_ENDS, SPECIAL_TOKENS, Recipe
from apollo_cli.errors import DataError, first_line
from apollo_cli.models.model_config import ModelConfig

AUTO = "auto"  # data.tokenizer: train one on the corpus, by the algorithm of the model's kind
_ALGORITHMS_OF_BYTES = ("bpe", "unigram")
ALGORITHMS = {  # the first is AUTO's
    "bert": ("wordpiece", *_ALGORITHMS_OF_BYTES),
    "gpt": _ALGORITHMS_OF_BYTES,
    "llama": _ALGORITHMS_OF_BYTES,
}
TRAINED = (AUTO, "wordpiece", "bpe", "unigram")
SAMPLE_CHARACTERS = 200_000_000  # of the corpus, from its start: enough for stable merges
_HINT = (
    "Give a tokenizer.json, a vocab.txt, a vocab.json beside its merges.txt, a folder with one of these, or a name "
    "on the hub"
)
_LONGEST = 10_000  # characters of a piece; the trainer's time grows with the square of an unbroken run
_UNBROKEN_COST = 50  # factor for the characters of such a run in the sample: slow to train on, of little use
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # in the order of preference
_SPACES = {"ByteLevel": ("Ġ", "Ċ", "ĉ", "č"), "Metaspace": ("▁",), "▁": ("▁",)}  # begin a word, by decoder
_TIMEOUT = 120  # seconds for loading a tokenizer


def train_tokenizer(
    kind: str, vocabulary: int, documents: Iterable[str], corpus: str = "this corpus", algorithm: str = AUTO
) -> Tokenizer:
    """A tokenizer with exactly `vocabulary` entries.

    A lower-casing WordPiece (only bert), a byte-level BPE, which restores every text exactly, or a Unigram:
    lower-casing for bert, else byte-level. `algorithm` is one of `TRAINED`; the entries include the special tokens;
    no more than `SAMPLE_CHARACTERS` of the documents, which messages call `corpus`, are read.

    Raises:
        DataError: the corpus cannot fill the vocabulary, or the algorithm does not suit the model.
    """
    if algorithm not in (AUTO, *ALGORITHMS[kind]):
        raise DataError(
            f"data.tokenizer={algorithm}: model={kind} has no token for what such a tokenizer does not know; type "
            f"data.tokenizer={' or '.join(ALGORITHMS[kind])}"
        )
    learn = _LEARNERS[ALGORITHMS[kind][0] if algorithm == AUTO else algorithm]
    with refusing(f"data.vocab_size={vocabulary}: no tokenizer can be trained on {corpus}"):
        tokenizer = learn(kind, vocabulary, documents)
    if tokenizer.get_vocab_size() != vocabulary:
        few = tokenizer.get_vocab_size() < vocabulary
        raise DataError(
            f"data.vocab_size={vocabulary} is {'more than' if few else 'too small for'} {corpus}: "
            f"{'it fills' if few else 'its letters alone need'} {tokenizer.get_vocab_size()} entries. "
            f"Type data.vocab_size={tokenizer.get_vocab_size()}{' or less, or give more text' if few else ''}"
        )
    return tokenizer


def _train_bpe(kind: str, vocabulary: int, documents: Iterable[str]) -> Tokenizer:
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS[kind].values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(documents), trainer)
    return _with_special_tokens(tokenizer, [])  # the trainer has added them


def _train_unigram(kind: str, vocabulary: int, documents: Iterable[str]) -> Tokenizer:
    """Rounds the scores, because their last digits, and with them the order of entries, differ from run to run."""
    special = list(SPECIAL_TOKENS[kind].values())
    surround = _lower_cased_pieces if kind == "bert" else _byte_level
    learner = surround(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=[] if kind == "bert" else sorted(pre_tokenizers.ByteLevel.alphabet()),
        unk_token=SPECIAL_TOKENS[kind].get("unk"),
        show_progress=False,
    )
    learner.train_from_iterator(_sample(documents), trainer)
    found = json.loads(learner.to_str())["model"]["vocab"]
    ordered = _in_order([(entry, round(score, 6)) for entry, score in found if entry not in special])
    unknown = special.index("[UNK]") if kind == "bert" else None
    tokenizer = surround(models.Unigram([*((token, 0.0) for token in special), *ordered], unk_id=unknown))
    return _with_special_tokens(tokenizer, special)


def _train_wordpiece(kind: str, vocabulary: int, documents: Iterable[str]) -> Tokenizer:
    """Passes the letters sorted, because the library's trainer would number them in the order of a hash table.

    A letter takes two entries (inside a word it is ##x), so that rare ones are left out of a small vocabulary.
    """
    texts = list(_sample(documents))
    special = list(SPECIAL_TOKENS[kind].values())
    counts: Counter[str] = Counter()
    normalizer = normalizers.BertNormalizer(lowercase=True)
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    frequent = sorted((letter for letter in counts if not letter.isspace()), key=lambda c: (-counts[c], c))
    number = min(1000, max(vocabulary // 16, 64))
    learned = _learn_wordpiece(texts, vocabulary, special, frequent[:number])
    while len(learned) < vocabulary and number < len(frequent):  # as where most words are a letter
        number += (vocabulary - len(learned) + 1) // 2
        learned = _learn_wordpiece(texts, vocabulary, special, frequent[:number], most=vocabulary)
    tokenizer = _word_level(models.WordPiece(learned, unk_token="[UNK]", max_input_chars_per_word=100))
    return _with_special_tokens(tokenizer, special)


def _learn_wordpiece(
    texts: list[str], vocabulary: int, special: list[str], letters: list[str], most: int | None = None
) -> dict[str, int]:
    """The ids of the entries that WordPiece learns with these letters, of which at most `most` tokens are taken."""
    learner = _word_level(models.WordPiece(unk_token="[UNK]"))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[*special, *letters, *(f"##{letter}" for letter in letters)][:most],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return learner.get_vocab()


def _in_order(entries: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Sorted by score; letters that are not in the text are last, because the order of their scores is random."""
    ordered = sorted(entries, key=lambda pair: (-pair[1], pair[0]))
    lowest = min((score for entry, score in entries if len(entry) > 1), default=0.0)
    first = next((i for i, (_, score) in enumerate(ordered) if score < lowest), len(ordered))
    letters = sorted(entry for entry, _ in ordered[first:])
    return [*ordered[:first], *zip(letters, (score for _, score in ordered[first:]), strict=True)]


_LEARNERS = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}


def byte_tokenizer(kind: str) -> Tokenizer:
    """The special tokens of a `kind` model and the 256 byte values; it restores every text exactly."""
    special = list(SPECIAL_TOKENS[kind].values())
    entries = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = _byte_level(models.BPE({token: i for i, token in enumerate(entries)}, []))
    return _with_special_tokens(tokenizer, special)


def existing_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of the recipe; None if it is to be trained; a DataError if it cannot be loaded or used."""
    if recipe.tokenizer in TRAINED:
        return None
    if recipe.tokenizer == BYTES:
        return byte_tokenizer(recipe.kind)
    tokenizer = load_tokenizer(recipe.kind, recipe.tokenizer)
    if tokenizer.get_vocab_size() != recipe.vocabulary:
        raise DataError(
            f"data.tokenizer={recipe.tokenizer} has {tokenizer.get_vocab_size()} entries and "
            f"data.vocab_size={recipe.vocabulary}: type data.vocab_size={tokenizer.get_vocab_size()}"
        )
    return tokenizer


def check_there(name: str) -> None:
    """Raises a DataError if this is the name of a file that does not exist; asks no network."""
    if name not in (*TRAINED, BYTES):
        with refusing(f"data.tokenizer={name}: cannot be loaded", _HINT):
            _find_file(name)


def load_tokenizer(kind: str, name: str) -> Tokenizer:
    """Loads a tokenizer from a file, a folder, or a name on the hub.

    Files: `tokenizer.json`; `vocab.txt`, or another .txt (WordPiece, lower-casing unless it has capitals);
    `vocab.json` with `merges.txt` beside it (byte-level BPE); a folder that contains one of these.

    Raises:
        DataError: it does not exist, cannot be read, or lacks the special tokens of a `kind` model.
    """
    with refusing(f"data.tokenizer={name}: cannot be loaded", _HINT):
        path = _find_file(name) or _download(name)
        _load_in_subprocess(path, *_digests(path))
        tokenizer = read_tokenizer(path)
    check_tokenizer(kind, tokenizer, f"data.tokenizer={name}")
    return tokenizer


def load_tokenizer_of_model(model_config: ModelConfig, folder: Path) -> Tokenizer:
    """The tokenizer beside a model in `folder`; a DataError if there is none, or that of another model."""
    try:
        tokenizer = load_tokenizer(model_config.kind, str(folder.resolve()))
    except DataError as error:
        raise DataError(f"{files.shown(folder)}: its tokenizer: {str(error).partition(': ')[2]}") from error
    if tokenizer.get_vocab_size() > model_config.vocabulary:
        raise DataError(
            f"{files.shown(folder)}: its tokenizer has {tokenizer.get_vocab_size():,} entries, the model "
            f"{model_config.vocabulary:,}: they do not belong together"
        )
    return tokenizer


def _download(name: str) -> Path:
    """The file of a tokenizer on the hub, or in its cache; older ones have no tokenizer.json."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    network.go_offline_if_needed()
    reached = True
    for file in _FILES:
        try:
            path = Path(hf_hub_download(name, file))
            if file == "vocab.json":
                hf_hub_download(name, "merges.txt")
            return path
        except LocalEntryNotFoundError:
            reached = False
        except EntryNotFoundError:
            continue
    raise ValueError(
        f"it is none of {', '.join((*TRAINED, BYTES))}, and on the hub "
        + (f"it has no {', '.join(_FILES)}" if reached else f"not in the cache: {network.what_to_do(name)}")
    )


_TRIAL = """
import sys
from contextlib import suppress
from pathlib import Path
from apollo_cli.data.tokenizer import check_growth, first_line, read_tokenizer
try:
    tokenizer = read_tokenizer(Path(sys.argv[1]))
    check_growth(tokenizer)
    with suppress(Exception):
        tokenizer.encode_batch_fast(["A text of 8 words, as they come."], add_special_tokens=False)
except BaseException as error:
    print(first_line(error))
    sys.exit(1)
"""


@cache
def _load_in_subprocess(path: Path, *digests: str) -> None:
    """Loads an untrusted file in another process first: some abort it, or never return. A ValueError says why."""
    command = [sys.executable, "-P", "-c", _TRIAL, str(path)]  # -P: no module of the working directory
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"loading it takes more than {_TIMEOUT} seconds") from error
    if done.returncode < 0:
        raise ValueError("it makes the tokenizers library crash")
    if done.returncode:
        raise ValueError(first_line(ValueError(done.stdout or done.stderr)))


def check_growth(tokenizer: Tokenizer) -> None:
    """Normalizes single letters, a sentence, and the texts that the normalizer looks for, step by step.

    Raises:
        ValueError: one becomes much longer, so that a corpus might take all memory. (The longest that Unicode makes
            of one letter has 18.)
    """
    steps = _steps(json.loads(tokenizer.to_str())["normalizer"])
    looked_for = [step["pattern"]["String"] for step in steps if "String" in step.get("pattern", {})]
    texts = [*map(chr, range(0x20, 0x250)), "A text of 8 words, as they come.", "日本語 😀", *looked_for]
    grown, one = texts, normalizers.Sequence([])
    for step in steps:
        one.__setstate__(json.dumps(step).encode())
        grown = [one.normalize_str(text) for text in grown]
        for before, after in zip(texts, grown, strict=True):
            if len(after) > 10 * len(before) + 20:
                raise ValueError(f"its normalizer makes {len(after)} characters of {len(before)}")


def _steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The JSON of a normalizer, or of those that a sequence applies one after another."""
    if normalizer and normalizer["type"] == "Sequence":
        return [step for part in normalizer["normalizers"] for step in _steps(part)]
    return [normalizer] if normalizer else []


def check_tokenizer(kind: str, tokenizer: Tokenizer, name: str) -> None:
    """Switches off truncation and padding; a DataError with `name` for ids with gaps or a missing special token."""
    with refusing(f"{name}: cannot be used"):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = sorted(tokenizer.get_vocab().values())
        entries = tokenizer.get_vocab_size()
    if ids != list(range(entries)):
        raise DataError(
            f"{name}: its ids have gaps or come twice ({entries} entries, the highest id is "
            f"{ids[-1] if ids else 'none'}), which an embedding cannot have"
        )
    wanted = special_tokens(kind, tokenizer).values()
    if missing := [token for token in wanted if tokenizer.token_to_id(token) is None]:
        others = "" if kind == "bert" else f" (or {' or '.join(OTHER_ENDS)})"
        raise DataError(f"{name}: model={kind} needs the token {', '.join(missing)}{others}, it has none")


@contextmanager
def refusing(what: str, hint: str = "") -> Iterator[None]:
    """Turns every error of the library into a DataError that begins with `what`.

    The library raises bare Exceptions, and its panics are BaseExceptions of a class that cannot be imported.
    """
    try:
        yield
    except (DataError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise DataError(f"{what} ({first_line(error)}){'. ' if hint else ''}{hint}") from error


def tokenizer_identity(name: str) -> list[Any]:
    """What decides a loaded tokenizer, for the cache: its name, and a hash of each of its files."""
    with refusing(f"data.tokenizer={name}: cannot be read"):
        try:
            path = _find_file(name)
        except FileNotFoundError:
            return [name]
        return [name, *(_digests(path) if path else [])]


def _digests(path: Path) -> list[str]:
    files = (path, path.with_name("merges.txt"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]


def special_tokens(kind: str, tokenizer: Tokenizer) -> dict[str, str]:
    """The model's special tokens by their names in transformers; the end of a text may have another one there."""
    if kind == "bert":
        return SPECIAL_TOKENS[kind]
    ours = SPECIAL_TOKENS[kind]["eos"]
    return {"eos": next((end for end in (ours, *OTHER_ENDS) if tokenizer.token_to_id(end) is not None), ours)}


def special_ids(kind: str, tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the model's special tokens by their names in transformers: pad, cls, eos, ..."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {name: vocabulary[token] for name, token in special_tokens(kind, tokenizer).items()}


def exported_ids(kind: str, tokenizer: Tokenizer) -> dict[str, int]:
    """The ids in config.json: those of padding, and where a text begins and ends (all one token but for BERT)."""
    special = special_ids(kind, tokenizer)
    if kind == "bert":
        return {"pad_token_id": special["pad"]}
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), special["eos"])


def let_mask_take_space(tokenizer: Tokenizer) -> None:
    """Makes "the [MASK] sat" the row that training makes of it, where a token holds the space before its word.

    [MASK] then takes the space too, as RoBERTa's does. Where a space is always a token of its own it stays one.
    """
    decoder = json.dumps(json.loads(tokenizer.to_str()).get("decoder"), ensure_ascii=False)
    space = next((marks[0] for name, marks in _SPACES.items() if name in decoder), None)
    mask = SPECIAL_TOKENS["bert"]["mask"]
    if space and any(len(token) > 1 and token.startswith(space) for token in tokenizer.get_vocab()):
        tokenizer.add_special_tokens([AddedToken(mask, lstrip=True, special=True)])


def unknown_id(tokenizer: Tokenizer) -> int:
    """The id of the token for what the tokenizer does not know; -1 if it has none."""
    model = json.loads(tokenizer.to_str())["model"]
    by_name = tokenizer.token_to_id(str(model.get("unk_token")))
    return next((i for i in (model.get("unk_id"), by_name) if i is not None), -1)


def inside_words(tokenizer: Tokenizer) -> np.ndarray:
    """Which entries continue the word of the token before them, (vocabulary,) of bool.

    A word ends at whitespace; in WordPiece, which drops whitespace, also where BERT's rules split.
    """
    parts = json.loads(tokenizer.to_str())
    decoder = json.dumps(parts.get("decoder"), ensure_ascii=False)
    begins = next((marks for name, marks in _SPACES.items() if name in decoder), None)
    prefix = str(parts["model"].get("continuing_subword_prefix") or "##")
    added = {token["id"] for token in parts["added_tokens"]}
    inside = np.zeros(tokenizer.get_vocab_size(), dtype=bool)
    for token, i in tokenizer.get_vocab().items():
        if i in added:
            continue
        if parts["model"]["type"] == "WordPiece":
            inside[i] = token.startswith(prefix)
        elif begins:
            inside[i] = not token.startswith(begins)
    return inside


def save_companions(kind: str, tokenizer: Tokenizer, seq_len: int, folder: Path) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` that transformers' AutoTokenizer reads."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {f"{name}_token": token for name, token in special_tokens(kind, tokenizer).items()}
    if kind != "bert":  # one special token for all purposes, as in GPT-2
        tokens |= dict.fromkeys(("bos_token", "unk_token", "pad_token"), tokens["eos_token"])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": seq_len,
        "clean_up_tokenization_spaces": False,  # decoding leaves " ." as it is
        **tokens,
    }
    if kind == "bert":  # else transformers leaves out the token types of pairs
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2) + "\n", encoding="utf-8")


def _find_file(name: str) -> Path | None:
    """The file that `name` means; None for a name on the hub; a FileNotFoundError if the file does not exist."""
    path = Path(name).expanduser()
    if path.is_dir():
        path = next((path / file for file in _FILES if (path / file).is_file()), path / _FILES[0])
    if path.is_file():
        return path
    if path.suffix in (".json", ".txt") or name.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"there is no file {path}")
    return None


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer; the name of the file decides its format. Raises the errors of the library."""
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a token may contain other breaks
        vocabulary = {token: i for i, token in enumerate(lines)}
        words = [token for token in vocabulary if not (token.startswith("[") and token.endswith("]"))]
        model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
        tokenizer = _word_level(model, cased=any(letter in word for word in words for letter in ascii_uppercase))
        return _with_special_tokens(tokenizer, [t for t in SPECIAL_TOKENS["bert"].values() if t in vocabulary])
    if path.name == "vocab.json":
        tokenizer = _byte_level(models.BPE.from_file(str(path), str(path.with_name("merges.txt"))))
        tokenizer.add_special_tokens(
            [t for t in SPECIAL_TOKENS["gpt"].values() if tokenizer.token_to_id(t) is not None]
        )
        return tokenizer
    return Tokenizer.from_file(str(path))


def _word_level(model: Any, cased: bool = False) -> Tokenizer:
    """A WordPiece model with BERT's normalizer, which lower-cases unless it is `cased`, and its pre-tokenizer."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _lower_cased_pieces(model: Any) -> Tokenizer:
    """A Unigram model for BERT: lower case, no accents, a space is part of the word after it."""
    tokenizer = Tokenizer(model)
    one_space = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.BertNormalizer(lowercase=True), *one_space])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _byte_level(model: Any) -> Tokenizer:
    """A model with GPT-2's byte-level pre-tokenizer and decoder."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_special_tokens(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    """Adds them; [CLS] and [SEP] then enclose sentences and pairs: [CLS] ... [SEP], [CLS] ... [SEP] ... [SEP]."""
    tokenizer.add_special_tokens(special)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    if all(i is not None for _, i in ends):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    return tokenizer


def _sample(documents: Iterable[str]) -> Iterator[str]:
    """The first documents, long ones in pieces, up to SAMPLE_CHARACTERS."""
    total = 0
    for document in documents:
        for piece in pieces(document, _LONGEST):
            yield piece
            unbroken = len(document) > _LONGEST and is_cut_anywhere(piece, _LONGEST)
            total += len(piece) * (_UNBROKEN_COST if unbroken else 1)
            if total > SAMPLE_CHARACTERS:
                return
