"""Files of several compressed streams."""

import bz2
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_readers import read, refusal


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
@pytest.mark.parametrize("between", [b"", b"\0" * 8])
def test_all_streams_of_a_compressed_file_are_read(suffix: str, between: bytes, tmp_path: Path) -> None:
    """As pbzip2 writes them; zeros may stand between them and at the end."""
    compress: Any = {".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    parts = [compress(f"part {i}\n\n".encode() * 30_000) for i in range(3)]
    content = b"".join(part + between for part in parts)
    found = read(tmp_path / f"a.txt{suffix}", content)
    assert found == [f"part {i}" for i in range(3) for _ in range(30_000)]


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["header", "cut", "garbage"])
def test_a_damaged_stream_after_a_whole_one_is_refused(suffix: str, damage: str, tmp_path: Path) -> None:
    compress: Any = {".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    first, second = compress(b"one\n\ntwo\n\n"), bytearray(compress(b"three\n\n"))
    if damage == "header":
        second[1] ^= 4
    second = {"cut": second[:-6], "garbage": bytearray(b"not compressed")}.get(damage, second)
    said = refusal(tmp_path / f"a.txt{suffix}", first + bytes(second))
    assert re.match(r": damaged or cut off after line [46] \(", said)
