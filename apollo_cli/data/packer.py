"""Documents to files of rows: tokenized on all cores while they are read, in bounded memory."""

import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.chunking import pieces
from apollo_cli.data.dedup import hash_of, held_out
from apollo_cli.data.read_once import ReadOnce
from apollo_cli.data.recipe import Recipe
from apollo_cli.data.row_order import most_needed
from apollo_cli.data.sources import Documents, Part, Source, interleaved
from apollo_cli.data.tokenizer import TRAINED
from apollo_cli.errors import DataError

SPLITS = ("training", "validation")
_LONGEST_PIECE = 100_000  # characters that are tokenized at once, so that long documents use all cores, too
_UNKNOWN_WARNING, _UNKNOWN_REFUSAL = 0.03, 0.5  # shares of all tokens
_PIECES_AT_ONCE, _CHARACTERS_AT_ONCE = 2048, 1_000_000  # about 130 bytes of memory for each character

Say = Callable[[str], None]  # takes one line of progress
At = Callable[[float | None], None]  # takes the fraction that is done
Bar = Callable[[str], AbstractContextManager[At]]  # shows a progress bar under this title


def no_bar(_: str) -> AbstractContextManager[At]:
    return nullcontext(lambda _: None)


@dataclass
class PartStats:
    """A packed part of the corpus: its title, its weight, and its rows of training and of validation."""

    title: str
    weight: float | None
    training: int = 0
    validation: int = 0


@dataclass
class PackingStats:
    """What was counted while packing.

    `left_over` are tokens, with those between documents, that are in no row: at the ends of parts, and of a stream
    after the last row that is needed.
    """

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))  # packed ones
    num_bytes: int = 0  # of their text in UTF-8
    tokens: int = 0  # without those that are added between documents or around rows
    unknown: int = 0  # tokens for what the tokenizer does not know
    left_over: int = 0
    copies: int = 0  # those of `documents` that are exact copies of an earlier one
    left_out: int = 0  # documents for training that validation has, too
    empty: int = 0  # documents and rows without text
    longest: int = 0  # the most tokens that a document has
    given: bool = False  # whether the documents for validation were given
    tail: bool = False  # whether the last rows are for validation, as documents were too few; all are training then
    parts: list[PartStats] = field(default_factory=list)

    @property
    def share_unknown(self) -> float:
        return self.unknown / max(1, self.tokens)

    def rows(self, split: str) -> int:
        return sum(getattr(part, split) for part in self.parts)


def pack_corpus(source: Source, recipe: Recipe, folder: Path, say: Say, bar: Bar) -> PackingStats:
    """Writes tokenizer.json, training.bin and validation.bin into the folder; a DataError as `load_corpus`."""
    tokenizer = tokenizers.existing_tokenizer(recipe)
    parts = source.parts()
    for part in parts:
        part.source.download(say)
    documents: list[Documents] = [part.source.documents for part in parts]
    if tokenizer is None:
        if recipe.bound:
            streams = [part.source.streaming for part in parts]
            documents = [ReadOnce(d, folder) if s else d for d, s in zip(documents, streams, strict=True)]
        say(f"training a tokenizer of {recipe.vocabulary} entries")
        with bar("training a tokenizer") as at:
            learned_from = _with_progress(source, interleaved([part.weight for part in parts], documents), at, say)
            tokenizer = tokenizers.train_tokenizer(
                recipe.kind, recipe.vocabulary, learned_from, source.title(), algorithm=recipe.tokenizer
            )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    say("tokenizing and packing")
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    with bar("tokenizing and packing") as at:
        packed = Packer(parts, documents, recipe, folder, tokenizer, at).run()
    for remark in chain.from_iterable(part.source.remarks() for part in parts):
        say(remark)
    rows = [packed.rows(split) for split in SPLITS]
    is_one = len(packed.parts) == 1 and not packed.given
    if 0 in rows and sum(rows) > 1 and is_one and not recipe.is_measured:
        _hold_out_the_tail(packed, recipe, folder)
    _check_rows(packed, recipe, source)
    say(_summary(packed, recipe))
    if packed.share_unknown > _UNKNOWN_WARNING:
        problem = f"{packed.share_unknown:.1%} of all tokens are unknown to data.tokenizer={recipe.tokenizer}: "
        problem += (
            "type data.tokenizer=bpe or unigram, or a larger data.vocab_size where rare letters are unknown"
            if recipe.tokenizer in TRAINED
            else "it was made for other text; take such text, or data.tokenizer=bpe, which is learned on this one "
            "(beside init_from.path only the tokenizer of that model is possible)"
        )
        if packed.share_unknown > _UNKNOWN_REFUSAL:
            raise DataError(problem)
        say(f"warning: {problem}")
    return packed


def _summary(packed: PackingStats, recipe: Recipe) -> str:
    of_splits = " and ".join(f"{packed.rows(split):,} {split}" for split in SPLITS)
    rows = f"{packed.rows('validation'):,}" if recipe.is_measured else of_splits
    documents = f"{sum(packed.documents.values()):,} documents"
    if packed.copies:
        documents += f", {packed.copies:,} of them exact copies of others"
    if packed.left_out:
        documents += f"; {packed.left_out:,} for training left out, for validation has them"
    if packed.empty:
        documents += f"; {packed.empty:,} without text left out"
    if packed.tail:
        documents += "; too few to hold whole ones out, so validation is the end of the text"
    unknown = f"; {packed.share_unknown:.2%} of all tokens are unknown" if packed.unknown else ""
    return f"packed {rows} rows of {recipe.seq_len}: {documents}{unknown}"


def _with_progress(source: Source, documents: Iterator[str], at: At, say: Say) -> Iterator[str]:
    """The documents with text, as far as a tokenizer is trained on them; updates the progress bar."""
    characters, limit, number = 0, tokenizers.SAMPLE_CHARACTERS, -1
    for number, document in enumerate(text for text in documents if text and not text.isspace()):
        characters += len(document)
        if number % 1000 == 0:
            at(min(1.0, max(characters / limit, source.fraction_read() or 0)))
        if characters > limit:  # where the trainer stops
            say(f"it learns from the first {limit:,} characters")
            at(None)
        yield document
    if number < 0:
        raise DataError(f"the corpus is empty: there is no text in {source.title()}. Give more text")
    at(None)


class _Piece(NamedTuple):
    """A document or a part of a long one."""

    text: str  # empty for a document that is not packed
    goes_to: str  # one of `SPLITS`, or the field of `PackingStats` that counts such documents that are not packed
    document: int | None = None  # the hash of the document, in its first piece
    is_last: bool = True  # whether the document ends with it


class Packer:
    """One pass over the documents of all parts, into files of rows."""

    def __init__(
        self,
        parts: list[Part],
        documents: list[Documents],
        recipe: Recipe,
        folder: Path,
        tokenizer: Tokenizer,
        at: At,
    ) -> None:
        self.parts, self.documents, self.recipe, self.folder = parts, documents, recipe, folder
        self.tokenizer, self.at = tokenizer, at
        special = tokenizers.special_ids(recipe.kind, tokenizer)
        self.writers = {split: _RowWriter(folder / f"{split}.bin", recipe, special) for split in SPLITS}
        self.hashes = array("Q")  # of the packed documents
        self.given: set[int] = set()  # hashes of the documents given for validation
        self.unknown = tokenizers.unknown_id(tokenizer)
        self.packed = PackingStats()
        self.length = 0  # tokens so far of a document that has not ended

    def run(self) -> PackingStats:
        """Packs what is given for validation, then the rest; of a corpus that is measured one of the two."""
        packed, is_measured = self.packed, self.recipe.is_measured
        given = [part.source.validation() for part in self.parts]
        packed.given = given[0] is not None and not is_measured
        packed.parts = [PartStats(part.source.title(), part.weight) for part in self.parts]
        needed: list[dict[str, int] | None] = [None] * len(self.parts)
        if bound := self.recipe.bound:  # rows after which each part is read no further
            rows = most_needed(bound.training, tuple(part.weight or 1.0 for part in self.parts))
            needed = [{"training": count, "validation": bound.validation} for count in rows]
        with ExitStack() as opened:
            for writer in self.writers.values():
                opened.enter_context(writer.file)
            for i, documents in enumerate(given):
                if documents is not None:
                    self._pack_part(i, documents, ("validation",), needed[i])
            rest = ("validation",) if is_measured else ("training",) if packed.given else SPLITS
            for i, read in enumerate(self.documents):
                if not (is_measured and given[i]):
                    self._pack_part(i, read(), rest, needed[i])
        packed.copies = len(self.hashes) - len(np.unique(np.frombuffer(self.hashes, np.uint64)))
        packed.left_over = sum(writer.left_over for writer in self.writers.values())
        return packed

    def _pack_part(
        self, number: int, documents: Iterator[str], splits: tuple[str, ...], needed: dict[str, int] | None
    ) -> None:
        """Packs documents of a part into one of `SPLITS` or, by their hashes, into both."""
        writers = {split: self.writers[split] for split in splits}
        for batch, encodings in self._tokenized(_batched(self._pieces(documents, splits))):
            for piece, encoding in zip(batch, encodings, strict=True):
                self._add(piece, encoding.ids)  # counted here: what is read ahead may not be needed
            for writer in writers.values():
                writer.flush()
            fraction = self.parts[number].source.fraction_read()
            if needed:
                shares = [writer.rows_of_part / max(1, needed[split]) for split, writer in writers.items()]
                fraction = min(*shares, 1.0)
                if fraction == 1:
                    break
            self.at(fraction)
        self.length = 0  # of the last document only the beginning may have been needed
        for split, writer in writers.items():
            setattr(self.packed.parts[number], split, writer.end_part(needed[split] if needed else None))

    def _pieces(self, documents: Iterator[str], splits: tuple[str, ...]) -> Iterator[_Piece]:
        """The pieces of the documents that are to be packed, and an empty one for each other document."""
        for text in documents:
            if not text or text.isspace():
                yield _Piece("", "empty")
                continue
            document = hash_of(text)
            goes_to = self._goes_to(document, splits)
            if goes_to not in SPLITS:
                yield _Piece("", goes_to)
                continue
            start = 0
            for piece in pieces(text, _LONGEST_PIECE):
                end = start + len(piece)
                yield _Piece(piece, goes_to, None if start else document, is_last=end == len(text))
                start = end

    def _goes_to(self, document: int, splits: tuple[str, ...]) -> str:
        """The split of a document, by its hash, or the field of `PackingStats` that counts it if it is left out."""
        split, recipe = splits[-1], self.recipe
        if splits == SPLITS and not held_out(document, recipe.validation, recipe.validation_seed):
            split = "training"
        if self.packed.given and split == "validation":
            self.given.add(document)
        elif self.packed.given and document in self.given:
            return "left_out"
        return split

    def _tokenized(self, batches: Iterator[list[_Piece]]) -> Iterator[tuple[list[_Piece], list[Any]]]:
        """Each batch with its tokens; while they are used, a thread tokenizes the next one on all cores."""
        encode = partial(self.tokenizer.encode_batch_fast, add_special_tokens=False)
        titles = "; ".join(part.title for part in self.packed.parts)
        with ThreadPoolExecutor(1) as worker:
            jobs = (
                (batch, worker.submit(encode, [piece.text for piece in batch])) for batch in chain(batches, [[]])
            )
            for (batch, job), _ in pairwise(jobs):
                with tokenizers.refusing(f"data.tokenizer={self.recipe.tokenizer}: cannot tokenize {titles}"):
                    encodings = job.result()
                yield batch, encodings

    def _add(self, piece: _Piece, ids: list[int]) -> None:
        packed = self.packed
        if piece.goes_to not in SPLITS:
            setattr(packed, piece.goes_to, getattr(packed, piece.goes_to) + 1)
            return
        if piece.document is not None:
            packed.documents[piece.goes_to] += 1
            self.hashes.append(piece.document)
        packed.num_bytes += len(piece.text.encode())
        packed.tokens += len(ids)
        packed.unknown += ids.count(self.unknown)
        self.writers[piece.goes_to].add(ids, piece.is_last)
        self.length += len(ids)
        packed.longest = max(packed.longest, self.length)
        if piece.is_last:
            self.length = 0


class _RowWriter:
    """Appends tokens to a file of rows; those that fill no row are kept back, and counted at the end of a part."""

    def __init__(self, path: Path, recipe: Recipe, special: dict[str, int]) -> None:
        self.dtype, self.seq_len = recipe.dtype, recipe.seq_len
        self.before, self.after, self.between = (
            ([special["cls"]], [special["sep"]], []) if recipe.row_kind == "bert" else ([], [], [special["eos"]])
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
        """Ends a part, and cuts it to at most so many rows; returns how many it has."""
        count = self.rows_of_part if most is None else min(most, self.rows_of_part)
        self.rows += count
        self.file.truncate(self.rows * self.seq_len * self.dtype.itemsize)
        self.file.seek(0, 2)
        self.left_over += len(self.waiting) + (self.rows_of_part - count) * self.width
        self.waiting, self.rows_of_part = [], 0
        return count


def _hold_out_the_tail(packed: PackingStats, recipe: Recipe, folder: Path) -> None:
    """Moves the share of all rows for validation from their end; a DataError if documents are copies of others."""
    if packed.copies:
        raise DataError(
            f"data.validation={recipe.validation:g}: of {sum(packed.documents.values()):,} documents that holds no "
            f"whole one out, or all, and the end of the text cannot be held out: {packed.copies:,} documents are "
            "copies of others. Type another share, leave the copies out, or give more text"
        )
    training, validation = (folder / f"{split}.bin" for split in SPLITS)
    (part,) = packed.parts
    rows = part.training + part.validation
    if not part.training:
        validation.replace(training)
    part.validation = max(1, int(rows * recipe.validation))
    part.training = rows - part.validation
    packed.tail, packed.documents = True, {"training": sum(packed.documents.values()), "validation": 0}
    size = part.training * recipe.seq_len * recipe.dtype.itemsize
    with training.open("rb+") as file, validation.open("wb") as tail:
        file.seek(size)
        shutil.copyfileobj(file, tail)
        file.truncate(size)


def _check_rows(packed: PackingStats, recipe: Recipe, source: Source) -> None:
    """Raises a DataError if training, validation, or a part with a weight has no row."""
    if recipe.is_measured:
        if not packed.rows("validation"):
            raise DataError(f"{source.title()} fills no row of {recipe.seq_len} tokens: give more text")
        return
    training, validation = (packed.rows(split) for split in SPLITS)
    if not training and packed.left_out:
        raise DataError(
            f"{packed.left_out:,} documents for training are left out, for validation has them, and the rest fills "
            f"no row of data.seq_len={recipe.seq_len}: give other text for one of the two"
        )
    if not training or not validation:
        raise DataError(
            f"the corpus is too small: {source.title()} fills {training} rows of data.seq_len={recipe.seq_len} for "
            f"training and {validation} for validation, and one of each is needed. Give more text or a smaller "
            "data.seq_len"
        )
    for part in packed.parts:
        if not part.training and part.weight is not None:
            raise DataError(
                f"data.sources: {part.title} fills no row and has a weight: give more text or leave it out"
            )


def _batched(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces to be tokenized together, limited in number and in characters to bound memory."""
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
