"""A comparison in the terminal: the headline first, then each family with at most three notes."""

from pathlib import Path

import pytest

from apollo_cli.report import terminal
from apollo_cli.report.comparison import Question, compare_runs
from apollo_cli.report.runs import read_runs
from tests.helpers.made_runs import scratch, write_run


@pytest.mark.parametrize(("notes", "left"), [(2, ""), (4, "1 more note in the report"), (9, "6 more notes in the")])
def test_the_headline_comes_first_and_three_notes_at_most(
    notes: int, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "comparison_notes", lambda comparison: [f"fact {i}" for i in range(notes)])
    scratch(tmp_path / "base", [(0, 0, 0.0, 9.0), (100, 1000, 100.0, 3.0)], name="base")
    write_run(tmp_path / "grown", [(50, 100, 10.0, 5.0), (100, 600, 80.0, 2.5)], name="grown")
    runs, left_out = read_runs([str(tmp_path)])
    comparisons, warnings = compare_runs(runs, left_out, Question())
    terminal.print_comparisons(comparisons, warnings)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0].startswith("GPT: grown saves")
    assert [line for line in lines if line.startswith("note: ")] == [
        f"note: fact {i}" for i in range(min(notes, 3))
    ]
    assert left in "\n".join(lines)
    assert ("more" in "\n".join(lines)) == bool(left)


def test_a_terminal_breaks_sentences_between_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = " ".join(["many words of a note"] * 9)
    monkeypatch.setattr(terminal, "comparison_notes", lambda comparison: [sentence])
    monkeypatch.setenv("COLUMNS", "80")
    scratch(tmp_path / "base", [(0, 0, 0.0, 9.0), (100, 1000, 100.0, 3.0)], name="base")
    runs, left_out = read_runs([str(tmp_path)])
    comparisons, warnings = compare_runs(runs, left_out, Question())
    for is_terminal in (False, True):
        monkeypatch.setattr(terminal.Screen, "is_terminal", is_terminal)
        terminal.print_comparisons(comparisons, warnings)
        out = capsys.readouterr().out
        assert (f"note: {sentence}\n" in out) != is_terminal
        assert " ".join(out.split()).count(sentence) == 1
    assert all(len(line) <= 80 for line in out.splitlines() if "words" in line)
