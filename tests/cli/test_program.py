"""What all commands do alike."""

import re

import pytest

from apollo_cli import compare, evaluate, push, sample, train
from apollo_cli.cli.program import Program, fitted
from apollo_cli.glue import command as glue

PROGRAMS = [module._PROGRAM for module in (compare, evaluate, glue, push, sample, train)]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_help_page_fits_the_terminal_and_says_the_same(program: Program, columns: int) -> None:
    page = program.page if isinstance(program.page, str) else program.page()
    shown = fitted(page, columns)
    assert shown.split() == page.split()
    longer = [line for line in shown.splitlines() if len(line) > columns]
    assert all(len(line.split()) == 1 or re.match(r"\s*apollo-[a-z]+ ", line) for line in longer), longer
    if columns == 200:
        assert shown == page


def test_what_does_not_fit_goes_below_its_column() -> None:
    page = "usage: a\n\n  key=1    one two three four\n           five\n  apollo-x a b c d e f g h i\n"
    assert fitted(page, 24).splitlines() == [
        "usage: a",
        "",
        "  key=1    one two three",
        "           four",
        "           five",
        "  apollo-x a b c d e f g h i",
    ]
