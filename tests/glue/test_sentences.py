import random
from pathlib import Path

import numpy as np
import pytest
import torch

from apollo_cli.data.tokenizer import byte_tokenizer, load_tokenizer
from apollo_cli.glue.sentences import SentenceDataset, TrainingSentences


def test_rows_are_those_of_transformers_tokenizer(pretrained: Path) -> None:
    from transformers import AutoTokenizer

    rng = random.Random(0)
    texts = [" ".join(rng.choices(["a", "bc", "def", "ghij"], k=rng.randint(1, 9))) for _ in range(120)]
    first, second = texts[:60], texts[60:]
    tokenizer = load_tokenizer("bert", str(pretrained / "model"))
    pairs = list(zip(first, second, strict=True))
    ours = SentenceDataset.encode(pairs, np.zeros(60), "bert", tokenizer, 16)
    of_transformers = AutoTokenizer.from_pretrained(pretrained / "model")
    theirs = of_transformers(first, second, truncation=True, max_length=16, padding=True, return_tensors="pt")
    batch = ours.batch(np.arange(60))
    assert torch.equal(batch.tokens, theirs["input_ids"])
    assert torch.equal(batch.segments, theirs["token_type_ids"])
    assert torch.equal(batch.attention_mask.long(), theirs["attention_mask"])


@pytest.mark.parametrize(
    ("kind", "texts", "row", "first"),
    [
        ("bert", ("ab",), ["[CLS]", "a", "b", "[SEP]"], 4),
        ("bert", ("ab", "cde"), ["[CLS]", "a", "b", "[SEP]", "c", "d", "e", "[SEP]"], 4),
        ("bert", ("a" * 9,), ["[CLS]", *"aaaaaa", "[SEP]"], 8),
        ("bert", ("aaaa", "bb"), ["[CLS]", *"aaa", "[SEP]", *"bb", "[SEP]"], 5),
        ("gpt", ("ab", "c"), ["a", "b", "<|endoftext|>", "c", "<|endoftext|>"], 3),
        ("gpt", ("ab",), ["a", "b", "<|endoftext|>"], 3),
    ],
)
def test_rows_are_framed_as_each_model_knows_them(
    kind: str, texts: tuple[str, ...], row: list[str], first: int
) -> None:
    tokenizer = byte_tokenizer(kind)
    found = SentenceDataset.encode([texts], np.array([1]), kind, tokenizer, 8)
    assert [tokenizer.id_to_token(token) for token in found.rows[0]] == row
    assert found.firsts.tolist() == [first]
    assert found.batch(np.array([0])).positions.tolist() == [0 if kind == "bert" else len(row) - 1]


@pytest.fixture(scope="module")
def sentences() -> SentenceDataset:
    """Eleven pairs of different lengths, as bytes."""
    texts = [("a" * (1 + i % 5), "b" * (1 + 3 * i % 7)) for i in range(11)]
    tokenizer = byte_tokenizer("bert")
    return SentenceDataset.encode(texts, np.arange(11), "bert", tokenizer, 64)


def test_a_batch_is_as_wide_as_its_longest_row(sentences: SentenceDataset) -> None:
    batch = sentences.batch(np.array([0, 6]))
    first, second = sentences.lengths[[0, 6]]
    assert first != second
    assert batch.tokens.shape == (2, max(first, second))
    assert batch.attention_mask.sum(1).tolist() == [first, second]
    assert batch.positions.tolist() == [0, max(first, second)]
    assert batch.targets.tolist() == [0, 6]
    assert batch.segments[1].tolist()[:second] == [0] * (3 + 6 % 5) + [1] * (second - 3 - 6 % 5)
    assert batch.segments[~batch.attention_mask].sum() == 0


def test_chunks_are_the_rows_of_the_batch(sentences: SentenceDataset) -> None:
    batch = sentences.batch(np.arange(8))
    assert batch.chunks(1) == [batch]
    chunks = batch.chunks(4)
    for name in ("tokens", "segments", "attention_mask", "targets"):
        assert torch.equal(torch.cat([chunk.tensors[name] for chunk in chunks]), batch.tensors[name])
    assert all(chunk.positions.tolist() == [0, batch.tokens.shape[1]] for chunk in chunks)


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own(sentences: SentenceDataset) -> None:
    training = TrainingSentences(sentences, seed=3, batch_size=4)
    assert training.steps_per_epoch == 3
    epochs = [[training.row_numbers(3 * e + s, 0).tolist() for s in range(3)] for e in range(2)]
    assert [[len(batch) for batch in epoch] for epoch in epochs] == [[4, 4, 3], [4, 4, 3]]
    flat = [[row for batch in epoch for row in batch] for epoch in epochs]
    assert sorted(flat[0]) == sorted(flat[1]) == list(range(11))
    assert flat[0] != flat[1]
    sizes = training.sizes(6)
    assert sizes[:, 0].tolist() == [4, 4, 3] * 2
    batches = [training.micro_batch(step, 0) for step in range(6)]
    assert sizes[:, 1].tolist() == [batch.tokens.shape[1] for batch in batches]
    assert sizes[:, 2].tolist() == [batch.attention_mask.sum() for batch in batches]


def test_by_length_has_every_row_and_pads_little(sentences: SentenceDataset) -> None:
    batches = list(sentences.by_length(4))
    assert sorted(np.concatenate(batches).tolist()) == list(range(11))
    longest = [sentences.lengths[batch].max() for batch in batches]
    assert longest == sorted(longest)
