"""What Hydra runs: a run on its own, or a job of a sweep, whose failure leaves the other jobs alone."""

import logging
import math
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from time import sleep

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from apollo_cli.cli.exit_codes import report
from apollo_cli.config.hydra_syntax import job_config
from apollo_cli.errors import EXIT_OK, ConfigError, OccupiedError
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import Interrupted, interruptible, terminable
from apollo_cli.sweeps import gpus
from apollo_cli.sweeps.continuation import record_failure, train_or_continue
from apollo_cli.sweeps.journal import JobResult, Journal
from apollo_cli.tracking.numbered import NumberedLines
from apollo_cli.training.distributed.environment import ProcessEnv

log = logging.getLogger(__name__)

AS_FOLDER = "apollo_folder"  # resolver: a value as the name of one folder
OmegaConf.register_new_resolver(AS_FOLDER, lambda value: re.sub(r"[/\\]", "_", str(value)), replace=True)
OmegaConf.register_new_resolver("apollo_parent", lambda plan, name: "plans" if plan else name, replace=True)

_BUSY = Lock()  # held while this process, one of several, runs a job


def job(values: DictConfig) -> float | None:
    """One job of Hydra's.

    Returns:
        The final `eval/loss`, also of a job that was completed before; None where there is no finite one (NaN would
        end a search).

    Raises:
        SystemExit: a run on its own failed, or a signal stopped it or a job in this process.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.RUN:
        return _run(values, run_dir)
    journal, code, losses = Journal.of_command(), EXIT_OK, dict[str, float]()
    try:
        with journal.running() as may_begin:
            if may_begin:
                with _surroundings(journal, run_dir.name, values.get("device", "auto")):
                    result, losses = _run_job(values, run_dir, journal)
                    is_requeued = not journal.owner and result.status == "interrupted"
                    if not is_requeued:
                        _note(result, journal)
                if is_requeued:
                    _requeue(result, journal)
                code = result.code if result.code > 128 else EXIT_OK
    finally:
        with suppress(OSError):  # not empty: the run has begun, or failed with a summary
            run_dir.rmdir()
    if code and journal.owner == os.getpid():
        sys.exit(code)
    return _finite_loss(losses)


def _run(values: DictConfig, run_dir: Path) -> float | None:
    from apollo_cli.training.run import train

    try:
        check_sweep_options(HydraConfig.get())
        config = job_config(values, HydraConfig.get().overrides.task)
        log.debug("config is valid; run directory %s", run_dir)
        return _finite_loss(train(config, run_dir).losses)
    except Exception as error:
        if isinstance(error, ConfigError):
            _remove_output_of_hydra(run_dir)
        sys.exit(report(error, run_dir))


def _remove_output_of_hydra(run_dir: Path) -> None:
    """Removes what Hydra has just written into a folder of its own in the directory of a run that is refused."""
    subdir = HydraConfig.get().output_subdir
    folder = run_dir / str(subdir)
    if subdir is None or RunDirectory(run_dir).is_claimed or folder.resolve().parent != run_dir.resolve():
        return
    with suppress(OSError):  # something else is there, too
        for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def check_sweep_options(config: HydraConf, to_sweep: str = "add -m") -> None:
    """Refuses what in Hydra's own config has an effect in a sweep alone; a ConfigError has every problem."""
    problems = [
        f"hydra/{part}={name}: it is for the jobs of a sweep; {to_sweep}"
        for part in ("launcher", "sweeper")
        if (name := config.runtime.choices[f"hydra/{part}"]) != "basic"
    ]
    if config.sweeper.get("params"):
        problems.append(f"experiment={config.runtime.choices['experiment']}: it is a sweep; {to_sweep}")
    if problems:
        raise ConfigError(*problems)


def _finite_loss(losses: dict[str, float]) -> float | None:
    loss = losses.get("eval/loss")
    return loss if loss is not None and math.isfinite(loss) else None


def _requeue(result: JobResult, journal: Journal) -> None:
    """Has the submitted job started again; returns, with a note of the reason, where that is not possible."""
    try:
        requeue(result.code - 128)
    except Exception as error:
        result = replace(result, reason=str(error))
    _note(result, journal)


def _note(result: JobResult, journal: Journal) -> None:
    if _is_main_process():
        journal.add(result)


def _is_main_process() -> bool:
    with suppress(ConfigError):
        return not (env := ProcessEnv.from_environ(os.environ)) or env.rank == 0
    return True


def _run_job(values: DictConfig, run_dir: Path, journal: Journal) -> tuple[JobResult, dict[str, float]]:
    overrides = HydraConfig.get().overrides.task
    words = [word for word in overrides if word.partition("=")[0].lstrip("+") in journal.swept]
    label = " ".join(["job", run_dir.name, *([f"({' '.join(words)})"] if words else [])])
    config, code, reason, losses = None, EXIT_OK, "", dict[str, float]()
    try:
        with interruptible():
            config = job_config(values, overrides)
            losses = train_or_continue(config, run_dir, label)
        status = "inspected" if config.data.inspect else "planned" if config.run.plan else "completed"
        if status == "completed" and _finite_loss(losses) is None:
            reason = "no finite validation loss"
    except Interrupted as stop:
        status, code = "interrupted", 128 + stop.signum
    except OccupiedError as error:
        status, code, reason = "refused", report(error), str(error)
    except Exception as error:
        if not config and _is_main_process():
            print(label)
        code, reason = report(error, run_dir), str(error) or repr(error)
        status = "interrupted" if code > 128 else "failed"  # the code of its processes (devices=N)
        if status == "failed" and _is_main_process() and (config or not RunDirectory(run_dir).is_claimed):
            record_failure(run_dir, reason)  # otherwise the folder holds another run
    log.debug("job %s: %s", run_dir, status)
    return JobResult(str(run_dir), code, status, reason, words), losses


@contextmanager
def _surroundings(journal: Journal, name: str, device: str) -> Iterator[None]:
    """What a job needs in a process other than the command's.

    Beside others it has a GPU and numbered lines, and leaves Ctrl-C to the command, which forwards it.
    """
    if journal.owner == os.getpid():
        yield
    elif not journal.owner:
        with terminable():
            yield
    else:
        gpus.take_one(journal.gpus, journal.folder / "numbers", device)
        with suppress(OSError):
            os.setpgid(0, 0)
        _stop_with(journal.owner)
        out, err = NumberedLines(sys.stdout, name), NumberedLines(sys.stderr, name)
        with _BUSY, closing(out), closing(err), redirect_stdout(out), redirect_stderr(err), terminable():
            yield


@cache
def _stop_with(owner: int) -> None:
    """Stops the job, and then this process, if the command is killed: its pool would wait for ever."""

    def watch() -> None:
        while os.getppid() == owner:
            sleep(1)
        if _BUSY.locked():
            os.kill(os.getpid(), signal.SIGTERM)
        with _BUSY:
            os._exit(128 + signal.SIGTERM)

    Thread(target=watch, daemon=True).start()


def requeue(signum: int) -> None:
    """Has Slurm start a submitted job again, which continues; its checkpoint is written.

    SIGUSR2 comes before the time limit, and on some clusters before a preemption: then submitit's own handler
    requeues the job and exits. At SIGTERM a job is preempted, and Slurm requeues it, or it is cancelled; the two
    look the same. A job that ended then would be taken for completed, so it waits until it is killed, as do at
    SIGUSR2 the other processes of a job, which the first one has requeued.

    Raises:
        UncompletedJobError: it may not be requeued any more (hydra.launcher.max_num_timeout).
    """
    if signum == signal.SIGUSR2 and callable(handler := signal.getsignal(signal.SIGUSR2)):
        handler(signum, None)
    elif os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    while True:
        sleep(60)
