"""Errors that the user can fix: one clear message, no traceback, exit code 2."""

import re
from html import escape
from typing import Any

EXIT_OK, EXIT_BUG, EXIT_USER_ERROR = 0, 1, 2


def printable(text: str) -> str:
    """Lines of text, some of it perhaps untrusted, without the control characters that a terminal obeys."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(value: Any) -> str:
    """Untrusted text as one line without control characters."""
    return printable(re.sub(r"[\n\t]", "\N{REPLACEMENT CHARACTER}", str(value)))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def in_markdown(value: Any) -> str:
    """Untrusted text as one line of Markdown, in a table too, without markup of its own."""
    return re.sub(r"([\\`*_\[\]{}#|~$!])", r"\\\1", escape(one_line(value), quote=False))


class ApolloError(Exception):
    """Something outside the program is wrong; the message names the problem, the place and the remedy."""

    resumable = False  # whether a run that ends so may end differently where it is resumed


class ConfigError(ApolloError):
    """The configuration is wrong. Holds every problem found, not only the first."""

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__(*problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"config: {self.problems[0]}"
        return f"config: {len(self.problems)} problems\n" + "\n".join(f"  - {p}" for p in self.problems)


class DataError(ApolloError):
    """The corpus or the tokenizer cannot be used."""


class CheckpointError(ApolloError):
    """A run directory or checkpoint is missing, damaged, in use, or of another run."""


class OccupiedError(CheckpointError):
    """A run directory belongs to another run or is in use by another process; nothing in it was changed."""


class TrainingError(ApolloError):
    """Training cannot continue, for example because the loss is no longer finite."""

    def __init__(self, message: str, *, resumable: bool = True) -> None:
        self.resumable = resumable
        super().__init__(message)


class PeerError(TrainingError):
    """Another process of the same run has ended or hangs."""


class ReportedError(ApolloError):
    """The processes of a run have failed and have reported the error themselves; `code` is the exit code."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"ended with exit code {code}")


class HubError(ApolloError):
    """The Hugging Face hub cannot be reached, or refuses what is asked of it."""


class StorageError(ApolloError):
    """A file cannot be written: the disk is full or read-only, or the folder no longer exists."""

    resumable = True


class NameTakenError(ValueError):
    """A method has the name of another one; `option` chooses both."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option
