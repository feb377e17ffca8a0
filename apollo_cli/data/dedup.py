"""Exact copies among documents, found by 64-bit hashes: a billion documents have 0.03 false ones expected."""

import hashlib
from array import array
from pathlib import Path

import numpy as np

_AT_ONCE = 1 << 24  # hashes that are sorted together: 128 MB
_PIECE = 1_000_000  # characters that are encoded at once
_BUFFER = 1 << 17  # hashes that are written, or read, together: 1 MB


def hash_of(text: str) -> int:
    """The hash of a document, of 64 bits."""
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


class CopyCounter:
    """Counts copies among any number of documents, with 8 bytes on the disk for each, in bounded memory."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b")
        self.waiting = array("Q")
        self.documents = 0

    def add(self, document: int) -> None:
        self.waiting.append(document)
        if len(self.waiting) == _BUFFER:
            self._write()

    def copies(self) -> int:
        """The number of copies of an earlier document; reads the file once for each 16 million documents."""
        self._write()
        passes = -(-self.documents // _AT_ONCE)
        different = sum(self._different(number, passes) for number in range(passes))
        return self.documents - different

    def _different(self, number: int, passes: int) -> int:
        """The number of different hashes that have the remainder `number`."""
        self.file.seek(0)
        chosen = []
        while block := self.file.read(8 * _BUFFER):
            hashes = np.frombuffer(block, np.uint64)
            chosen.append(hashes[hashes % np.uint64(passes) == number])
        ordered = np.concatenate(chosen)
        ordered.sort()
        return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + min(1, len(ordered))

    def _write(self) -> None:
        self.file.write(self.waiting.tobytes())
        self.documents += len(self.waiting)
        self.waiting = array("Q")
