"""A command that takes KEY=VALUE words: its page, its version, its exit code."""

from collections.abc import Callable

from apollo_cli import __version__
from apollo_cli.cli.exit_codes import report, report_signal
from apollo_cli.errors import EXIT_OK
from apollo_cli.signals import Terminated, terminable


def unknown_flag(word: str, program: str) -> str:
    """The problem of a word with dashes, which most programs take for a key."""
    flag, equals, _ = word.partition("=")
    typed = word.lstrip("-") if equals else "KEY=VALUE"
    return f"{flag}: no such flag; keys have no dashes: type {typed}; {program} --help shows them"


def run_program(name: str, page: str, action: Callable[[list[str]], int | None], words: list[str]) -> int:
    """Prints the page or the version if that is asked for, else calls `action` with the words.

    Returns:
        The exit code: that of the action, or 0 if it returns none; the reason of another one than 0 is printed.
    """
    if {"--help", "-h"} & set(words):
        print(page, end="")
        return EXIT_OK
    if "--version" in words:
        print(f"{name} {__version__}")
        return EXIT_OK
    try:
        with terminable():
            return action(words) or EXIT_OK
    except (KeyboardInterrupt, Terminated) as stop:
        return report_signal(stop, name)
    except Exception as error:
        return report(error, None, name)
