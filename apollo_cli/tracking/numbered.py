"""Output of several cells at once: whole lines, each with its cell in front."""

import io
from typing import TextIO


class NumberedLines(io.TextIOBase):
    """Writes whole lines to `out`, each behind the name of a cell; it is no terminal, so nothing moves."""

    def __init__(self, out: TextIO, name: str) -> None:
        self.out, self.head = out, f"{name:>2} | "
        self.unfinished = ""

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Takes text, and passes on what is whole of it."""
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        if lines:
            self.out.write("".join(f"{self.head}{line}\n" for line in lines))
            self.out.flush()
        return len(text)

    def close(self) -> None:
        """Ends the last line."""
        if self.unfinished:
            self.write("\n")
        super().close()
