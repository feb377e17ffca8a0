"""Process beside a run: records metrics.jsonl with wandb, offline, and uploads the recording meanwhile.

Every call of W&B that may block is made here or in `wandb sync`, which this process starts. It imports nothing but
wandb, so it starts fast. Standard input brings an order, later the finish message, both JSON; without the latter,
as when the run was killed, the recording is closed as failed. Standard output has lines for people.
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

CALL_TIMEOUT = 60  # seconds for a call of wandb; then this process kills itself and its children
UPLOAD_VARIABLES = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE")  # unset for the recording, which is offline

Report = Callable[[str], None]


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # the run handles them, then sends its finish message
    signal.signal(signal.SIGALRM, _on_timeout)
    signal.signal(signal.SIGTERM, request_stop)
    orders, report = open(0, "rb", buffering=0), _line_writer()  # noqa: SIM115 - unbuffered, for select
    order = json.loads(orders.readline())
    environment, sys.argv = os.environ.copy(), order["argv"]
    for name in UPLOAD_VARIABLES:
        os.environ.pop(name, None)
    try:
        recording = Recording(order)
    except Exception as error:
        return report(f"cannot be used; metrics.jsonl has everything: {_first_line(error)}")
    try:
        record(order, recording, orders, environment, report)
    except Exception as error:
        report(f"recording ended; metrics.jsonl is complete: {_first_line(error)}")


def record(order: dict[str, Any], recording: "Recording", orders: Any, environment: Any, report: Report) -> None:
    """Records rows until the finish message, then waits for the upload."""
    if not order["online"]:
        report("offline")
    upload = Upload(Path(order["folder"]), environment if order["online"] else None, order["timeout"])
    finish_message = None
    while finish_message is None:
        signal.alarm(CALL_TIMEOUT)
        finish_message = _finish_message(orders)
        recording.take_rows()  # after the message is read, so that no row before it is missed
        upload.poll(report)
    recording.close(finish_message["status"], finish_message["summary"])
    upload.finish(finish_message.get("deadline", time.monotonic() + order["timeout"]), report)


class Recording:
    """The offline run of wandb and the position in metrics.jsonl up to which it has the rows."""

    def __init__(self, order: dict[str, Any]) -> None:
        signal.alarm(CALL_TIMEOUT)
        self.file = Path(order["metrics"]).open("rb")  # noqa: SIM115 - open until the end
        self.skip = order["skip"]
        self.run = open_run(order)

    def take_rows(self) -> None:
        """Logs the rows that were appended to metrics.jsonl."""
        while line := self._line():
            if self.skip:
                self.skip -= 1
                continue
            row = json.loads(line)
            self.run.log(row | {"flops": float(row["flops"])})

    def close(self, status: str, summary: dict[str, Any]) -> None:
        self.run.summary.update({"status": status} | summary)
        self.run.finish(exit_code=0 if status == "completed" else 1)

    def _line(self) -> bytes:
        """The next complete line; empty if there is none."""
        start = self.file.tell()
        line = self.file.readline()
        if line.endswith(b"\n"):
            return line
        self.file.seek(start)
        return b""


def open_run(order: dict[str, Any]) -> Any:
    """An offline run of wandb; FLOPs are the axis of all curves."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # offline means no network at all
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        program=order["argv"][0],
        x_stats_pid=order["pid"],  # measures the run's load, not this process's
        x_transaction_log_flush_interval=1,
    )
    run = wandb.init(mode="offline", resume="allow", reinit="finish_previous", settings=settings, **order["run"])
    run.define_metric("flops")
    for metrics in ("train/*", "eval/*", "growth/*", "perf/*"):
        run.define_metric(metrics, step_metric="flops")
    return run


class Upload:
    """`wandb sync` of what is not uploaded yet, oldest first; the newest recording while it grows.

    Args:
        folder: has the recordings of this run, one for each time that it was resumed.
        environment: with the key; without it nothing is uploaded.
        patience: seconds after which a server without an answer is reported.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None, patience: float) -> None:
        environment = environment or {}
        self.key = environment.get("WANDB_API_KEY", "").strip()  # a trailing newline is refused
        self.environment = environment | {"WANDB_API_KEY": self.key}
        self.environment.pop("WANDB_MODE", None)  # already applied by the run
        self.folders = _not_uploaded(folder) if environment else []
        self.current = self.folders[-1] if self.folders else None
        self.process: Popen[bytes] | None = None
        self.log: IO[bytes] = TemporaryFile()  # noqa: SIM115 - not in the run directory, as it may have secrets
        self.report_late_at = time.monotonic() + patience

    def poll(self, report: Report) -> None:
        """Starts the next upload; reports a failed one, and once a server that does not answer."""
        if self.process and self.process.poll() is not None:
            self.process = None
            if problem := self._problem():
                self.folders = []
                report(f"upload ended: {problem}")
            else:
                del self.folders[0]
        if self.folders and not self.process:
            self.process = self._start(self.folders[0])
        if self.folders and time.monotonic() > self.report_late_at:
            self.report_late_at = math.inf
            if not _has(self.folders[0], "syncstate"):  # made when the server has accepted the run
                report("does not answer; it is asked again and again")

    def finish(self, deadline: float, report: Report) -> None:
        """Waits for the upload until the deadline, then stops it."""
        self.report_late_at = math.inf
        while self.folders and time.monotonic() < deadline and not stop_requests:
            signal.alarm(CALL_TIMEOUT)
            self.poll(report)
            time.sleep(0.05)
        if self.process:
            self.process.kill()  # its service ends with it
            self.process.wait()
            report("does not have all rows yet")

    def _start(self, folder: Path) -> "Popen[bytes]":
        words = [sys.executable, "-P", "-m", "wandb", "beta", "sync", str(folder)]
        words += ["--live"] if folder == self.current else []
        place = folder.parents[1]  # the run directory: wandb makes a folder `wandb` in its working directory
        return Popen(words, stdin=DEVNULL, stdout=self.log, stderr=STDOUT, env=self.environment, cwd=place)

    def _problem(self) -> str:
        """Why the upload that has ended is incomplete: the last line with an error, or the last line; else empty.

        wandb marks a recording as uploaded even after "Some run data will not be synced": then the mark is removed,
        or `wandb sync` would skip that recording.
        """
        self.log.seek(0)
        lines = _lines(self.log.read().decode(errors="replace"))
        errors = [line for line in lines if "ERROR" in line or "Error:" in line]
        if _has(self.folders[0], "synced") and not errors:
            return ""
        for mark in self.folders[0].glob("*.wandb.synced"):
            mark.unlink()
        problem = [*(errors or lines or ["it printed nothing"])][-1].removeprefix("wandb: ERROR ")
        return problem.replace(self.key, "***") if self.key else problem


def _not_uploaded(folder: Path) -> list[Path]:
    """Recordings, oldest first, without those that wandb marked as uploaded."""
    return [path for path in sorted(folder.glob("offline-run-*")) if not _has(path, "synced")]


def _has(recording: Path, mark: str) -> bool:
    return any(recording.glob(f"*.wandb.{mark}"))


def _finish_message(orders: Any) -> dict[str, Any] | None:
    """The message at the end of a run; None if it has not come, a failure if the run is gone."""
    if not select.select([orders], [], [], 0.2)[0]:
        return None
    line = orders.readline()
    return json.loads(line) if line.endswith(b"\n") else {"status": "failed", "summary": {}}


def _line_writer() -> Report:
    """Writes lines to standard output, and redirects that of children and libraries to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)

    def report(line: str) -> None:
        with suppress(OSError):  # the run is gone
            os.write(out, line.encode() + b"\n")

    return report


def _first_line(error: Exception) -> str:
    return (_lines(str(error)) or [type(error).__name__])[0]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


stop_requests: list[int] = []


def request_stop(signum: int, frame: FrameType | None) -> None:
    """Ends the wait for an upload."""
    stop_requests.append(signum)


def _on_timeout(signum: int, frame: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
