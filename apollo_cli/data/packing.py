"""Documents to rows of exactly `seq_len` tokens, held out by document, memory-mapped, cached."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.sources import Source
from apollo_cli.errors import DataError

FORMAT = 1  # of the cache; a change of the packing raises it
_DOCUMENTS_AT_ONCE = 512

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What decides the packed rows, beside the source.

    Attributes:
        kind: bert ([CLS] text [SEP] in each row) or gpt (documents separated by the end-of-text token).
        tokenizer: `auto` to train one, or what `tokenizer.load` takes.
        vocabulary: entries of the tokenizer.
        seq_len: tokens in a row.
        validation: share of the documents held out.
    """

    kind: str
    tokenizer: str
    vocabulary: int
    seq_len: int
    validation: float


@dataclass(frozen=True)
class Corpus:
    """Packed rows on disk.

    Attributes:
        training: (rows, seq_len), memory-mapped, 2 or 4 bytes a token.
        validation: the same for documents that training never sees.
        tokenizer: made them.
        fingerprint: of the rows and the tokenizer, by content: equal on every machine.
    """

    training: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer
    fingerprint: str


def prepare(source: Source, recipe: Recipe, cache: Path, say: Say) -> Corpus:
    """The packed corpus, from the cache or built now; a parallel sweep builds it once.

    Args:
        source: where documents come from.
        recipe: how they become rows.
        cache: folder of all cached corpora; made if missing.
        say: takes one line of progress.

    Raises:
        DataError: the corpus is unreadable, empty or too small, or does not suit the tokenizer.
    """
    made_by = recipe.tokenizer if recipe.tokenizer == tokenizers.AUTO else tokenizers.identity(recipe.tokenizer)
    parts = [FORMAT, type(source).__name__, source.identity(), vars(recipe), made_by]
    content = json.dumps(parts, sort_keys=True)
    folder = cache / hashlib.sha256(content.encode()).hexdigest()[:20]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                unfinished = folder.with_suffix(".building")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                try:
                    _build(source, recipe, unfinished, say)
                    unfinished.rename(folder)
                except BaseException:
                    shutil.rmtree(unfinished, ignore_errors=True)
                    raise
    except OSError as error:
        raise DataError(
            f"the corpus cannot be built in {cache}: {error}. Set data.cache_dir to a folder with space"
        ) from error
    return _open(folder)


def _open(folder: Path) -> Corpus:
    facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    parts = {}
    for part in ("training", "validation"):
        shape = (facts[f"{part}_rows"], facts["seq_len"])
        path = folder / f"{part}.bin"
        size = path.stat().st_size if path.exists() else 0
        if size != shape[0] * shape[1] * np.dtype(facts["dtype"]).itemsize:
            raise DataError(f"{path} is damaged: delete {folder}, and it is built again")
        parts[part] = np.memmap(path, dtype=facts["dtype"], mode="r", shape=shape)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Corpus(parts["training"], parts["validation"], tokenizer, facts["fingerprint"])


def _build(source: Source, recipe: Recipe, folder: Path, say: Say) -> None:
    if recipe.tokenizer == tokenizers.AUTO:
        say(f"training a tokenizer of {recipe.vocabulary} entries")
        tokenizer = tokenizers.train(recipe.kind, recipe.vocabulary, source.documents())
    else:
        tokenizer = tokenizers.load(recipe.kind, recipe.tokenizer)
        if tokenizer.get_vocab_size() != recipe.vocabulary:
            raise DataError(
                f"data.tokenizer={recipe.tokenizer} has {tokenizer.get_vocab_size()} entries and "
                f"data.vocab_size={recipe.vocabulary}: type data.vocab_size={tokenizer.get_vocab_size()}"
            )
    tokenizer.save(str(folder / "tokenizer.json"))
    say("tokenizing and packing")
    dtype = np.dtype(np.uint16 if recipe.vocabulary <= 1 << 16 else np.uint32)
    special = tokenizers.special_ids(recipe.kind, tokenizer)
    writers = {p: _RowWriter(folder / f"{p}.bin", recipe, special, dtype) for p in ("training", "validation")}
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    for texts in _batched(source.documents(), _DOCUMENTS_AT_ONCE):
        for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            writers["validation" if _held_out(text, recipe.validation) else "training"].add(encoding.ids)
    for writer in writers.values():
        writer.close()
    _fill_empty_part(writers["training"], writers["validation"], recipe)
    rows = {part: writer.rows for part, writer in writers.items()}
    say(f"packed {rows['training']:,} training and {rows['validation']:,} validation rows of {recipe.seq_len}")
    facts = {
        "training_rows": rows["training"],
        "validation_rows": rows["validation"],
        "seq_len": recipe.seq_len,
        "dtype": dtype.name,
        "tokens_left_over": sum(len(writer.waiting) for writer in writers.values()),
        "source": source.identity(),
        "fingerprint": _digest(folder / name for name in ("tokenizer.json", "training.bin", "validation.bin")),
    }
    for name in ("tokenizer.json", "training.bin", "validation.bin"):
        files.sync_file(folder / name)
    files.write_json(folder / "corpus.json", facts)


class _RowWriter:
    """Appends tokens to a file of whole rows; what does not fill a row waits and is counted at the end."""

    def __init__(self, path: Path, recipe: Recipe, special: dict[str, int], dtype: np.dtype) -> None:
        self.path, self.dtype, self.seq_len = path, dtype, recipe.seq_len
        self.before, self.after, self.between = (
            ([special["cls"]], [special["sep"]], []) if recipe.kind == "bert" else ([], [], [special["eos"]])
        )
        self.rows = 0
        self.waiting: list[int] = []
        self.file = path.open("wb")

    def add(self, ids: list[int]) -> None:
        self.waiting += ids + self.between
        width = self.seq_len - len(self.before) - len(self.after)
        count = len(self.waiting) // width
        if count:
            text = np.array(self.waiting[: count * width]).reshape(count, width)
            rows = np.empty((count, self.seq_len), dtype=self.dtype)
            rows[:, : len(self.before)] = self.before
            rows[:, len(self.before) : len(self.before) + width] = text
            rows[:, len(self.before) + width :] = self.after
            self.file.write(rows.tobytes())
            self.rows += count
            self.waiting = self.waiting[count * width :]

    def close(self) -> None:
        self.file.close()


def _held_out(text: str, share: float) -> bool:
    """Whether a document is for validation: by its content, so that a duplicate never crosses over."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _fill_empty_part(training: _RowWriter, validation: _RowWriter, recipe: Recipe) -> None:
    """Where too few documents leave a part without a row, the tail of all rows is held out."""
    rows = training.rows + validation.rows
    if rows < 2:
        raise DataError(
            f"the corpus is too small: it fills {rows} rows of data.seq_len={recipe.seq_len}, and one for training "
            "and one for validation are needed. Give more text or a smaller data.seq_len"
        )
    if training.rows and validation.rows:
        return
    full = training if training.rows else validation
    content = full.path.read_bytes()  # one document or a handful
    validation.rows = max(1, int(rows * recipe.validation))
    training.rows = rows - validation.rows
    size = training.rows * recipe.seq_len * full.dtype.itemsize
    training.path.write_bytes(content[:size])
    validation.path.write_bytes(content[size:])


def _batched(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, size)):
        yield batch


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
