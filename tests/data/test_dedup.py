import hashlib

import pytest

from apollo_cli.data import dedup
from apollo_cli.data.dedup import hash_of, held_out


def test_the_hash_is_that_of_the_bytes_for_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "naïve words 😀 " * 50
    expected = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    assert hash_of(text) == expected
    monkeypatch.setattr(dedup, "_PIECE", 7)
    assert hash_of(text) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_the_share_that_is_held_out_is_the_one_that_was_asked_for(seed: int) -> None:
    documents = [hash_of(str(i)) for i in range(20_000)]
    held = sum(held_out(document, 0.1, seed) for document in documents)
    assert held == pytest.approx(2000, abs=200)


def test_each_seed_holds_out_others() -> None:
    documents = [hash_of(str(i)) for i in range(2000)]
    parts = [{document for document in documents if held_out(document, 0.1, seed)} for seed in range(3)]
    assert all(len(one & other) < 60 for one in parts for other in parts if one is not other)
