"""A sweep from its first cell to its last, or to the command that goes on with it."""

import shlex
import signal
import sys
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from apollo_cli import files
from apollo_cli.cli import launchers
from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.experiment_grid import num_cells
from apollo_cli.config.hydra_syntax import quoted
from apollo_cli.errors import EXIT_USER_ERROR
from apollo_cli.signals import Terminated
from apollo_cli.sweeps import gpus
from apollo_cli.sweeps.job import hydra_main
from apollo_cli.sweeps.journal import Journal, SignalForwarder
from apollo_cli.sweeps.table import close_sweep


def run_sweep(line: CommandLine, words: list[str], sweep_dir: Path) -> int:
    """Runs the cells of a sweep, and closes with a table, or with the command that goes on."""
    again, place = _again(words, sweep_dir), _place_of_jobs(line, sweep_dir)
    print(f"sweep in {files.shown(sweep_dir)}; whenever it ends early, it goes on with: {again}")
    beside = gpus.visible() if line.launcher == "joblib" else []
    with Journal.kept(line.swept, beside, place and place / "journal") as journal:
        try:
            signum = _run_cells(line, journal, place)
        except (KeyboardInterrupt, Terminated) as stop:  # between two cells, or the second signal
            signum = stop.signum if isinstance(stop, Terminated) else signal.SIGINT
        except BrokenExecutor:
            print(
                "apollo-train: a process that ran a cell was killed, perhaps because memory was used up (a smaller "
                f"hydra.launcher.n_jobs runs fewer cells at once); the sweep goes on with: {again}",
                file=sys.stderr,
            )
            return EXIT_USER_ERROR
        except Exception as error:
            if not (place and launchers.is_of_a_job(error)):
                raise
            print(
                f"apollo-train: {' '.join(str(error).splitlines()[:2])}; logs are in {files.shown(place)}. "
                f"Other jobs go on; when they have ended, the sweep goes on with: {again}",
                file=sys.stderr,
            )
            return EXIT_USER_ERROR
        if signum:
            jobs = "; jobs that were submitted go on without it, when they have ended" if place else ""
            name = signal.Signals(signum).name
            print(f"apollo-train: stopped by {name}{jobs}; the sweep goes on with: {again}", file=sys.stderr)
            return 128 + signum
        return close_sweep(journal.ended())


def _place_of_jobs(line: CommandLine, sweep_dir: Path) -> Path | None:
    """Where submitted cells keep their logs and what they pickle: a new folder, so that nobody else's is loaded."""
    if not launchers.submits(line.launcher):
        return None
    return sweep_dir / ".submitit" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def _run_cells(line: CommandLine, journal: Journal, place: Path | None) -> int:
    """Has Hydra run them; the signal that stopped them, or 0."""
    relay = SignalForwarder(journal)
    with relay if line.launcher == "joblib" else nullcontext():
        try:
            for words in line.commands:
                folder = [f"hydra.launcher.submitit_folder={quoted(f'{place}/%j')}"] if place else []
                code = hydra_main([*line.flags, *words, *_at_once(line, words), *folder])
                if code > 128:  # a signal stopped a cell in this process
                    return code - 128
        except Exception:
            if not relay.signum:
                raise
        finally:
            if "joblib.externals.loky" in sys.modules:  # its processes would stay, with the journal of this sweep
                sys.modules["joblib.externals.loky"].get_reusable_executor(reuse=True).shutdown()
    return relay.signum or 0


def _at_once(line: CommandLine, words: list[str]) -> list[str]:
    """No more processes than cells: each has its share of the CPUs, and none waits for nothing."""
    if line.launcher != "joblib" or not (cells := num_cells(words)):
        return []

    from joblib import effective_n_jobs

    typed = [int(word.partition("=")[2]) for word in words if word.startswith("hydra.launcher.n_jobs=")]
    return [f"hydra.launcher.n_jobs={min(cells, effective_n_jobs(typed[-1] if typed else -1))}"]


def _again(words: list[str], sweep_dir: Path) -> str:
    """The command that goes on with a sweep, as it is to be typed here."""
    kept = [word for word in words if not word.lstrip("+").startswith("hydra.sweep.dir=")]
    return shlex.join([files.command("apollo-train"), *kept, f"hydra.sweep.dir={quoted(files.shown(sweep_dir))}"])
