import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.chunking import is_cut_anywhere, pieces

ENTRIES = {"bert": 200, "gpt": 300}
SPACES = st.sampled_from([" ", "  ", "\n", "\r\n", "\t", " \n\t ", "\u3000 ", " \u00a0"])


@pytest.fixture(scope="session")
def trained(documents: list[str]) -> dict[str, Tokenizer]:
    return {kind: tokenizers.train_tokenizer(kind, entries, documents) for kind, entries in ENTRIES.items()}


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        ("", 5, [""]),
        ("one two", 7, ["one two"]),
        ("one two", 6, ["one", " two"]),
        ("one two three", 8, ["one two", " three"]),
        ("one  two", 6, ["one", "  two"]),
        ("one\ntwo three", 8, ["one\ntwo", " three"]),
        ("one\ntwo", 5, ["one", "\ntwo"]),
        ("abcdefgh ij", 3, ["abc", "def", "gh", " ij"]),
        ("      ", 4, ["    ", "  "]),
        ("ab    cd", 3, ["ab", "   ", " cd"]),
    ],
)
def test_pieces_begin_with_the_whitespace_between_words(text: str, longest: int, expected: list[str]) -> None:
    assert list(pieces(text, longest)) == expected


@given(text=st.text("ab \n\té\u3000"), longest=st.integers(1, 20))
def test_pieces_are_short_and_joined_they_are_the_text(text: str, longest: int) -> None:
    found = list(pieces(text, longest))
    assert "".join(found) == text
    assert all(len(piece) <= longest for piece in found)
    assert all(found) or found == [""]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@settings(max_examples=150, deadline=None)
@given(words=st.lists(st.tuples(st.text("abé日😀\u0301.,'", min_size=1, max_size=6), SPACES), max_size=30))
def test_a_cut_between_words_changes_no_token(
    trained: dict[str, Tokenizer], kind: str, words: list[tuple[str, str]]
) -> None:
    text = "".join(word + space for word, space in words)
    cut = list(pieces(text, 30))  # a word and its spaces are at most ten
    apart = [i for piece in cut for i in trained[kind].encode(piece, add_special_tokens=False).ids]
    assert apart == trained[kind].encode(text, add_special_tokens=False).ids


def test_a_cut_inside_a_run_without_whitespace_is_recognized() -> None:
    assert is_cut_anywhere("abcde", 5)
    assert not is_cut_anywhere("ab de", 5)
    assert not is_cut_anywhere("abcd", 5)
