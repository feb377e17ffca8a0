"""How a command ends: its exit code, and what is said about an error."""

import os
import shlex
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from apollo_cli import files
from apollo_cli.errors import EXIT_BUG, EXIT_USER_ERROR, ApolloError, ConfigError, ReportedError, printable
from apollo_cli.signals import Interrupted, Terminated
from apollo_cli.training.distributed.environment import ProcessEnv

_MARKS = ("config.yaml", "glue.yaml")  # of folders that a command can resume


def open_standard_streams() -> None:
    """Connects what is closed of standard input, output and error to the null device.

    Otherwise the next file that is opened would be taken for it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def report(error: Exception, run_dir: Path | None = None, program: str = "apollo-train") -> int:
    """Says what went wrong, on standard error, and returns the exit code for it.

    `run_dir` is that of a run that may go on.
    """
    if isinstance(error, ReportedError):
        return error.code
    if isinstance(error, ApolloError):
        code = 128 + error.signum if isinstance(error, Interrupted) else EXIT_USER_ERROR
        text = f"{error}{resume_hint(run_dir, program) if run_dir and error.resumable else ''}"
    elif isinstance(error, RecursionError):
        code, text = EXIT_USER_ERROR, "a value is nested too deeply to be read"
    elif _is_of_the_command_line(error):
        code, text = EXIT_USER_ERROR, str(error).strip().splitlines()[0]
    else:
        code, text = EXIT_BUG, "".join(traceback.format_exception(error)).rstrip()
    if speaker := _speaker(program, text, error):
        print(printable(text if code == EXIT_BUG else f"{speaker}: {text}"), file=sys.stderr)
    return code


def _speaker(program: str, text: str, error: Exception) -> str:
    """Who says this: of several processes each on its own account, but not what the first one says too."""
    with suppress(ConfigError):
        if env := ProcessEnv.from_environ(os.environ):
            from apollo_cli.training.distributed.group import connected

            return f"{program} (process {env.rank})" if connected().should_report(text, error) else ""
    return program


def report_signal(stop: BaseException, program: str) -> int:
    """Says that a signal came before or after a run, or Ctrl-C, and returns the exit code for it."""
    signum = stop.signum if isinstance(stop, Terminated) else signal.SIGINT
    print(f"{program}: stopped by {signum.name}; no run was under way", file=sys.stderr)
    return 128 + signum


def resume_hint(run_dir: Path, program: str) -> str:
    """The command that resumes, as it is to be typed here; nothing where no run is."""
    if not any((run_dir / name).is_file() for name in _MARKS):
        return ""
    return f"; resume with: {files.command(program)} {shlex.quote(f'resume={files.shown(run_dir)}')}"


def _is_of_the_command_line(error: Exception) -> bool:
    """Whether Hydra could not compose what was typed, or not make the run directory."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, HydraException | OmegaConfBaseException | OSError)
