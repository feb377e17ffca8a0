"""Sources in parts, documents that are given for validation, copies, and streams: what becomes of them as rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apollo_cli.data import packer
from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.batches import NextToken, TrainingBatches
from apollo_cli.data.corpus import Corpus, load_corpus
from apollo_cli.data.dedup import hash_of, held_out
from apollo_cli.data.mixture import Mixture
from apollo_cli.data.recipe import Bound, Recipe
from apollo_cli.data.sources import Part, Source, interleaved
from apollo_cli.errors import DataError

SEQ_LEN = 16
RECIPE = Recipe("gpt", "bytes", 257, SEQ_LEN, 0.1)


@dataclass
class Memory(Source):
    texts: list[str]
    given: list[str] | None = None
    streaming: bool = False
    read: list[str] = field(default_factory=list)

    def documents(self) -> Iterator[str]:
        for text in self.texts:
            self.read.append(text)
            yield text

    def validation(self) -> Iterator[str] | None:
        return None if self.given is None else iter(self.given)

    def identity(self) -> dict[str, Any]:
        return {"texts": self.texts[:5000], "given": self.given}


def named(name: str, count: int, words: int = 5) -> list[str]:
    return [" ".join([f"{name}{i}", *["word"] * words]) for i in range(count)]


def mixed(*members: tuple[Source, float | None]) -> Mixture:
    return Mixture(tuple(Part(source, weight) for source, weight in members))


def pack(source: Source, cache: Path, recipe: Recipe = RECIPE) -> tuple[Corpus, list[str]]:
    said: list[str] = []
    return load_corpus(source, recipe, cache, said.append), said


def documents(corpus: Corpus, rows: np.ndarray) -> list[str]:
    """The documents whose ends are in these rows, but for the first, whose beginning may be missing."""
    return corpus.tokenizer.decode(rows.ravel().tolist(), skip_special_tokens=False).split("<|endoftext|>")[:-1]


def whole_tokens(corpus: Corpus) -> int:
    return corpus.training.size + corpus.validation.size


def test_a_run_has_rows_of_each_part_by_its_weight(tmp_path: Path) -> None:
    source = mixed((Memory(named("a", 400)), 0.8), (Memory(named("b", 100)), 0.2))
    corpus, _ = pack(source, tmp_path)
    batches = TrainingBatches(corpus.training, NextToken(), 0, 8, 8, corpus.order)
    texts = [
        corpus.tokenizer.decode(row) for step in range(250) for row in batches.micro_batch(step, 0).tokens.tolist()
    ]
    share = sum("b" in text for text in texts) / sum("a" in text or "b" in text for text in texts)
    assert share == pytest.approx(0.2, abs=0.03)


def test_without_weights_every_row_comes_once_an_epoch_and_every_token_with_them(tmp_path: Path) -> None:
    parts = named("a", 60), named("b", 30, 40), named("c", 10)
    source = mixed(*((Memory(texts), None) for texts in parts))
    corpus, _ = pack(source, tmp_path)
    batches = TrainingBatches(corpus.training, NextToken(), 3, 1, 1, corpus.order)
    seen = [batches.micro_batch(step, 0).tokens.numpy()[0] for step in range(len(corpus.training))]
    order = np.concatenate([batches.row_numbers(step, 0) for step in range(len(corpus.training))])
    rows = np.empty_like(corpus.training)
    rows[order] = seen
    rest = corpus.packed.left_over
    packed = rows.size + corpus.validation.size
    assert sorted(order) == list(range(len(corpus.training)))
    assert np.array_equal(rows, corpus.training)
    assert packed + rest == sum(len(text.encode()) + 1 for texts in parts for text in texts)
    assert rest < 2 * 3 * SEQ_LEN


def test_evaluation_takes_of_each_part_its_share(tmp_path: Path) -> None:
    source = mixed((Memory(named("a", 400)), 0.75), (Memory(named("b", 400)), 0.25))
    corpus, _ = pack(source, tmp_path)
    rows = corpus.evaluation(40)
    first, second = (part.validation for part in corpus.packed.parts)
    assert np.array_equal(rows[:30], corpus.validation[:30])
    assert np.array_equal(rows[30:], corpus.validation[first : first + 10])
    assert len(corpus.evaluation(10**6)) == len(corpus.validation) == first + second


def test_evaluation_of_one_part_is_its_beginning(tmp_path: Path) -> None:
    corpus, _ = pack(Memory(named("a", 400)), tmp_path)
    assert np.array_equal(corpus.evaluation(7), corpus.validation[:7])


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    texts = named("a", 100), named("b", 100)
    found = [
        pack(mixed((Memory(texts[0]), weight), (Memory(texts[1]), 1.0)), tmp_path)[0].fingerprint
        for weight in (1.0, 2.0, 1.0)
    ]
    assert found[0] == found[2] != found[1]


def test_a_tokenizer_is_trained_on_all_parts_by_their_weights() -> None:
    sample = interleaved([3.0, 1.0], [Memory(named(name, 1000)).documents for name in "ab"])
    letters = [next(sample)[0] for _ in range(400)]
    assert letters.count("a") == pytest.approx(300, abs=5)
    assert len([*letters, *sample]) == 2000


def test_all_copies_of_a_document_are_in_one_split(tmp_path: Path) -> None:
    texts = named("both", 300)
    source = mixed((Memory(texts), 1.0), (Memory(texts[::-1]), 1.0))
    corpus, said = pack(source, tmp_path)
    parts = [set(documents(corpus, rows)) & set(texts) for rows in (corpus.training, corpus.validation)]
    assert all(len(part) > 10 for part in parts)
    assert parts[0].isdisjoint(parts[1])
    assert corpus.packed.copies == 300
    assert "600 documents, 300 of them exact copies of others" in said[-1]


def test_what_is_given_for_validation_is_left_out_of_training_and_counted(tmp_path: Path) -> None:
    texts, given = named("train", 100), named("held", 20)
    source = Memory([*texts, *given[:5], given[0]], given)
    corpus, said = pack(source, tmp_path)
    assert set(documents(corpus, corpus.validation)) <= set(given)
    assert not set(documents(corpus, corpus.training)[1:]) & set(given)
    assert corpus.packed.documents == {"training": 100, "validation": 20}
    assert (corpus.packed.left_out, corpus.packed.copies, corpus.packed.given) == (6, 0, True)
    assert "6 for training left out, for validation has them" in said[-1]


def test_documents_for_validation_of_one_source_are_not_for_training_of_another(tmp_path: Path) -> None:
    shared = named("shared", 10)
    source = mixed((Memory(named("a", 50), shared), 1.0), (Memory(shared + named("b", 50), named("h", 10)), 1.0))
    corpus, _ = pack(source, tmp_path)
    assert not set(documents(corpus, corpus.training)) & set(shared)
    assert corpus.packed.left_out == 10


def test_given_validation_of_less_than_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too small: .* and 0 for validation"):
        pack(Memory(named("a", 50), ["x"]), tmp_path)


def test_copies_of_a_single_document_that_could_be_in_both_splits_are_refused(tmp_path: Path) -> None:
    text = " ".join(f"w{i}" for i in range(40))
    with pytest.raises(
        DataError,
        match=r"of 9 documents that holds no whole one out.* 8 documents are copies of others. Type another share",
    ):
        pack(Memory([text] * 9), tmp_path)
    packed = pack(Memory([text]), tmp_path)[0].packed
    assert (packed.copies, packed.tail, packed.documents) == (0, True, {"training": 1, "validation": 0})


def test_blank_documents_are_counted_and_not_packed(tmp_path: Path) -> None:
    corpus, said = pack(Memory(["", "  \n", *named("a", 50)]), tmp_path)
    assert sum(corpus.packed.documents.values()) == 50
    assert corpus.packed.empty == 2
    assert said[-1].endswith("50 documents; 2 without text left out")


def test_the_seed_of_validation_holds_out_others(tmp_path: Path) -> None:
    held = [
        set(documents(*(lambda c: (c, c.validation))(pack(Memory(named("a", 300)), tmp_path, recipe)[0]))[1:])
        for recipe in (RECIPE, replace(RECIPE, validation_seed=1))
    ]
    assert all(len(part) > 10 for part in held)
    assert len(held[0] & held[1]) < 10


def test_the_counts_of_packing_add_up(tmp_path: Path) -> None:
    texts = [*named("a", 200), *named("a", 50), "x" * 300]
    packed = pack(Memory(texts), tmp_path)[0].packed
    assert sum(packed.documents.values()) == 251
    assert packed.num_bytes == packed.tokens == sum(map(len, texts))
    assert (packed.copies, packed.longest) == (50, 300)


class TestStreams:
    """A source without an end is read as far as a run needs."""

    TEXTS = named("s", 40_000, 20)

    def bounded(self, training: int, validation: int = 8) -> Recipe:
        return replace(RECIPE, bound=Bound(training, validation))

    def test_no_more_is_read_than_is_needed(self, tmp_path: Path) -> None:
        source = Memory(self.TEXTS, streaming=True)
        corpus, _ = pack(source, tmp_path, self.bounded(100))
        assert corpus.training.shape == (100, SEQ_LEN)
        assert corpus.validation.shape == (8, SEQ_LEN)
        assert len(source.read) < len(self.TEXTS) / 2
        whole, _ = pack(Memory(self.TEXTS[:5000]), tmp_path)
        assert np.array_equal(corpus.training, whole.training[:100])
        assert np.array_equal(corpus.validation, whole.validation[:8])

    def test_what_was_counted_is_what_was_packed_not_what_was_read_ahead(self, tmp_path: Path) -> None:
        source = Memory(["", *self.TEXTS], streaming=True)
        corpus, _ = pack(source, tmp_path, self.bounded(100))
        packed, count = corpus.packed, sum(corpus.packed.documents.values())
        assert 0 < count < len(source.read) - 1
        texts = self.TEXTS[:count]
        assert (packed.num_bytes, packed.tokens) == (sum(map(len, texts)),) * 2
        assert packed.tokens + count == whole_tokens(corpus) + packed.left_over
        assert packed.empty == 1

    def test_a_document_that_is_needed_in_part_is_counted_as_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(packer, "_LONGEST_PIECE", 1000)
        monkeypatch.setattr(packer, "_CHARACTERS_AT_ONCE", 10_000)
        text = "".join(f"{i} " for i in range(20_001))  # in pieces, of which the first ones are enough
        assert not held_out(hash_of(text), RECIPE.validation, 0)
        first, second = Memory([*named("v", 300), text], streaming=True), Memory(named("b", 2000), streaming=True)
        packed = pack(mixed((first, 1.0), (second, 1.0)), tmp_path, self.bounded(1000))[0].packed
        assert packed.tokens == packed.num_bytes < len(text)
        assert 1000 < packed.longest < len(text)

    def test_a_longer_run_begins_with_the_same_rows_and_has_the_same_fingerprint(self, tmp_path: Path) -> None:
        short, long = (pack(Memory(self.TEXTS, streaming=True), tmp_path, self.bounded(n))[0] for n in (100, 900))
        assert np.array_equal(short.training, long.training[:100])
        assert np.array_equal(short.validation, long.validation)
        assert short.fingerprint == long.fingerprint
        assert short.content != long.content

    def test_a_stream_that_ends_early_is_a_corpus(self, tmp_path: Path) -> None:
        corpus, _ = pack(Memory(named("s", 200), streaming=True), tmp_path, self.bounded(10**6))
        assert 0 < len(corpus.training) < 10**6

    def test_each_part_gives_what_its_weight_needs(self, tmp_path: Path) -> None:
        other = Memory(named("b", 9000, 20), streaming=True)
        source = mixed((Memory(self.TEXTS, streaming=True), 0.75), (other, 0.25))
        corpus, _ = pack(source, tmp_path, self.bounded(10_000))
        assert [part.training for part in corpus.packed.parts] == [7500, 2500]

    def test_given_validation_is_read_as_far_as_needed_too(self, tmp_path: Path) -> None:
        source = Memory(self.TEXTS, named("v", 500), streaming=True)
        corpus, _ = pack(source, tmp_path, self.bounded(50))
        assert (len(corpus.training), len(corpus.validation)) == (50, 8)


def test_a_mixture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.sources is empty: name some, for example"):
        pack(Mixture(()), tmp_path)


def test_a_part_with_a_weight_and_no_row_is_refused_by_name(tmp_path: Path) -> None:
    source = mixed((Memory(named("a", 90)), 1.0), (Memory(["x"]), 1.0))
    with pytest.raises(DataError, match="the corpus fills no row and has a weight"):
        pack(source, tmp_path)


def test_the_number_of_characters_a_tokenizer_is_trained_on_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "SAMPLE_CHARACTERS", 2000)
    recipe = replace(RECIPE, tokenizer="auto", vocabulary=260)
    assert "it learns from the first 2,000 characters" in pack(Memory(named("a", 300)), tmp_path, recipe)[1]
