"""A command with a page of its own: its version, its action, its exit code."""

import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name

from apollo_cli import __version__
from apollo_cli.cli.exit_codes import open_standard_streams, report, report_signal
from apollo_cli.errors import EXIT_OK
from apollo_cli.signals import Terminated, exit_at_once, terminable
from apollo_cli.threads import wait_briefly

_INFORMATION = {"--help", "-h", "--version", "--schema", "--shell-completion", "-sc"}


def unknown_flag(word: str, program: str) -> str:
    """The problem of a word with dashes, which most programs take for a key."""
    flag, equals, _ = word.partition("=")
    typed = word.lstrip("-") if equals else "KEY=VALUE"
    return f"{flag}: no such flag; keys have no dashes: type {typed}; {program} --help shows them"


def fitted(page: str, columns: int) -> str:
    """A help page whose lines are no longer than that, but for commands, which are copied.

    The rest of a line goes below its last column of text.
    """
    lines = []
    for line in page.splitlines():
        begin = re.match(r"\s*(\S.*?\s{2,}(?=\S))?", line)
        indent = begin.end() if begin and begin.end() < columns // 2 else 4
        wrapped = textwrap.wrap(
            line, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
        lines += [line] if len(line) <= columns or re.match(r"\s*apollo-\w+ ", line) else wrapped
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Program:
    """A command; its action is imported when it runs, or imports what is slow itself, so that --help is fast."""

    name: str  # as it is typed
    page: str | Callable[[], str]  # what --help prints, or makes it
    # takes the words and returns the exit code, or None for 0; a text names such a function as MODULE:NAME
    action: Callable[[list[str]], int | None] | str

    def main(self) -> None:
        open_standard_streams()
        wait_briefly()
        code = self.run(sys.argv[1:])
        exit_at_once(code)
        sys.exit(code)

    def run(self, words: list[str]) -> int:
        """Prints the page or the version if that is asked for, else runs the action; returns the exit code."""
        try:
            with terminable():
                return self._run(words) or EXIT_OK
        except (KeyboardInterrupt, Terminated) as stop:
            return report_signal(stop, self.name)
        except BrokenPipeError as error:
            if _INFORMATION.isdisjoint(words):
                return report(error, None, self.name)
            sys.stdout = None  # the reader of the pipe has gone
            return EXIT_OK
        except Exception as error:
            return report(error, None, self.name)

    def _run(self, words: list[str]) -> int | None:
        if {"--help", "-h"} & set(words):
            page = self.page if isinstance(self.page, str) else self.page()
            columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            print(page if columns is None else fitted(page, columns), end="", flush=True)
        elif "--version" in words:
            print(f"{self.name} {__version__}", flush=True)
        else:
            return (resolve_name(self.action) if isinstance(self.action, str) else self.action)(words)
        return EXIT_OK
