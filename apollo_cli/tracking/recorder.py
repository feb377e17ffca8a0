"""Beside a run, in a process of its own: records metrics.jsonl with wandb, offline, and uploads it meanwhile.

Everything that W&B or its server may block happens here or in `wandb sync`, which this process starts.
It stands alone, so that it starts fast and imports nothing but wandb. Standard input has an order (JSON), later
a farewell (JSON); if the run dies, the input ends and the file is closed as failed. Lines for people go out.
"""

import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from tempfile import TemporaryFile
from types import FrameType
from typing import IO, Any

PATIENCE = 60  # seconds that no call of wandb may take; nobody waits here, but nothing shall stay for ever
FOR_UPLOADS = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE")  # a recording has no use for them

Tell = Callable[[str], None]


def main() -> None:
    """Takes the order and sees it through."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # they are for the run, which says farewell or is gone
    signal.signal(signal.SIGALRM, _on_timeout)
    signal.signal(signal.SIGTERM, request_stop)
    orders, tell = open(0, "rb", buffering=0), _teller()  # noqa: SIM115 - unbuffered, for select
    order = json.loads(orders.readline())
    environment, sys.argv = os.environ.copy(), order["argv"]
    for name in FOR_UPLOADS:
        os.environ.pop(name, None)
    try:
        recording = Recording(order)
    except Exception as error:
        return tell(f"cannot be used; metrics.jsonl has everything: {_first_line(error)}")
    try:
        record(order, recording, orders, environment, tell)
    except Exception as error:
        tell(f"recording ended; metrics.jsonl goes on: {_first_line(error)}")


def record(order: dict[str, Any], recording: "Recording", orders: Any, environment: Any, tell: Tell) -> None:
    """Records until the run says farewell or is gone."""
    if not order["online"]:
        tell("offline")
    upload = Upload(Path(order["folder"]), environment if order["online"] else None, order["timeout"])
    finish_message = None
    while finish_message is None:
        signal.alarm(PATIENCE)
        finish_message = _farewell(orders)
        recording.take_rows()  # after a look at the input: all rows before a farewell are seen
        upload.go_on(tell)
    recording.close(finish_message["status"], finish_message["summary"])
    upload.finish(finish_message.get("deadline", time.monotonic() + order["timeout"]), tell)


class Recording:
    """The offline run of wandb, and the place in metrics.jsonl up to which it has the rows."""

    def __init__(self, order: dict[str, Any]) -> None:
        signal.alarm(PATIENCE)
        self.file = Path(order["metrics"]).open("rb")  # noqa: SIM115 - until this process ends
        self.skip = order["skip"]
        self.run = open_run(order)

    def take_rows(self) -> None:
        """Logs what was appended to metrics.jsonl."""
        while line := self._line():
            if self.skip:
                self.skip -= 1
                continue
            row = json.loads(line)
            self.run.log(row | {"flops": float(row["flops"])})

    def close(self, status: str, summary: dict[str, Any]) -> None:
        """Final numbers, and the end of the recording."""
        self.run.summary.update({"status": status} | summary)
        self.run.finish(exit_code=0 if status == "completed" else 1)

    def _line(self) -> bytes:
        """The next whole line, or nothing."""
        start = self.file.tell()
        line = self.file.readline()
        if line.endswith(b"\n"):
            return line
        self.file.seek(start)
        return b""


def open_run(order: dict[str, Any]) -> Any:
    """A run of wandb that talks to no server; FLOPs are the axis of all curves."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # offline means no network at all
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        program=order["argv"][0],
        x_stats_pid=order["pid"],  # the load of the run, not of this process
        x_transaction_log_flush_interval=1,
    )
    run = wandb.init(
        mode="offline",
        resume="allow",
        reinit="finish_previous",
        settings=settings,
        **order["run"],
    )
    run.define_metric("flops")
    for metrics in ("train/*", "eval/*", "growth/*", "perf/*"):
        run.define_metric(metrics, step_metric="flops")
    return run


class Upload:
    """`wandb sync` of what is not uploaded yet, oldest first; the newest recording while it grows.

    Args:
        folder: has the recordings of this run, one for each time that it was resumed.
        environment: with the key; without it nothing is uploaded.
        patience: seconds in which the server should have answered.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None, patience: float) -> None:
        environment = environment or {}
        self.key = environment.get("WANDB_API_KEY", "").strip()  # a trailing newline is refused
        self.environment = environment | {"WANDB_API_KEY": self.key}
        self.environment.pop("WANDB_MODE", None)  # it was the run's to read
        self.folders = _not_uploaded(folder) if environment else []
        self.growing = self.folders[-1] if self.folders else None
        self.process: Popen[bytes] | None = None
        self.log: IO[bytes] = TemporaryFile()  # noqa: SIM115 - no file of the run, for it may say anything
        self.late_at = time.monotonic() + patience

    def go_on(self, tell: Tell) -> None:
        """Starts what is to start; says so when an upload has failed, and once if the server is late."""
        if self.process and self.process.poll() is not None:
            self.process = None
            if problem := self._problem():
                self.folders = []
                tell(f"upload ended: {problem}")
            else:
                del self.folders[0]
        if self.folders and not self.process:
            self.process = self._start(self.folders[0])
        if self.folders and time.monotonic() > self.late_at:
            self.late_at = math.inf
            if not _has(self.folders[0], "syncstate"):  # made when the server has taken the run in
                tell("does not answer; it is asked again and again")

    def finish(self, deadline: float, tell: Tell) -> None:
        """Waits for the upload until the deadline, and ends it then."""
        self.late_at = math.inf
        while self.folders and time.monotonic() < deadline and not hurried:
            signal.alarm(PATIENCE)
            self.go_on(tell)
            time.sleep(0.05)
        if self.process:
            self.process.kill()  # its service follows it at once
            self.process.wait()
            tell("does not have all rows yet")

    def _start(self, folder: Path) -> "Popen[bytes]":
        words = [sys.executable, "-P", "-m", "wandb", "beta", "sync", str(folder)]
        words += ["--live"] if folder == self.growing else []
        place = folder.parents[1]  # it makes a folder `wandb` where it stands: then that of the run
        return Popen(words, stdin=DEVNULL, stdout=self.log, stderr=STDOUT, env=self.environment, cwd=place)

    def _problem(self) -> str:
        """Why the upload that has ended is not a whole one: the last line that tells of an error, or the last one.

        wandb marks a recording as uploaded even after "Some run data will not be synced": then the mark has to go,
        or `wandb sync` would leave that recording out.
        """
        self.log.seek(0)
        lines = _lines(self.log.read().decode(errors="replace"))
        errors = [line for line in lines if "ERROR" in line or "Error:" in line]
        if _has(self.folders[0], "synced") and not errors:
            return ""
        for mark in self.folders[0].glob("*.wandb.synced"):
            mark.unlink()
        problem = [*(errors or lines or ["it said nothing"])][-1].removeprefix("wandb: ERROR ")
        return problem.replace(self.key, "***") if self.key else problem


def _not_uploaded(folder: Path) -> list[Path]:
    """Recordings in the order of their making; wandb leaves a mark beside those that it has uploaded."""
    return [path for path in sorted(folder.glob("offline-run-*")) if not _has(path, "synced")]


def _has(recording: Path, mark: str) -> bool:
    return any(recording.glob(f"*.wandb.{mark}"))


def _farewell(orders: Any) -> dict[str, Any] | None:
    """What the run says at its end; None while it says nothing; a failure if it is gone."""
    if not select.select([orders], [], [], 0.2)[0]:
        return None
    line = orders.readline()
    return json.loads(line) if line.endswith(b"\n") else {"status": "failed", "summary": {}}


def _teller() -> Tell:
    """Writes lines to standard output, which no child and no library gets hold of."""
    out = os.dup(1)
    os.dup2(2, 1)

    def tell(line: str) -> None:
        with suppress(OSError):  # the run is gone
            os.write(out, line.encode() + b"\n")

    return tell


def _first_line(error: Exception) -> str:
    return (_lines(str(error)) or [type(error).__name__])[0]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


hurried: list[int] = []


def request_stop(signum: int, frame: FrameType | None) -> None:
    """The run does not wait any more: no upload is to be waited for."""
    hurried.append(signum)


def _on_timeout(signum: int, frame: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
