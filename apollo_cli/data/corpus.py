"""Packed corpora on disk: built once, cached by what decides them, checked and memory-mapped."""

import errno
import hashlib
import json
import random
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.packer import PARTS, Bar, PackingStats, Say, build, no_bar
from apollo_cli.data.recipe import BYTES, Recipe
from apollo_cli.data.row_order import RowOrder, allotted
from apollo_cli.data.sources import Source
from apollo_cli.errors import DataError

FORMAT = 4  # of the cache; a change of the packing raises it
_BLOCK = 1 << 20  # bytes with a checksum of their own
_BLOCKS_CHECKED = 128  # of each part at each opening: 0.1 s, and all of a corpus up to 128 MiB
_LUCK = random.SystemRandom().getrandbits(64)  # other blocks in each process, the same ones within it


class _Damaged(DataError):
    """A cached corpus is not what was written."""


@dataclass(frozen=True)
class Corpus:
    """Packed rows on disk.

    Attributes:
        training: (rows, seq_len), memory-mapped, 2 or 4 bytes a token.
        validation: the same for documents that training never sees.
        tokenizer: made them.
        fingerprint: of what losses are measured by: the tokenizer and all rows, by content, equal on every machine.
            Of a source without an end, of which a run packs what it needs: the tokenizer, the rows of validation
            the name of the source, and its state on the hub.
        content: of the tokenizer and all rows, whatever the source.
        packed: what was found while packing.
        folder: where it lies.
    """

    training: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer
    fingerprint: str
    content: str
    packed: PackingStats
    folder: Path

    @property
    def order(self) -> RowOrder:
        """Of the training rows: mixed by the weights of the parts, if they have some."""
        parts = self.packed.parts
        weights = None if parts[0]["weight"] is None else tuple(part["weight"] for part in parts)
        return RowOrder(tuple(part["training"] for part in parts), weights)

    def evaluation(self, count: int) -> np.ndarray:
        """At most `count` rows of validation: of each part its first ones, as many as its share of training is."""
        parts = self.packed.parts
        if len(parts) == 1:
            return self.validation[:count]
        there = [part["validation"] for part in parts]
        wanted = allotted(min(count, sum(there)), tuple(part["weight"] or part["training"] or 1 for part in parts))
        taken = [min(pair) for pair in zip(wanted, there, strict=True)]
        for i in range(len(parts)):  # where a part has too few, the next ones give more
            taken[i] += min(there[i] - taken[i], sum(wanted) - sum(taken))
        starts = np.cumsum([0, *there])
        return np.concatenate([self.validation[start : start + n] for start, n in zip(starts, taken, strict=False)])


def prepare(source: Source, recipe: Recipe, cache: Path, say: Say, bar: Bar = no_bar) -> Corpus:
    """The packed corpus, from the cache or built now; a parallel sweep builds it once.

    A damaged one is built again, once.

    Args:
        source: where documents come from.
        recipe: how they become rows.
        cache: folder of all cached corpora; made if missing.
        say: takes one line of progress.
        bar: shows how far a long step is.

    Raises:
        DataError: the corpus is unreadable, empty or too small, or does not suit the tokenizer; or the cache
            cannot be written.
    """
    folder = cache / _key(source, recipe)
    try:
        if corpus := _cached(folder, recipe):
            return corpus
        source.reach()  # before anything is made or downloaded
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock"), say):
            if corpus := _cached(folder, recipe, say):
                return corpus
            _build_whole(source, recipe, folder, say, bar)
    except OSError as error:
        raise DataError(
            f"the corpus cannot be built in {cache}: {error}. Set data.cache_dir to a folder that can be written to"
        ) from error
    return _open(folder, recipe)


def _key(source: Source, recipe: Recipe) -> str:
    """The name of the cached corpus: equal for equal text, tokenizer and options."""
    made_here = recipe.tokenizer in (*tokenizers.TRAINED, BYTES)
    made_by = recipe.tokenizer if made_here else tokenizers.identity(recipe.tokenizer)
    try:
        parts = [FORMAT, type(source).__name__, source.identity(), asdict(recipe), made_by]
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
        if tokenizer.get_vocab_size() != recipe.vocabulary or not isinstance(
            facts["content"] + facts["fingerprint"], str
        ):
            raise ValueError("corpus.json is of another corpus")
        packed = _packed(facts["packed"], [facts[part]["rows"] for part in PARTS])
        training, validation = (_rows(folder / f"{part}.bin", facts[part], recipe) for part in PARTS)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DataError) as error:
        raise _Damaged(
            f"the cached corpus {folder} is damaged ({error}): delete it, and it is built again"
        ) from error
    return Corpus(training, validation, tokenizer, facts["fingerprint"], facts["content"], packed, folder)


def _packed(facts: dict[str, Any], rows: list[int]) -> PackingStats:
    """What was found while packing, as it was written.

    Raises:
        ValueError: its rows are not those of the files.
    """
    lengths = {int(digits): count for digits, count in facts["lengths"].items()}
    packed = PackingStats(**{**facts, "lengths": lengths})
    counts = [packed.num_bytes, packed.tokens, packed.left_over, packed.copies, packed.left_out, packed.empty]
    counts += [packed.longest, *lengths.values(), *(packed.documents[part] for part in PARTS)]
    counts += [part[name] for part in packed.parts for name in PARTS]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("the counts of corpus.json are none")
    if not all(type(answer) is bool for answer in (packed.given, packed.distinct, packed.tail)):
        raise ValueError("the answers of corpus.json are none")
    weights = [part["weight"] for part in packed.parts]
    if not (all(w is None for w in weights) or all(type(w) is float and 0 < w < inf for w in weights)):
        raise ValueError("the weights of corpus.json are none")
    if not all(isinstance(part["title"], str) for part in packed.parts):
        raise ValueError("the parts of corpus.json have no title")
    if [packed.rows(part) for part in PARTS] != rows:
        raise ValueError("the parts of corpus.json have other rows")
    return packed


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


def _build_whole(source: Source, recipe: Recipe, folder: Path, say: Say, bar: Bar) -> None:
    """Builds beside `folder` and renames, so that the folder is whole or not there."""
    unfinished = folder.with_suffix(".building")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        packed = build(source, recipe, unfinished, say, bar)
        _write_facts(unfinished, recipe, source, packed)
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


def _write_facts(folder: Path, recipe: Recipe, source: Source, packed: PackingStats) -> None:
    """Has the disk take the rows, then writes corpus.json: with it the corpus is whole."""
    names = ("tokenizer.json", "training.bin", "validation.bin")
    content = _digest(folder / name for name in names)
    facts: dict[str, Any] = {
        "seq_len": recipe.seq_len,
        "dtype": recipe.dtype.name,
        "source": source.identity(),
        "edition": source.edition(),
        "content": content,
        "fingerprint": content,
        "packed": asdict(packed),
        "sha256_of_tokenizer": hashlib.sha256((folder / names[0]).read_bytes()).hexdigest(),
    }
    if packed.parts[0]["weight"] is not None:
        facts["fingerprint"] = _digest_of([content, [part["weight"] for part in packed.parts]])
    if recipe.bound:
        measured = _digest(folder / name for name in names if name != "training.bin")
        edition = [] if facts["edition"] is None else [facts["edition"]]
        facts["fingerprint"] = _digest_of([measured, facts["source"], *edition])
    for part in PARTS:
        facts[part] = {"rows": packed.rows(part), "crc32": _checksums(folder / f"{part}.bin")}
    facts = json.loads(json.dumps(facts))  # as it is read again: tuples are lists
    for name in names:
        files.sync_file(folder / name)
    files.write_json(folder / "corpus.json", {**facts, "sha256_of_this": _digest_of(facts)})


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _digest_of(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _checksums(path: Path) -> str:
    """The CRC-32 of each block, four bytes each, in hexadecimal."""
    with path.open("rb") as file:
        blocks = iter(lambda: file.read(_BLOCK), b"")
        return np.array([zlib.crc32(block) for block in blocks], "<u4").tobytes().hex()
