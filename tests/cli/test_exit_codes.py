import os
import subprocess
import sys
from itertools import product

import pytest

from apollo_cli.cli.exit_codes import report
from apollo_cli.errors import EXIT_BUG, EXIT_USER_ERROR, DataError

CLOSED = """
import os, sys
from apollo_cli.cli.exit_codes import open_standard_streams
open_standard_streams()
print("nobody reads this")
assert os.open("file", os.O_CREAT | os.O_WRONLY) > 2
"""


def test_a_message_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(DataError("a.jsonl, line 3: no field '\x1b]0;title\x07text'\n\tsecond line")) == EXIT_USER_ERROR
    shown = capsys.readouterr().err
    assert shown == "apollo-train: a.jsonl, line 3: no field '\ufffd]0;title\ufffdtext'\n\tsecond line\n"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        *product(["apollo_cli", "apollo_cli.train", "apollo_cli.evaluate"], ["--help", "--version"]),
        ("apollo_cli.train", "-sc install=bash"),
    ],
)
def test_a_reader_who_has_gone_is_no_error(module: str, words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", module, *words.split()], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_bug_shows_its_traceback_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ValueError("\x1b[31mred")) == EXIT_BUG
    shown = capsys.readouterr().err
    assert "ValueError: \ufffd[31mred" in shown
    assert "\x1b" not in shown


def test_values_that_are_nested_too_deeply_are_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(RecursionError("maximum recursion depth exceeded")) == EXIT_USER_ERROR
    assert capsys.readouterr().err == "apollo-train: a value is nested too deeply to be read\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_error(closed: str, tmp_path: object) -> None:
    command = f'exec "$0" -c "$1" {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable, CLOSED], cwd=str(tmp_path), check=False)
    assert done.returncode == 0
