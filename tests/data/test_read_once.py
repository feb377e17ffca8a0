from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.corpus import load_corpus
from apollo_cli.data.mixture import Mixture
from apollo_cli.data.read_once import ReadOnce
from apollo_cli.data.recipe import Bound, Recipe
from apollo_cli.data.sources import Part, Source


class Stream(Source):
    """Without an end, and never the same twice where `fickle`."""

    streaming = True

    def __init__(self, *, fickle: bool = False) -> None:
        self.fickle, self.readings, self.given = fickle, 0, 0

    def documents(self) -> Iterator[str]:
        self.readings += 1
        for i in count():
            self.given += 1
            yield f"ünï {i * (self.readings if self.fickle else 1)}\n" + "words of a text " * (i % 7)

    def identity(self) -> dict[str, Any]:
        return {"stream": self.fickle}


@pytest.mark.parametrize("taken", [0, 1, 50])
def test_the_second_pass_continues_where_the_first_one_stopped(tmp_path: Path, taken: int) -> None:
    stream, expected = Stream(), list(islice(Stream().documents(), 80))
    read = ReadOnce(stream.documents, tmp_path)
    assert list(islice(read(), taken)) == expected[:taken]
    assert list(islice(read(), 80)) == expected
    assert (stream.readings, stream.given) == (1, 80)
    assert not any(tmp_path.iterdir())


def test_a_stream_that_ends_is_read_completely_by_both_passes(tmp_path: Path) -> None:
    class Short(Stream):
        def documents(self) -> Iterator[str]:
            return islice(super().documents(), 5)

    stream = Short()
    read = ReadOnce(stream.documents, tmp_path)
    first = list(read())
    assert list(read()) == first
    assert stream.readings == 1


@pytest.mark.parametrize("mixed", [False, True])
def test_the_documents_a_tokenizer_is_trained_on_are_packed(
    mixed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that would not be the same a second time gives the rows of its first reading."""
    monkeypatch.setattr(tokenizers, "SAMPLE_CHARACTERS", 5000)
    recipe = Recipe("gpt", "auto", 280, 16, 0.1, bound=Bound(200, 8))
    rows = []
    for fickle in (True, False):
        streams = [Stream(fickle=fickle) for _ in range(2 if mixed else 1)]
        source: Source = streams[0]
        if mixed:
            source = Mixture(
                tuple(Part(stream, weight) for stream, weight in zip(streams, (3.0, 1.0), strict=True))
            )
        corpus = load_corpus(source, recipe, tmp_path / "cache", lambda _: None)
        assert [stream.readings for stream in streams] == [1] * len(streams)
        rows.append(np.concatenate([corpus.training, corpus.validation]))
    first, second = rows
    assert np.array_equal(first, second)


def test_a_stream_is_not_recorded_if_no_tokenizer_is_trained(tmp_path: Path) -> None:
    stream, recipe = Stream(), Recipe("gpt", "bytes", 257, 16, 0.1, bound=Bound(200, 8))
    load_corpus(stream, recipe, tmp_path, lambda _: None)
    load_corpus(stream, replace(recipe, validation_seed=1), tmp_path, lambda _: None)
    assert stream.readings == 2
