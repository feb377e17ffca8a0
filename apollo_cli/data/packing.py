"""Documents to rows of exactly `seq_len` tokens, held out by document, memory-mapped, cached."""

import errno
import hashlib
import json
import random
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.pieces import pieces
from apollo_cli.data.sources import Source
from apollo_cli.data.special_tokens import BYTES
from apollo_cli.errors import DataError

FORMAT = 2  # of the cache; a change of the packing raises it
PARTS = ("training", "validation")
_LONGEST_PIECE = 1_000_000  # characters that are tokenized at once
_PIECES_AT_ONCE, _CHARACTERS_AT_ONCE = 512, 2_000_000
_BLOCK = 1 << 20  # bytes with a checksum of their own
_BLOCKS_CHECKED = 128  # of each part at each opening: 0.1 s, and all of a corpus up to 128 MiB
_LUCK = random.SystemRandom().getrandbits(64)  # other blocks in each process, the same ones within it

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What decides the packed rows, beside the source.

    Attributes:
        kind: bert ([CLS] text [SEP] in each row) or gpt (documents separated by the end-of-text token).
        tokenizer: `auto` to train one, `bytes`, or what `tokenizer.load` takes.
        vocabulary: entries of the tokenizer.
        seq_len: tokens in a row.
        validation: share of the documents held out.
    """

    kind: str
    tokenizer: str
    vocabulary: int
    seq_len: int
    validation: float

    @property
    def dtype(self) -> np.dtype:
        """Of a token on disk: 2 bytes where the vocabulary allows, else 4."""
        return np.dtype(np.uint16 if self.vocabulary <= 1 << 16 else np.uint32)


class _Damaged(DataError):
    """A cached corpus is not what was written."""


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

    A damaged one is built again, once.

    Args:
        source: where documents come from.
        recipe: how they become rows.
        cache: folder of all cached corpora; made if missing.
        say: takes one line of progress.

    Raises:
        DataError: the corpus is unreadable, empty or too small, or does not suit the tokenizer; or the cache
            cannot be written.
    """
    folder = cache / _key(source, recipe)
    try:
        if corpus := _cached(folder, recipe):
            return corpus
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock"), say):
            if corpus := _cached(folder, recipe, say):
                return corpus
            _build_whole(source, recipe, folder, say)
    except OSError as error:
        raise DataError(
            f"the corpus cannot be built in {cache}: {error}. Set data.cache_dir to a folder that can be written to"
        ) from error
    return _open(folder, recipe)


def _key(source: Source, recipe: Recipe) -> str:
    """The name of the cached corpus: equal for equal text, tokenizer and options."""
    made_here = recipe.tokenizer in (tokenizers.AUTO, BYTES)
    made_by = recipe.tokenizer if made_here else tokenizers.identity(recipe.tokenizer)
    try:
        parts = [FORMAT, type(source).__name__, source.identity(), vars(recipe), made_by]
    except OSError as error:  # a file that went away meanwhile
        raise DataError(f"the corpus cannot be read: {error}") from error
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def _cached(folder: Path, recipe: Recipe, say: Say | None = None) -> Corpus | None:
    """The corpus in `folder`; None where there is none or it is damaged. With `say`, the damaged one is removed."""
    if not folder.exists():
        return None
    try:
        return _open(folder, recipe)
    except _Damaged as error:
        if say:
            say(f"{error}; building it again")
            shutil.rmtree(folder)
        return None


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """Holds the lock of a corpus; the system frees it when a process dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process builds this corpus; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _open(folder: Path, recipe: Recipe) -> Corpus:
    """A corpus as it was written.

    Sizes, corpus.json and tokenizer.json are checked whole, of the rows a limited number of blocks: random ones,
    so that damage in a large corpus is found by one start or another.

    Raises:
        DataError: it is damaged; the message says what to delete.
    """
    try:
        facts = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if facts.pop("sha256_of_this") != _digest_of(facts):
            raise ValueError("the checksum of corpus.json differs")
        content = (folder / "tokenizer.json").read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256_of_tokenizer"]:
            raise ValueError("the checksum of tokenizer.json differs")
        with tokenizers.refusing("tokenizer.json: cannot be loaded"):
            tokenizer = Tokenizer.from_buffer(content)
        tokenizers.check(recipe.kind, tokenizer, "tokenizer.json")
        if tokenizer.get_vocab_size() != recipe.vocabulary or not isinstance(facts["fingerprint"], str):
            raise ValueError("corpus.json is of another corpus")
        training, validation = (_rows(folder / f"{part}.bin", facts[part], recipe) for part in PARTS)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DataError) as error:
        raise _Damaged(
            f"the cached corpus {folder} is damaged ({error}): delete it, and it is built again"
        ) from error
    return Corpus(training, validation, tokenizer, facts["fingerprint"])


def _rows(path: Path, facts: dict[str, Any], recipe: Recipe) -> np.ndarray:
    """The rows of a part, memory-mapped, a limited number of their blocks checked.

    Raises:
        ValueError: the file is not what `facts` say.
    """
    shape = (facts["rows"], recipe.seq_len)
    if type(facts["rows"]) is not int or facts["rows"] < 1:
        raise ValueError(f"{path.name} has {facts['rows']} rows")
    if path.stat().st_size != shape[0] * shape[1] * recipe.dtype.itemsize:
        raise ValueError(f"{path.name} has another size")
    expected = np.frombuffer(bytes.fromhex(facts["crc32"]), "<u4")
    if len(expected) != -(-path.stat().st_size // _BLOCK):
        raise ValueError(f"{path.name} has too few checksums")
    count = min(_BLOCKS_CHECKED, len(expected))
    chosen = sorted(random.Random(_LUCK).sample(range(len(expected)), count))
    with path.open("rb") as file:
        for i in chosen:
            file.seek(i * _BLOCK)
            block = file.read(_BLOCK)
            if zlib.crc32(block) != expected[i]:
                raise ValueError(f"the checksum of {path.name} differs")
            if np.frombuffer(block, recipe.dtype).max() >= recipe.vocabulary:
                raise ValueError(f"{path.name} has a token beyond the vocabulary")
    return np.memmap(path, dtype=recipe.dtype, mode="r", shape=shape)


def _build_whole(source: Source, recipe: Recipe, folder: Path, say: Say) -> None:
    """Builds beside `folder` and renames, so that the folder is whole or not there."""
    unfinished = folder.with_suffix(".building")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _build(source, recipe, unfinished, say)
        unfinished.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(unfinished, recipe) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _full(folder: Path, recipe: Recipe) -> DataError:
    """The message for a disk that is full, made before the unfinished corpus is removed."""
    written = sum(path.stat().st_size for path in folder.iterdir())
    free = shutil.disk_usage(folder).free
    size = recipe.dtype.itemsize
    return DataError(
        f"{folder}: the disk is full; {files.in_units(written)} were written (and are removed), "
        f"{files.in_units(free)} are free, and more than {files.in_units(written + free)} are needed. "
        f"A token takes {size} bytes, so that 1 GB of English text takes about {size / 4:g} GB. Set data.cache_dir "
        "to a folder with more space"
    )


def _build(source: Source, recipe: Recipe, folder: Path, say: Say) -> None:
    tokenizer = _tokenizer(source, recipe, say)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    say("tokenizing and packing")
    special = tokenizers.special_ids(recipe.kind, tokenizer)
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    with ExitStack() as stack:
        writers = {part: _RowWriter(folder / f"{part}.bin", recipe, special) for part in PARTS}
        for writer in writers.values():
            stack.enter_context(writer.file)
        for batch in _batched(_pieces_of(source.documents(), recipe.validation)):
            with tokenizers.refusing(f"data.tokenizer={recipe.tokenizer}: cannot tokenize {source.title()}"):
                _add(batch, tokenizer, writers)
    for remark in source.remarks():
        say(remark)
    _fill_empty_part(writers["training"], writers["validation"], recipe, source)
    rows = {part: writer.rows for part, writer in writers.items()}
    say(f"packed {rows['training']:,} training and {rows['validation']:,} validation rows of {recipe.seq_len}")
    _write_facts(folder, recipe, source, rows, sum(len(writer.waiting) for writer in writers.values()))


def _tokenizer(source: Source, recipe: Recipe, say: Say) -> Tokenizer:
    """The tokenizer of the recipe, trained, made or loaded."""
    if recipe.tokenizer == tokenizers.AUTO:
        say(f"training a tokenizer of {recipe.vocabulary} entries")
        return tokenizers.train(recipe.kind, recipe.vocabulary, _not_empty(source), source.title())
    if recipe.tokenizer == BYTES:
        return tokenizers.of_bytes(recipe.kind)
    tokenizer = tokenizers.load(recipe.kind, recipe.tokenizer)
    if tokenizer.get_vocab_size() != recipe.vocabulary:
        raise DataError(
            f"data.tokenizer={recipe.tokenizer} has {tokenizer.get_vocab_size()} entries and "
            f"data.vocab_size={recipe.vocabulary}: type data.vocab_size={tokenizer.get_vocab_size()}"
        )
    return tokenizer


def _not_empty(source: Source) -> Iterator[str]:
    document = None
    for document in source.documents():
        yield document
    if document is None:
        raise DataError(f"the corpus is empty: there is no text in {source.title()}. Give more text")


def _write_facts(folder: Path, recipe: Recipe, source: Source, rows: dict[str, int], left_over: int) -> None:
    """Has the disk take the rows, then writes corpus.json: with it the corpus is whole."""
    names = ("tokenizer.json", "training.bin", "validation.bin")
    facts: dict[str, Any] = {
        "seq_len": recipe.seq_len,
        "dtype": recipe.dtype.name,
        "tokens_left_over": left_over,
        "source": source.identity(),
        "fingerprint": _digest(folder / name for name in names),
        "sha256_of_tokenizer": hashlib.sha256((folder / names[0]).read_bytes()).hexdigest(),
    }
    for part in PARTS:
        facts[part] = {"rows": rows[part], "crc32": _checksums(folder / f"{part}.bin")}
    facts = json.loads(json.dumps(facts))  # as it is read again: tuples are lists
    for name in names:
        files.sync_file(folder / name)
    files.write_json(folder / "corpus.json", {**facts, "sha256_of_this": _digest_of(facts)})


class _Piece(NamedTuple):
    """A document or a part of a long one."""

    text: str
    part: str
    is_last: bool


def _pieces_of(documents: Iterable[str], share: float) -> Iterator[_Piece]:
    for document in documents:
        part = "validation" if _held_out(document, share) else "training"
        waiting = None
        for text in pieces(document, _LONGEST_PIECE):
            if waiting is not None:
                yield _Piece(waiting, part, False)
            waiting = text
        yield _Piece(waiting or "", part, True)


class _RowWriter:
    """Appends tokens to a file of whole rows; what does not fill a row waits and is counted at the end."""

    def __init__(self, path: Path, recipe: Recipe, special: dict[str, int]) -> None:
        self.path, self.dtype, self.seq_len = path, recipe.dtype, recipe.seq_len
        self.before, self.after, self.between = (
            ([special["cls"]], [special["sep"]], []) if recipe.kind == "bert" else ([], [], [special["eos"]])
        )
        self.rows = 0
        self.waiting: list[int] = []
        self.file = path.open("wb")

    def add(self, ids: list[int], ends: bool) -> None:
        self.waiting += ids
        if ends:
            self.waiting += self.between
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


def _add(batch: list[_Piece], tokenizer: Tokenizer, writers: dict[str, _RowWriter]) -> None:
    encodings = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
    for piece, encoding in zip(batch, encodings, strict=True):
        writers[piece.part].add(encoding.ids, piece.is_last)


def _held_out(text: str, share: float) -> bool:
    """Whether a document is for validation: by its content, so that a duplicate never crosses over."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces(text, _LONGEST_PIECE):
        digest.update(piece.encode())
    return int.from_bytes(digest.digest(), "big") < share * 2**64


def _fill_empty_part(training: _RowWriter, validation: _RowWriter, recipe: Recipe, source: Source) -> None:
    """Where too few documents leave a part without a row, the tail of all rows is held out."""
    rows = training.rows + validation.rows
    if rows < 2:
        raise DataError(
            f"the corpus is too small: {source.title()} fills {rows} rows of data.seq_len={recipe.seq_len}, and "
            "one for training and one for validation are needed. Give more text or a smaller data.seq_len"
        )
    if training.rows and validation.rows:
        return
    full, empty = (training, validation) if training.rows else (validation, training)
    validation.rows = max(1, int(rows * recipe.validation))
    training.rows = rows - validation.rows
    if full is validation:
        full.path.replace(empty.path)
    size = training.rows * recipe.seq_len * recipe.dtype.itemsize
    with training.path.open("rb+") as file:
        file.seek(size)
        validation.path.write_bytes(file.read())  # the share that is held out
        file.truncate(size)


def _batched(documents: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces to be tokenized together, limited in number and in characters, for memory."""
    batch: list[_Piece] = []
    characters = 0
    for piece in documents:
        batch.append(piece)
        characters += len(piece.text)
        if len(batch) == _PIECES_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _digest_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _checksums(path: Path) -> str:
    """The CRC-32 of each block, four bytes each, in hexadecimal."""
    with path.open("rb") as file:
        blocks = iter(lambda: file.read(_BLOCK), b"")
        return np.array([zlib.crc32(block) for block in blocks], "<u4").tobytes().hex()
