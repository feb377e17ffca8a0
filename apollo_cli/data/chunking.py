"""Long texts in pieces: tokenizing one string takes about 130 bytes of memory for each of its characters."""

from collections.abc import Iterator

_BREAKS = " \n\t"  # where a piece may begin, best first: in byte-level BPE a space belongs to the next word


def pieces(text: str, longest: int) -> Iterator[str]:
    """The text in pieces of at most `longest` characters; joined, they are the text.

    A piece begins with the whitespace between two words, where a cut changes no token. A run of `longest`
    characters without whitespace is cut anywhere.
    """
    start = 0
    while len(text) - start > longest:
        end = _cut(text, start, start + longest)
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def is_cut_anywhere(piece: str, longest: int) -> bool:
    """Whether this piece of a longer text ends inside a run without whitespace."""
    return len(piece) == longest and not any(mark in piece[1:] for mark in _BREAKS)


def _cut(text: str, start: int, limit: int) -> int:
    for mark in _BREAKS:
        end = text.rfind(mark, start + 1, limit + 1)
        if end > start:
            end = start + len(text[start:end].rstrip())  # to the beginning of all whitespace there
            if end > start:
                return end
    return limit
