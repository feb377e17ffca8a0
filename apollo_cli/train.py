"""`apollo-train`: parse, call, exit code. Heavy imports wait until they are needed."""

import os
import shlex
import signal
import sys
import traceback
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from apollo_cli import __version__, files
from apollo_cli.errors import ApolloError, ConfigError, StorageError, TrainingError
from apollo_cli.folders import leaving_none_empty
from apollo_cli.help import page
from apollo_cli.training.interrupt import Interrupted, Terminated, terminate

DONE, BUG, MENDABLE = 0, 1, 2
STAMP = "APOLLO_STAMP"  # names the run directory; conf/config.yaml reads it


cells: list[tuple[Path, int]] = []  # of this sweep: run directory and exit code


def main() -> None:
    """The console command."""
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Runs `apollo-train` with these words and returns its exit code."""
    os.environ[STAMP] = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come to us as they are
    asked = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]  # nohup's way
    before = {s: signal.signal(s, terminate) for s in asked}
    try:
        return _run(words)
    except (KeyboardInterrupt, Terminated) as stop:
        signum = stop.signum if isinstance(stop, Terminated) else signal.SIGINT
        print(f"apollo-train: stopped by {signum.name}; no run was under way", file=sys.stderr)
        return 128 + signum
    except Exception as error:
        return report(error)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _run(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        print(page())
        return DONE
    if "--version" in words:
        print(f"apollo-train {__version__}")
        return DONE

    from apollo_cli import overrides

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(["several processes (torchrun, srun) are not supported yet: start one"])
    _refuse_other_encodings(words)
    line = overrides.CommandLine.sort(words)
    if line.runs and (asked := overrides.resume_overrides(line)):
        return _resume(Path(asked[0]), asked[1])
    place = overrides.prepare(line)
    sys.argv[1:] = [*line.flags, *line.overrides]
    cells.clear()
    with leaving_none_empty(place) if place else nullcontext():
        code = _hydra_main()
    if code == BUG and not line.runs:  # Hydra has said what cannot be shown
        return MENDABLE
    if code == DONE and line.multirun and line.runs:
        from apollo_cli.report.sweep import close_sweep

        return close_sweep(cells)
    return code


def _refuse_other_encodings(words: list[str]) -> None:
    """Refuses names that could not be written into a run's files and messages, which are UTF-8.

    Raises:
        ConfigError: a word, or the name of the working directory, is not UTF-8.
    """
    problems = []
    for what, text in [("the word", word) for word in words] + [("the working directory", str(Path.cwd()))]:
        try:
            text.encode()
        except UnicodeEncodeError:
            problems.append(
                f"{what} {os.fsencode(text)!r} is not UTF-8: rename what it names, or move it elsewhere"
            )
    if problems:
        raise ConfigError(problems)


def _resume(run_dir: Path, sections: dict[str, Any]) -> int:
    from apollo_cli.training.run import resume

    try:
        resume(run_dir, sections)
    except Exception as error:
        return report(error, run_dir)
    return DONE


def _hydra_main() -> int:
    """Has Hydra do what the command says; its exit code."""
    import hydra

    try:
        hydra.main(config_path="pkg://apollo_cli.conf", config_name="config", version_base="1.3")(_job)()
    except SystemExit as stop:  # Hydra's way out, and a job's
        return int(stop.code or DONE)
    return DONE


def _job(values: Any) -> None:
    """One job of Hydra's: a run on its own, or a cell of a sweep, which must not take the others along."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from apollo_cli.config import parse
    from apollo_cli.training.run import train

    run_dir, alone = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().mode == RunMode.RUN
    raw: dict[str, Any] = {}
    if not alone:
        print(f"job {HydraConfig.get().job.num}: {' '.join(HydraConfig.get().overrides.task)}")
    try:
        raw = OmegaConf.to_container(values, resolve=True)  # type: ignore[assignment]
        train(parse(raw), run_dir)
        cells.append((run_dir, DONE))
    except Exception as error:
        code = report(error, run_dir)
        if alone or isinstance(error, Interrupted):
            sys.exit(code)

        from apollo_cli.report.sweep import record_failure

        record_failure(run_dir, raw, str(error) or repr(error))
        cells.append((run_dir, code))
    finally:
        if not alone:
            with suppress(OSError):  # not empty: the cell has begun, or has failed and says so
                run_dir.rmdir()


def report(error: Exception, run_dir: Path | None = None) -> int:
    """Says what went wrong, on standard error, and returns the exit code for it."""
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


if __name__ == "__main__":
    main()
