"""How a command ends: its exit code, and what is said about an error."""

import shlex
import sys
import traceback
from pathlib import Path

from apollo_cli import files
from apollo_cli.errors import ApolloError, StorageError, TrainingError
from apollo_cli.training.interrupt import Interrupted

DONE, BUG, MENDABLE = 0, 1, 2


def report(error: Exception, run_dir: Path | None = None) -> int:
    """Says what went wrong, on standard error, and returns the exit code for it.

    Args:
        error: of a run or of the command.
        run_dir: where the run is that may go on.
    """
    if isinstance(error, ApolloError):
        goes_on = isinstance(error, Interrupted | StorageError) or (
            isinstance(error, TrainingError) and error.goes_on
        )
        print(f"apollo-train: {error}{_way_on(run_dir) if run_dir and goes_on else ''}", file=sys.stderr)
        return 128 + error.signum if isinstance(error, Interrupted) else MENDABLE
    if _is_of_the_command_line(error):
        print(f"apollo-train: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return MENDABLE
    traceback.print_exception(error)
    return BUG


def _way_on(run_dir: Path) -> str:
    """The command that resumes, as it is to be typed here; nothing where no run is."""
    if not (run_dir / "config.yaml").is_file():
        return ""
    return f"; go on with: {files.command('apollo-train')} {shlex.quote(f'resume={files.shown(run_dir)}')}"


def _is_of_the_command_line(error: Exception) -> bool:
    """Whether Hydra could not compose what was typed, or not make the run directory."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException | OSError)
