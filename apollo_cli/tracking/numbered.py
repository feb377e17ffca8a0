"""Output of several jobs at once: whole lines, each prefixed by its job."""

import io
from typing import TextIO


class NumberedLines(io.TextIOBase):
    """Writes whole lines to `out`, each prefixed by the name of a job; not a terminal, so no bar is drawn."""

    def __init__(self, out: TextIO, name: str) -> None:
        self.out, self.prefix = out, f"{name:>2} | "
        self.unfinished = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        if lines:
            self.out.write("".join(f"{self.prefix}{line}\n" for line in lines))
            self.out.flush()
        return len(text)

    def close(self) -> None:
        if self.unfinished:
            self.write("\n")
        super().close()
