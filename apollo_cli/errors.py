"""Errors that the user can mend: one clear message, no traceback, exit code 2."""

EXIT_OK, EXIT_BUG, EXIT_USER_ERROR = 0, 1, 2


class ApolloError(Exception):
    """Something outside the program is wrong; the message says what, where, and what to type."""


class ConfigError(ApolloError):
    """The configuration is wrong. Holds every problem that was found, not only the first."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"config: {self.problems[0]}"
        return f"config: {len(self.problems)} problems\n" + "\n".join(f"  - {p}" for p in self.problems)


class DataError(ApolloError):
    """The corpus or the tokenizer cannot be used as asked."""


class CheckpointError(ApolloError):
    """A run directory or checkpoint is missing, damaged, in use, or not of this run."""


class OccupiedError(CheckpointError):
    """A run directory belongs to another run, or another process works in it; nothing there was touched."""


class TrainingError(ApolloError):
    """Training cannot go on, for example because the loss is no longer finite.

    Args:
        message: what a person can do.
        goes_on: whether resuming may end differently.
    """

    def __init__(self, message: str, *, goes_on: bool = True) -> None:
        self.goes_on = goes_on
        super().__init__(message)


class PeerError(TrainingError):
    """Another process of the same run is gone, or hangs."""


class SaidError(ApolloError):
    """The processes that did the work have said why it ended."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"ended with exit code {code}")


class StorageError(ApolloError):
    """A file cannot be written: the disk is full or read-only, or the folder is gone."""
