"""How a command ends: its exit code, and what is said about an error."""

import shlex
import signal
import sys
import traceback
from pathlib import Path

from apollo_cli import files
from apollo_cli.errors import ApolloError, StorageError, TrainingError
from apollo_cli.training.interrupt import Interrupted, Terminated

DONE, BUG, MENDABLE = 0, 1, 2
_MARKS = ("config.yaml", "glue.yaml")  # of folders that a command can go on with


def report(error: Exception, run_dir: Path | None = None, program: str = "apollo-train") -> int:
    """Says what went wrong, on standard error, and returns the exit code for it.

    Args:
        error: of a run or of the command.
        run_dir: where the run is that may go on.
        program: the command.
    """
    if isinstance(error, ApolloError):
        goes_on = isinstance(error, Interrupted | StorageError) or (
            isinstance(error, TrainingError) and error.goes_on
        )
        print(f"{program}: {error}{_way_on(run_dir, program) if run_dir and goes_on else ''}", file=sys.stderr)
        return 128 + error.signum if isinstance(error, Interrupted) else MENDABLE
    if _is_of_the_command_line(error):
        print(f"{program}: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return MENDABLE
    traceback.print_exception(error)
    return BUG


def stopped(stop: BaseException, program: str) -> int:
    """Says that a signal came before or after a run, or Ctrl-C, and returns the exit code for it."""
    signum = stop.signum if isinstance(stop, Terminated) else signal.SIGINT
    print(f"{program}: stopped by {signum.name}; no run was under way", file=sys.stderr)
    return 128 + signum


def _way_on(run_dir: Path, program: str) -> str:
    """The command that resumes, as it is to be typed here; nothing where no run is."""
    if not any((run_dir / name).is_file() for name in _MARKS):
        return ""
    return f"; go on with: {files.command(program)} {shlex.quote(f'resume={files.shown(run_dir)}')}"


def _is_of_the_command_line(error: Exception) -> bool:
    """Whether Hydra could not compose what was typed, or not make the run directory."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException | OSError)
