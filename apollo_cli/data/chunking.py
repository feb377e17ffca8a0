"""Long texts in pieces: tokenizing takes about 130 bytes of memory for each character of one string."""

from collections.abc import Iterator

_BREAKS = " \n\t"  # where a piece may begin, the best first: in byte-level BPE the space belongs to the next word


def pieces(text: str, longest: int) -> Iterator[str]:
    """The text in pieces of at most `longest` characters; joined, they are the text.

    A piece begins with the whitespace between two words, where no word-splitting tokenizer sees the cut. A
    stretch of `longest` characters without whitespace is cut anywhere.
    """
    start = 0
    while len(text) - start > longest:
        end = _cut(text, start, start + longest)
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def is_cut_anywhere(piece: str, longest: int) -> bool:
    """Whether this piece of a longer text ended where no whitespace was."""
    return len(piece) == longest and not any(mark in piece[1:] for mark in _BREAKS)


def _cut(text: str, start: int, limit: int) -> int:
    for mark in _BREAKS:
        place = text.rfind(mark, start + 1, limit + 1)
        if place > start:
            place = start + len(text[start:place].rstrip())  # to the beginning of all whitespace there
            if place > start:
                return place
    return limit
