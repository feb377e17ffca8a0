"""Packed corpora on disk: built once, cached by what determines them, checked and memory-mapped."""

import errno
import hashlib
import json
import random
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.data import cache_folder
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.packer import SPLITS, Bar, PackingStats, PartStats, Say, no_bar, pack_corpus
from apollo_cli.data.recipe import BYTES, Recipe
from apollo_cli.data.row_order import RowOrder, allotted
from apollo_cli.data.sources import Source
from apollo_cli.errors import DataError

FORMAT = 4  # of the cache; a change of the packing raises it
_BLOCK = 1 << 20  # bytes that have one checksum
_BLOCKS_CHECKED = 128  # of each file at each opening: 0.1 s, and all of a corpus up to 128 MiB
_CHECK_SEED = random.SystemRandom().getrandbits(64)  # other blocks in each process, the same ones within it


class _DamagedError(DataError):
    """A cached corpus is not what was written."""


@dataclass(frozen=True)
class Corpus:
    """Packed rows on disk.

    `fingerprint` hashes what decides losses, equal on every machine: the tokenizer and all rows; for a stream,
    of which a run packs what it needs, the tokenizer, the rows of validation, and name and version of the stream.
    """

    training: np.ndarray  # (rows, seq_len), memory-mapped, 2 or 4 bytes a token; empty where it is only measured
    validation: np.ndarray  # the same for documents that training never sees
    tokenizer: Tokenizer
    fingerprint: str
    content: str  # hash of the tokenizer and all rows, for every source
    packed: PackingStats
    folder: Path

    @property
    def order(self) -> RowOrder:
        """The order of the training rows: mixed by the weights of the parts, if they have any."""
        parts = self.packed.parts
        weights = tuple(part.weight for part in parts if part.weight is not None)
        return RowOrder(tuple(part.training for part in parts), weights or None)

    def evaluation(self, count: int) -> np.ndarray:
        """At most `count` rows of validation: the first ones of each part, by its share of all rows in training.

        Of a corpus without training, by its share of the rows there are.
        """
        parts = self.packed.parts
        if len(parts) == 1:
            return self.validation[:count]
        available = [part.validation for part in parts]
        shares = tuple(part.weight or part.training or part.validation or 1 for part in parts)
        wanted = allotted(min(count, sum(available)), shares)
        taken = [min(pair) for pair in zip(wanted, available, strict=True)]
        for i in range(len(parts)):  # where a part has too few, more of the next ones are taken
            taken[i] += min(available[i] - taken[i], sum(wanted) - sum(taken))
        starts = np.cumsum([0, *available])
        return np.concatenate([self.validation[start : start + n] for start, n in zip(starts, taken, strict=False)])


def load_corpus(source: Source, recipe: Recipe, cache: Path, say: Say, bar: Bar = no_bar) -> Corpus:
    """The packed corpus, from the cache or built now; parallel processes build it once.

    A damaged one is built again, once. `cache` is the folder of all corpora; it is made if missing.

    Raises:
        DataError: the corpus is unreadable, empty or too small, or does not suit the tokenizer; or the cache
            cannot be written.
    """
    identity = _identity(source, recipe)
    folder = cache / files.digest_of(identity)[:20]
    try:
        if corpus := _cached(folder, recipe):
            return corpus
        for part in source.parts():  # before anything is made or downloaded
            part.source.check_readable()
        cache_folder.make(cache)
        with _lock(folder.with_suffix(".lock"), say):
            if corpus := _cached(folder, recipe, say):
                return corpus
            _build(source, recipe, identity, folder, say, bar)
    except OSError as error:
        raise DataError(
            f"the corpus cannot be built in {cache}: {error}. Set data.cache_dir to a folder that can be written to"
        ) from error
    return _open(folder, recipe)


def _identity(source: Source, recipe: Recipe) -> list[Any]:
    """What decides a packed corpus: equal for equal text, tokenizer and options."""
    made_here = recipe.tokenizer in (*tokenizers.TRAINED, BYTES)
    made_by = recipe.tokenizer if made_here else tokenizers.tokenizer_identity(recipe.tokenizer)
    try:
        options = asdict(recipe) | {"kind": recipe.row_kind}
        return [FORMAT, type(source).__name__, source.identity(), options, made_by]
    except OSError as error:  # a file was deleted meanwhile
        raise DataError(f"the corpus cannot be read: {error}") from error


def _cached(folder: Path, recipe: Recipe, say: Say | None = None) -> Corpus | None:
    """The corpus in `folder`; None if there is none or it is damaged. With `say`, a damaged one is removed."""
    if not folder.exists():
        return None
    try:
        return _open(folder, recipe)
    except _DamagedError as error:
        if say:
            say(f"{error}; building it again")
            shutil.rmtree(folder)
        return None


def _lock(path: Path, say: Say) -> AcquireReturnProxy:
    """The lock of a corpus, to be held by `with`; the system frees it when a process dies."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say("another process builds this corpus; waiting")
        return lock.acquire()


def _open(folder: Path, recipe: Recipe) -> Corpus:
    """A corpus as it was written.

    Checksums find damage: corpus.json and tokenizer.json are checked completely, the rows in a limited number of
    random blocks, so that damage in a large corpus is found after a few starts. A DataError says what to delete.
    """
    try:
        saved = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if saved.pop("sha256_of_this") != files.digest_of(saved):
            raise ValueError("the checksum of corpus.json differs")
        content = (folder / "tokenizer.json").read_bytes()
        if hashlib.sha256(content).hexdigest() != saved["sha256_of_tokenizer"]:
            raise ValueError("the checksum of tokenizer.json differs")
        training, validation = (_rows(folder / f"{split}.bin", saved[split], recipe) for split in SPLITS)
        parts = [PartStats(**part) for part in saved["packed"].pop("parts")]
        packed = PackingStats(**saved["packed"], parts=parts)
        tokenizer = Tokenizer.from_buffer(content)
        tokenizers.check_tokenizer(recipe.kind, tokenizer, "tokenizer.json")
        if recipe.kind == "bert":
            tokenizers.let_mask_take_space(tokenizer)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DataError) as error:
        raise _DamagedError(
            f"the cached corpus {folder} is damaged ({error}): delete it, and it is built again"
        ) from error
    return Corpus(training, validation, tokenizer, saved["fingerprint"], saved["content"], packed, folder)


def _rows(path: Path, facts: dict[str, Any], recipe: Recipe) -> np.ndarray:
    """The rows of a file, memory-mapped, after a check of a limited number of blocks.

    `facts` are its `rows`, and `crc32`, the checksum of each block in hexadecimal; a ValueError if they differ.
    """
    shape = (facts["rows"], recipe.seq_len)
    if path.stat().st_size != shape[0] * shape[1] * recipe.dtype.itemsize:
        raise ValueError(f"{path.name} has another size")
    expected = np.frombuffer(bytes.fromhex(facts["crc32"]), "<u4")
    count = min(_BLOCKS_CHECKED, len(expected))
    chosen = sorted(random.Random(_CHECK_SEED).sample(range(len(expected)), count))
    with path.open("rb") as file:
        for i in chosen:
            file.seek(i * _BLOCK)
            if zlib.crc32(file.read(_BLOCK)) != expected[i]:
                raise ValueError(f"the checksum of {path.name} differs")
    return np.memmap(path, dtype=recipe.dtype, mode="r", shape=shape) if shape[0] else np.empty(shape, recipe.dtype)


def _refuse_changed(before: list[Any], source: Source, recipe: Recipe) -> None:
    """Raises a DataError with the names of the files that are not what they were when `before` was taken."""
    after = _identity(source, recipe)
    if changed := sorted({state[0] for state in _file_states(before) ^ _file_states(after)}):
        raise DataError(
            f"{', '.join(changed[:3])}{' and more' if changed[3:] else ''}: changed while it was read; start again "
            "when nothing writes to it"
        )
    if after != before:
        raise DataError(f"{source.title()} or data.tokenizer changed while it was read; start again")


def _file_states(identity: Any) -> set[tuple[str, int, int]]:
    """The (path, size, time of the last change) in an identity, at any depth."""
    match identity:
        case [str(path), int(size), int(changed)]:
            return {(path, size, changed)}
        case dict():
            return _file_states(list(identity.values()))
        case list() | tuple():
            return set().union(*map(_file_states, identity))
    return set()


def _build(source: Source, recipe: Recipe, identity: list[Any], folder: Path, say: Say, bar: Bar) -> None:
    """Builds beside `folder` and renames, so that the folder is complete or does not exist."""
    unfinished = folder.with_suffix(".building")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        try:
            packed = pack_corpus(source, recipe, unfinished, say, bar)
        except DataError:
            _refuse_changed(identity, source, recipe)  # which may be why
            raise
        _refuse_changed(identity, source, recipe)
        _write_facts(unfinished, recipe, source, packed)
        unfinished.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{unfinished}: the disk is full. 1 GB of English text takes {recipe.dtype.itemsize / 4:g} GB. Set "
                "data.cache_dir to a folder with more space"
            ) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_facts(folder: Path, recipe: Recipe, source: Source, packed: PackingStats) -> None:
    """Writes corpus.json, after the rows are safely on the disk: with it the corpus is complete."""
    names = ("tokenizer.json", "training.bin", "validation.bin")
    sha256 = {name: _sha256(folder / name) for name in names}
    content = hashlib.sha256(b"".join(sha256.values())).hexdigest()
    facts: dict[str, Any] = {
        "seq_len": recipe.seq_len,
        "dtype": recipe.dtype.name,
        "source": source.identity(),
        "edition": source.edition(),
        "content": content,
        "fingerprint": content,
        "packed": asdict(packed),
        "sha256_of_tokenizer": sha256["tokenizer.json"].hex(),
    }
    if packed.parts[0].weight is not None:
        facts["fingerprint"] = files.digest_of([content, [part.weight for part in packed.parts]])
    if recipe.bound:
        measured = hashlib.sha256(sha256["tokenizer.json"] + sha256["validation.bin"]).hexdigest()
        edition = [] if facts["edition"] is None else [facts["edition"]]
        facts["fingerprint"] = files.digest_of([measured, facts["source"], *edition])
    for split in SPLITS:
        facts[split] = {"rows": packed.rows(split), "crc32": _checksums(folder / f"{split}.bin")}
    facts = json.loads(json.dumps(facts))  # as it will be read: tuples are lists
    for name in names:
        files.sync(folder / name)
    files.write_json(folder / "corpus.json", {**facts, "sha256_of_this": files.digest_of(facts)})


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _checksums(path: Path) -> str:
    with path.open("rb") as file:
        blocks = iter(lambda: file.read(_BLOCK), b"")
        return np.array([zlib.crc32(block) for block in blocks], "<u4").tobytes().hex()
