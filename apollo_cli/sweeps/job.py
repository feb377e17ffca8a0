"""What Hydra runs: a run on its own, or a cell of a sweep, which must not take the others along."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import (
    AbstractContextManager,
    closing,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from time import sleep
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from apollo_cli.cli.exit_codes import report
from apollo_cli.config.config import parse
from apollo_cli.errors import EXIT_OK, ConfigError, OccupiedError
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import Interrupted, interruptible, terminable
from apollo_cli.sweeps import gpus
from apollo_cli.sweeps.cells import record_failure, run_cell
from apollo_cli.sweeps.journal import JobResult, Journal
from apollo_cli.tracking.numbered import NumberedLines
from apollo_cli.training.distributed.environment import ProcessEnv

_AT_WORK = Lock()  # held while this process, one of several, has a cell


def hydra_main(words: list[str]) -> int:
    """Has Hydra do what these words say; its exit code, or that of a job."""
    sys.argv[1:] = words
    try:
        hydra.main(config_path="pkg://apollo_cli.conf", config_name="config", version_base="1.3")(job)()
    except SystemExit as stop:
        return int(stop.code or EXIT_OK)
    return EXIT_OK


def job(values: Any) -> None:
    """One job of Hydra's; exits with a code where it is not done, but for a cell that failed."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode == RunMode.RUN:
        _run(values, run_dir)
        return
    journal, code = Journal.of_command(), EXIT_OK
    try:
        with journal.running() as may_begin:
            if may_begin:
                with _surroundings(journal, run_dir.name, values.device):
                    ended = _cell(values, run_dir, journal)
                    is_job_stopped = journal.is_of_submitted and ended.status == "interrupted"
                    if not is_job_stopped:
                        _note(ended, journal)
                if is_job_stopped:
                    _requeue(ended, journal)
                code = ended.code if ended.code > 128 else EXIT_OK
    finally:
        with suppress(OSError):  # not empty: the cell has begun, or has failed and says so
            run_dir.rmdir()
    if code and not journal.is_of_another_process:
        sys.exit(code)


def _run(values: Any, run_dir: Path) -> None:
    from apollo_cli.training.run import train

    try:
        train(parse(_plain(values)), run_dir)
    except Exception as error:
        sys.exit(report(error, run_dir))


def _requeue(ended: JobResult, journal: Journal) -> None:
    """Has the job of this cell started again; comes back, and notes the end, where that is not to be."""
    try:
        requeue(ended.code - 128)
    except Exception as error:
        ended = replace(ended, reason=str(error))
    _note(ended, journal)


def _note(ended: JobResult, journal: Journal) -> None:
    if _is_first():
        journal.add(ended)


def _is_first() -> bool:
    """Whether this process speaks for the cell, which several may train."""
    with suppress(ConfigError):
        return not (place := ProcessEnv.from_environ(os.environ)) or place.rank == 0
    return True


def _cell(values: Any, run_dir: Path, journal: Journal) -> JobResult:
    """Runs a cell; how it ended."""
    words = journal.words_of(HydraConfig.get().overrides.task)
    label = " ".join(["cell", run_dir.name, *([f"({' '.join(words)})"] if words else [])])
    config, code, reason = None, EXIT_OK, ""
    try:
        with interruptible():
            config = parse(_plain(values))
            run_cell(config, run_dir, label)
        status = "planned" if config.run.plan else "completed"
    except Interrupted as stop:
        status, code = "interrupted", 128 + stop.signum
    except OccupiedError as error:
        status, code, reason = "refused", report(error), str(error)
    except Exception as error:
        if not config and _is_first():
            print(label)
        code, reason = report(error, run_dir), str(error) or repr(error)
        status = "interrupted" if code > 128 else "failed"  # what its processes said (devices=N)
        if status == "failed" and _is_first() and (config or not RunDirectory(run_dir).is_claimed):
            record_failure(run_dir, reason)  # else what is there is another run
    return JobResult(str(run_dir), code, status, reason, words)


def _surroundings(journal: Journal, name: str, device: str) -> AbstractContextManager[None]:
    """What a cell needs beyond those of the command: nothing where it runs in its process."""
    if not journal.is_of_another_process:
        return nullcontext()
    if journal.is_of_submitted:
        return terminable()
    gpus.take_one(journal.gpus, journal.numbers, device)
    return _aside(name, journal.owner)


@contextmanager
def _aside(name: str, owner: int) -> Iterator[None]:
    """A cell among others: its lines are numbered, and Ctrl-C is for the command, which passes it on."""
    with suppress(OSError):
        os.setpgid(0, 0)
    _have_it_followed(owner)
    out, err = NumberedLines(sys.stdout, name), NumberedLines(sys.stderr, name)
    with _AT_WORK, closing(out), closing(err), redirect_stdout(out), redirect_stderr(err), terminable():
        yield


@cache
def _have_it_followed(owner: int) -> None:
    """Stops the cell, and then this process, if the command is killed: its pool would wait for ever."""

    def follow() -> None:
        while os.getppid() == owner:
            sleep(1)
        if _AT_WORK.locked():
            os.kill(os.getpid(), signal.SIGTERM)
        with _AT_WORK:
            os._exit(128 + signal.SIGTERM)

    Thread(target=follow, daemon=True).start()


def _plain(values: Any) -> dict[str, Any]:
    return OmegaConf.to_container(values, resolve=True)  # type: ignore[return-value]


def requeue(signum: int) -> None:
    """Has Slurm start the job again, which goes on with the cell; its checkpoint is written.

    SIGUSR2 comes before the time limit, and on some clusters before a preemption: what submitit does then is still
    its handler, and exits. At SIGTERM a job is preempted, and Slurm requeues it, or it is cancelled; it looks the
    same. A job that ends then would be taken for done, so it waits until it is killed, as do the other processes
    of a cell at SIGUSR2, which the first one has requeued.

    Raises:
        UncompletedJobError: it may not be requeued any more (hydra.launcher.max_num_timeout).
    """
    if signum == signal.SIGUSR2 and callable(handler := signal.getsignal(signal.SIGUSR2)):
        handler(signum, None)
    elif os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    while True:
        sleep(60)
