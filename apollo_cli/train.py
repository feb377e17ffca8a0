"""`apollo-train`: parse, call, exit code. Heavy imports wait until they are needed."""

import os
import shlex
import sys
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from apollo_cli import __version__
from apollo_cli.errors import ApolloError, ConfigError
from apollo_cli.help import page

DONE, BUG, MENDABLE = 0, 1, 2
STAMP = "APOLLO_STAMP"  # names the run directory; conf/config.yaml reads it


def main() -> None:
    """The console command."""
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Runs `apollo-train` with these words and returns its exit code."""
    os.environ[STAMP] = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    try:
        return _run(words)
    except SystemExit as stop:  # Hydra's way out, and a job's
        return int(stop.code or DONE)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return report(error)


def _run(words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        print(page())
        return DONE
    if "--version" in words:
        print(f"apollo-train {__version__}")
        return DONE

    from apollo_cli import overrides

    line = overrides.CommandLine.sort(words)
    if line.runs and (asked := overrides.resume_overrides(line)):
        return _resume(Path(asked[0]), asked[1])
    overrides.check(line)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(["several processes (torchrun, srun) are not supported yet: start one"])
    sys.argv[1:] = [*line.flags, *line.overrides]
    _hydra_main()
    if line.multirun and line.runs:
        from apollo_cli.report.sweep import close_sweep

        return close_sweep(overrides.sweep_folder(line))
    return DONE


def _resume(run_dir: Path, sections: dict[str, Any]) -> int:
    from apollo_cli.training.run import resume

    try:
        resume(run_dir, sections)
    except Exception as error:
        return report(error, run_dir)
    return DONE


def _hydra_main() -> None:
    import hydra

    hydra.main(config_path="pkg://apollo_cli.conf", config_name="config", version_base="1.3")(_job)()


def _job(values: Any) -> None:
    """One job of Hydra's: a run on its own, or a cell of a sweep, which must not take the others along."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from apollo_cli.config import parse
    from apollo_cli.training.interrupt import Interrupted
    from apollo_cli.training.run import train

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    raw: dict[str, Any] = OmegaConf.to_container(values, resolve=True)  # type: ignore[assignment]
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        print(f"job {HydraConfig.get().job.num}: {' '.join(HydraConfig.get().overrides.task)}")
    try:
        train(parse(raw), run_dir)
    except Exception as error:
        code = report(error, run_dir)
        if HydraConfig.get().mode == RunMode.RUN:
            _remove_if_empty(run_dir)
            sys.exit(code)
        if isinstance(error, Interrupted):
            sys.exit(code)

        from apollo_cli.report.sweep import record_failure

        record_failure(run_dir, raw, str(error) or repr(error), code)


def report(error: Exception, run_dir: Path | None = None) -> int:
    """Says what went wrong, on standard error, and returns the exit code for it."""
    from apollo_cli.training.interrupt import Interrupted

    if isinstance(error, Interrupted):
        resume = shlex.quote(f"resume={run_dir}")
        print(f"apollo-train: {error}; go on with: apollo-train {resume}", file=sys.stderr)
        return 128 + error.signum
    if isinstance(error, ApolloError):
        print(f"apollo-train: {error}", file=sys.stderr)
        return MENDABLE
    traceback.print_exception(error)
    return BUG


def _remove_if_empty(run_dir: Path) -> None:
    """Hydra makes the directory before the run may refuse; then nothing is to be left."""
    inside = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else None
    with suppress(OSError):  # not empty: somebody's files stay
        os.removedirs(inside) if inside else run_dir.rmdir()


if __name__ == "__main__":
    main()
