"""Files of several bz2 or xz streams, as pbzip2 writes them."""

from collections.abc import Callable
from io import RawIOBase
from typing import IO, Any

_BLOCK = 1 << 17  # bytes that are read together


class CompressedStreams(RawIOBase):
    """All compressed streams of a file, one after another.

    What follows a stream and is none raises an error: `bz2.open` and `lzma.open` end there as if it were the end.
    `new` makes a decompressor of one stream.
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Any]) -> None:
        self.file, self.new, self.stream = file, new, new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.stream.eof:
                rest = self.stream.unused_data.lstrip(b"\0")  # zeros may stand between streams
                while not rest:
                    if not (block := self.file.read(_BLOCK)):
                        return 0
                    rest = block.lstrip(b"\0")
                self.stream = self.new()
            elif not self.stream.needs_input:
                rest = b""
            elif not (rest := self.file.read(_BLOCK)):
                raise EOFError("it ends within a compressed stream")
            if data := self.stream.decompress(rest, len(buffer)):
                buffer[: len(data)] = data
                return len(data)
