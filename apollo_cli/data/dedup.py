"""Hashes of documents, of 64 bits: a billion documents have 0.03 pairs by chance."""

import hashlib

_PIECE = 1_000_000  # characters that are encoded at once


def hash_of(text: str) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(text), _PIECE):
        digest.update(text[start : start + _PIECE].encode())
    return int.from_bytes(digest.digest(), "big")


def held_out(document: int, share: float, seed: int) -> bool:
    """Whether a document is for validation: decided by its hash, so that all copies of it are in one split."""
    if seed:  # 0 uses the hash itself
        digest = hashlib.blake2b(document.to_bytes(8, "big"), digest_size=8, salt=seed.to_bytes(16, "big"))
        document = int.from_bytes(digest.digest(), "big")
    return document < share * 2**64
