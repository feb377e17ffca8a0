"""Documents to files of rows: tokenized on all cores while they are read, in bounded memory."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.chunking import pieces
from apollo_cli.data.dedup import CopyCounter, GivenDocuments, hash_of, held_out
from apollo_cli.data.read_once import read_once
from apollo_cli.data.recipe import BYTES, Recipe
from apollo_cli.data.row_order import most_needed
from apollo_cli.data.sources import Part, Source
from apollo_cli.errors import DataError

PARTS = ("training", "validation")
_LONGEST_PIECE = 100_000  # characters that are tokenized at once: long documents use all cores, too
_PIECES_AT_ONCE, _CHARACTERS_AT_ONCE = 2048, 1_000_000  # about 130 bytes of memory for each character

Say = Callable[[str], None]
At = Callable[[float | None], None]  # takes the share that is done
Bar = Callable[[str], AbstractContextManager[At]]  # shows the progress of what it is told


def no_bar(_: str) -> AbstractContextManager[At]:
    """Shows nothing."""
    return nullcontext(lambda _: None)


@dataclass
class PackingStats:
    """What was found while packing.

    Attributes:
        documents: of training and of validation, that were packed.
        num_bytes: of their text in UTF-8.
        tokens: without those that are added between documents or around rows.
        left_over: tokens, with those between documents, that are in no row: at the ends of parts, and of a source
            without an end behind the last row that is needed.
        copies: documents that are exact copies of an earlier one.
        distinct: whether the copies were left out; else they are among `documents`.
        left_out: documents for training that validation has, too.
        empty: documents without text, and rows without any.
        lengths: how many documents have a number of tokens with so many binary digits.
        longest: the most tokens that a document has.
        given: whether the documents for validation were given.
        tail: whether the last rows are for validation, where documents were too few; all count as training then.
        parts: title, weight, and rows of training and of validation.
    """

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    num_bytes: int = 0
    tokens: int = 0
    left_over: int = 0
    copies: int = 0
    distinct: bool = False
    left_out: int = 0
    empty: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    longest: int = 0
    given: bool = False
    tail: bool = False
    parts: list[dict[str, Any]] = field(default_factory=list)

    def rows(self, part: str) -> int:
        """Of training or of validation."""
        return sum(found[part] for found in self.parts)


def build(source: Source, recipe: Recipe, folder: Path, say: Say, bar: Bar) -> PackingStats:
    """Writes tokenizer.json, training.bin and validation.bin into the folder.

    Raises:
        DataError: the corpus is unreadable, empty or too small, or does not suit the tokenizer.
    """
    tokenizer = _ready_made(recipe)
    source.fetch(say)
    if tokenizer is None:
        if recipe.bound:
            source = read_once(source, folder)
        tokenizer = _trained(source, recipe, say, bar)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    say("tokenizing and packing")
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    with bar("tokenizing and packing") as at:
        packed = Packer(source, recipe, folder, tokenizer, at).run()
        if _needs_a_cut(packed) and packed.copies:  # none may stand on both sides of it
            say(f"documents are too few to hold whole ones out; {packed.copies:,} exact copies are left out")
            packed = Packer(source, recipe, folder, tokenizer, at, distinct=True).run()
    for remark in source.remarks():
        say(remark)
    if _needs_a_cut(packed):
        _hold_out_the_tail(packed, recipe, folder)
    _refuse_empty_parts(packed, recipe, source)
    say(_sentence(packed, recipe))
    return packed


def _sentence(packed: PackingStats, recipe: Recipe) -> str:
    rows = " and ".join(f"{packed.rows(part):,} {part}" for part in PARTS)
    documents = f"{sum(packed.documents.values()):,} documents"
    if packed.copies:
        documents += f", {packed.copies:,} {'more were' if packed.distinct else 'of them'} exact copies of others"
    if packed.left_out:
        documents += f"; {packed.left_out:,} for training left out, for validation has them"
    if packed.empty:
        documents += f"; {packed.empty:,} without text left out"
    return f"packed {rows} rows of {recipe.seq_len}: {documents}"


def _trained(source: Source, recipe: Recipe, say: Say, bar: Bar) -> Tokenizer:
    """The tokenizer of the recipe, which learns from the corpus."""
    say(f"training a tokenizer of {recipe.vocabulary} entries")
    with bar("training a tokenizer") as at:
        documents = _watched(source, at, say)
        return tokenizers.train(
            recipe.kind, recipe.vocabulary, documents, source.title(), algorithm=recipe.tokenizer
        )


def _ready_made(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of the recipe, made or loaded; None where it is to be trained.

    Raises:
        DataError: it cannot be loaded, or does not suit the model or its vocabulary.
    """
    if recipe.tokenizer in tokenizers.TRAINED:
        return None
    if recipe.tokenizer == BYTES:
        return tokenizers.of_bytes(recipe.kind)
    tokenizer = tokenizers.load(recipe.kind, recipe.tokenizer)
    if tokenizer.get_vocab_size() != recipe.vocabulary:
        raise DataError(
            f"data.tokenizer={recipe.tokenizer} has {tokenizer.get_vocab_size()} entries and "
            f"data.vocab_size={recipe.vocabulary}: type data.vocab_size={tokenizer.get_vocab_size()}"
        )
    return tokenizer


def _watched(source: Source, at: At, say: Say) -> Iterator[str]:
    """The documents that a tokenizer is to learn from."""
    characters, limit, number = 0, tokenizers.SAMPLE_CHARACTERS, -1
    for number, document in enumerate(text for text in source.sample() if text and not text.isspace()):
        characters += len(document)
        if number % 1000 == 0:
            at(min(1.0, max(characters / limit, source.share_read() or 0)))
        if characters > limit:  # where the trainer stops
            say(f"it learns from the first {limit:,} characters")
            at(None)
        yield document
    if number < 0:
        raise DataError(f"the corpus is empty: there is no text in {source.title()}. Give more text")
    at(None)


class _Piece(NamedTuple):
    """A document or a part of a long one.

    Attributes:
        text: of it.
        fate: one of `PARTS`, or the field of `Packed` that counts what is not packed.
        document: its hash, with its first piece.
        is_last: whether the document ends with it.
    """

    text: str
    fate: str
    document: int | None = None
    is_last: bool = True


class Packer:
    """One reading of a source, into files of rows."""

    def __init__(
        self, source: Source, recipe: Recipe, folder: Path, tokenizer: Tokenizer, at: At, distinct: bool = False
    ) -> None:
        self.source, self.recipe, self.folder, self.tokenizer, self.at = source, recipe, folder, tokenizer, at
        special = tokenizers.special_ids(recipe.kind, tokenizer)
        self.writers = {part: _RowWriter(folder / f"{part}.bin", recipe, special) for part in PARTS}
        self.copies, self.held = CopyCounter(folder / "hashes"), GivenDocuments()
        self.seen: set[int] | None = set() if distinct else None
        self.packed = PackingStats(distinct=distinct)
        self.length: int | None = None  # tokens so far of the document that is under way

    def run(self) -> PackingStats:
        """Reads what is given for validation, then the rest."""
        parts, packed = self.source.parts(), self.packed
        given = [part.source.validation() for part in parts]
        packed.given = given[0] is not None
        if any((documents is not None) != packed.given for documents in given):
            raise DataError("data.sources: documents for validation are given for some; give them for all or none")
        needed = self._needed(parts)
        packed.parts = [{"title": part.source.title(), "weight": part.weight} for part in parts]
        with closing(self.copies.file), closing(self.writers[PARTS[0]].file), closing(self.writers[PARTS[1]].file):
            for part, documents, found, most in zip(parts, given, packed.parts, needed, strict=True):
                if documents is not None:
                    self._feed(part, documents, ("validation",), found, most)
            self.held.close()
            into = ("training",) if packed.given else PARTS
            for part, found, most in zip(parts, packed.parts, needed, strict=True):
                self._feed(part, part.source.documents(), into, found, most)
            if self.seen is None:
                packed.copies = self.copies.copies()
        packed.left_over = sum(writer.left_over for writer in self.writers.values())
        (self.folder / "hashes").unlink()
        return packed

    def _needed(self, parts: list[Part]) -> list[dict[str, int] | None]:
        """Rows of training and validation after which a part is read no further; None where it is read whole."""
        if self.recipe.bound is None:
            return [None] * len(parts)
        if any(part.weight is None for part in parts) and len(parts) > 1:
            raise DataError("data.sources: what is streamed is mixed by weights: give every source a weight")
        rows = most_needed(self.recipe.bound.training, tuple(part.weight or 1.0 for part in parts))
        return [{"training": count, "validation": self.recipe.bound.validation} for count in rows]

    def _feed(
        self,
        part: Part,
        documents: Iterator[str],
        into: tuple[str, ...],
        found: dict[str, Any],
        needed: dict[str, int] | None,
    ) -> None:
        """Packs documents into one of `PARTS` or, by their hashes, into both; `found` gets the rows."""
        for batch, encodings in self._encoded(_batched(self._pieces(documents, into))):
            for piece, encoding in zip(batch, encodings, strict=True):
                self._add(piece, encoding.ids)  # counted here: what is read ahead may not be needed
            for name in into:
                self.writers[name].flush()
            share = part.source.share_read()
            if needed:
                shares = [self.writers[name].rows_of_part / max(1, needed[name]) for name in into]
                share = min(*shares, 1.0)
                if share == 1:
                    break
            self.at(share)
        if self.length is not None:  # the last document was needed in part
            self._end_document()
        for name in into:
            found[name] = self.writers[name].end_part(needed[name] if needed else None)

    def _pieces(self, documents: Iterator[str], into: tuple[str, ...]) -> Iterator[_Piece]:
        """The pieces of the documents that are to be packed, and an empty one for each that is not."""
        for text in documents:
            if not text or text.isspace():
                yield _Piece("", "empty")
                continue
            document = hash_of(text)
            fate = self._split_of(document, into)
            if fate not in PARTS:
                yield _Piece("", fate)
                continue
            first: int | None = document
            waiting = None
            for piece in pieces(text, _LONGEST_PIECE):
                if waiting is not None:
                    yield _Piece(waiting, fate, first, is_last=False)
                    first = None
                waiting = piece
            yield _Piece(waiting or "", fate, first)

    def _split_of(self, document: int, into: tuple[str, ...]) -> str:
        """Where a document belongs, by its hash."""
        part, recipe = into[-1], self.recipe
        if into == PARTS and not held_out(document, recipe.validation, recipe.validation_seed):
            part = "training"
        if self.packed.given and part == "validation":
            self.held.add(document)
        elif self.packed.given and document in self.held:
            return "left_out"
        if self.seen is not None:
            if document in self.seen:
                return "copies"
            self.seen.add(document)
        return part

    def _encoded(self, batches: Iterator[list[_Piece]]) -> Iterator[tuple[list[_Piece], list[Any]]]:
        """Each batch with its tokens; while they are used, a thread tokenizes the next one on all cores."""
        with ThreadPoolExecutor(1) as worker:
            waiting = None
            for batch in batches:
                texts = [piece.text for piece in batch]
                job = worker.submit(self.tokenizer.encode_batch_fast, texts, add_special_tokens=False)
                if waiting:
                    yield waiting[0], self._result(waiting[1])
                waiting = batch, job
            if waiting:
                yield waiting[0], self._result(waiting[1])

    def _result(self, job: Future[list[Any]]) -> list[Any]:
        with tokenizers.refusing(f"data.tokenizer={self.recipe.tokenizer}: cannot tokenize {self.source.title()}"):
            return job.result()

    def _add(self, piece: _Piece, ids: list[int]) -> None:
        packed = self.packed
        if piece.fate not in PARTS:
            setattr(packed, piece.fate, getattr(packed, piece.fate) + 1)
            return
        if piece.document is not None:
            packed.documents[piece.fate] += 1
            self.copies.add(piece.document)
        packed.num_bytes += len(piece.text.encode())
        packed.tokens += len(ids)
        self.writers[piece.fate].add(ids, piece.is_last)
        self.length = (self.length or 0) + len(ids)
        if piece.is_last:
            self._end_document()

    def _end_document(self) -> None:
        """Counts its length."""
        length, self.length = self.length or 0, None
        digits = length.bit_length()
        self.packed.lengths[digits] = self.packed.lengths.get(digits, 0) + 1
        self.packed.longest = max(self.packed.longest, length)


class _RowWriter:
    """Appends tokens to a file of whole rows; what fills no row waits, and is counted at the end of a part."""

    def __init__(self, path: Path, recipe: Recipe, special: dict[str, int]) -> None:
        self.dtype, self.seq_len = recipe.dtype, recipe.seq_len
        self.before, self.after, self.between = (
            ([special["cls"]], [special["sep"]], []) if recipe.kind == "bert" else ([], [], [special["eos"]])
        )
        self.width = self.seq_len - len(self.before) - len(self.after)  # tokens of text in a row
        self.rows = self.rows_of_part = self.left_over = 0
        self.waiting: list[int] = []
        self.file = path.open("wb")

    def add(self, ids: list[int], ends: bool) -> None:
        self.waiting += ids
        if ends:
            self.waiting += self.between

    def flush(self) -> None:
        """Writes the rows that are full."""
        width = self.width
        count = len(self.waiting) // width
        if count:
            text = np.array(self.waiting[: count * width], dtype=self.dtype).reshape(count, width)
            rows = np.empty((count, self.seq_len), dtype=self.dtype)
            rows[:, : len(self.before)] = self.before
            rows[:, len(self.before) : len(self.before) + width] = text
            rows[:, len(self.before) + width :] = self.after
            self.file.write(rows.data)
            self.rows_of_part += count
            self.waiting = self.waiting[count * width :]

    def end_part(self, most: int | None) -> int:
        """Ends a part, cut to so many rows; how many it has."""
        count = self.rows_of_part if most is None else min(most, self.rows_of_part)
        self.rows += count
        self.file.truncate(self.rows * self.seq_len * self.dtype.itemsize)
        self.file.seek(0, 2)
        self.left_over += len(self.waiting) + (self.rows_of_part - count) * self.width
        self.waiting, self.rows_of_part = [], 0
        return count


def _needs_a_cut(packed: PackingStats) -> bool:
    """Whether too few documents leave training or validation without a row, though together they have two."""
    rows = [packed.rows(part) for part in PARTS]
    return len(packed.parts) == 1 and not packed.given and 0 in rows and sum(rows) > 1


def _hold_out_the_tail(packed: PackingStats, recipe: Recipe, folder: Path) -> None:
    """The share of all rows that is for validation is cut from their end."""
    training, validation = (folder / f"{part}.bin" for part in PARTS)
    (found,) = packed.parts
    rows = packed.rows("training") + packed.rows("validation")
    if not found["training"]:
        validation.replace(training)
    found["validation"] = max(1, int(rows * recipe.validation))
    found["training"] = rows - found["validation"]
    packed.tail, packed.documents = True, {"training": sum(packed.documents.values()), "validation": 0}
    size = found["training"] * recipe.seq_len * recipe.dtype.itemsize
    with training.open("rb+") as file, validation.open("wb") as tail:
        file.seek(size)
        shutil.copyfileobj(file, tail)
        file.truncate(size)


def _refuse_empty_parts(packed: PackingStats, recipe: Recipe, source: Source) -> None:
    rows = packed.rows("training") + packed.rows("validation")
    if rows < 2:
        raise DataError(
            f"the corpus is too small: {source.title()} fills {rows} rows of data.seq_len={recipe.seq_len}, and "
            "one for training and one for validation are needed. Give more text or a smaller data.seq_len"
        )
    for name in PARTS:
        if not packed.rows(name):
            if name == "training" and packed.left_out:
                raise DataError(
                    f"{packed.left_out:,} documents for training are left out, for validation has them, and the "
                    f"rest fills no row of data.seq_len={recipe.seq_len}: give other text for one of the two"
                )
            raise DataError(
                f"the corpus is too small: what is for {name} fills no row of data.seq_len={recipe.seq_len}. Give "
                "more text for it or a smaller data.seq_len"
            )
    for part in packed.parts:
        if not part["training"] and part["weight"] is not None:
            raise DataError(
                f"data.sources: {part['title']} fills no row and has a weight: give more text or leave it out"
            )


def _batched(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces to be tokenized together, limited in number and in characters, for memory."""
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if len(batch) == _PIECES_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
