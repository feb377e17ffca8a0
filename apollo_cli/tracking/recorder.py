"""Process beside a run: records metrics.jsonl with wandb, offline, and uploads the recording meanwhile.

Every call of W&B that may block is made here or in `wandb sync`, which this process starts. It imports nothing but
wandb, so it starts fast. Standard input brings an order, later the finish message, both JSON; without the latter,
as when the run was killed, the recording is closed as failed. Standard output has lines for people; one that begins
with `PAGE` has the address of the run's page.
"""

import base64
import json
import math
import os
import re
import select
import shutil
import signal
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from tempfile import TemporaryFile
from typing import IO, Any

CHECKPOINTS_FREE = 4  # so many must fit on the disk beside one that waits for its upload
CALL_TIMEOUT = 60  # seconds for a call of wandb; then this process kills itself and its children
UPLOAD_VARIABLES = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_DISABLED")  # unset for the recording
PAGE, STOP = "page: ", "Stop was pressed on the page of the run"
STOP_INTERVAL = 15  # seconds between two questions whether Stop was pressed, as in wandb's own client
HIDDEN = ("flops", "step", "micro_step", "tokens", "train_seconds", "total_seconds", "stage", "gated")  # no curves
_STOPPED_QUERY = """query RunStoppedStatus($projectName: String, $entityName: String, $runId: String!) {
  project(name: $projectName, entityName: $entityName) { run(name: $runId) { stopped } }
}"""

Report = Callable[[str], None]

stop_requests: list[int] = []  # signals that end the wait for an upload


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # the run handles them, then sends its finish message
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
    signal.signal(signal.SIGTERM, lambda signum, _: stop_requests.append(signum))
    orders, report = open(0, "rb", buffering=0), _line_writer()  # noqa: SIM115 - unbuffered, for select
    order = json.loads(orders.readline())
    environment, sys.argv = os.environ.copy(), order["argv"]
    for name in UPLOAD_VARIABLES:
        os.environ.pop(name, None)
    os.environ.setdefault("WANDB_DATA_DIR", order["folder"])  # copies of tables, else in the home directory
    if os.environ.get("WANDB_SWEEP_ID"):  # then wandb takes id and project from the environment alone
        os.environ.update(WANDB_RUN_ID=order["run"]["id"], WANDB_PROJECT=order["run"]["project"])
    try:
        recording = Recording(order, report)
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
    finish_message, page = None, ""
    while finish_message is None:
        signal.alarm(CALL_TIMEOUT)
        finish_message = _finish_message(orders)
        recording.take_rows()  # after the message is read, so that no row before it is missed
        recording.take_checkpoints()
        upload.poll(report)
        if upload.page and not page:
            page = upload.page
            watch_stop_button(page, order["server"], order["pid"], report)
    recording.close(**finish_message["end"])
    upload.finish(finish_message.get("deadline", time.monotonic() + order["timeout"]), report)
    if order["online"] and not _not_uploaded(upload.folder):
        shutil.rmtree(recording.links, ignore_errors=True)


class Recording:
    """The offline run of wandb and the positions in metrics.jsonl and train.log up to which it has the lines.

    `links` has hard links to the checkpoints that are to be uploaded, for the run drops the old ones meanwhile.
    """

    def __init__(self, order: dict[str, Any], report: Report) -> None:
        signal.alarm(CALL_TIMEOUT)
        self.file = Path(order["metrics"]).open("rb")  # noqa: SIM115 - open until the end
        self.log = Path(order["log"]).open("rb")  # noqa: SIM115
        self.log.seek(order["log_from"])
        self.skip, self.report = order["skip"], report
        self.checkpoints, self.links = order["checkpoints"], Path(order["folder"]) / "checkpoints"
        self.seen = {tuple(pair) for pair in order["seen"]}
        self.run = open_run(order)
        if order["stages"]:
            self.run.summary["plan/stages"] = table(order["stages"])
        if corpus := order["corpus"]:
            self.add_artifact(corpus["name"], "dataset", lambda artifact: _refer(artifact, corpus), [])

    def take_rows(self) -> None:
        """Logs the rows that were appended to metrics.jsonl, and prints the lines of train.log, for the log tab."""
        while line := _line(self.log):
            sys.stdout.write(line.decode(errors="replace"))
        while line := _line(self.file):
            if self.skip:
                self.skip -= 1
                continue
            row = json.loads(line)
            self.run.log(row | {"flops": float(row["flops"])})

    def take_checkpoints(self) -> None:
        """Logs the latest and the best checkpoint as artifacts, again where one becomes the best later."""
        for name, aliases in named_checkpoints(Path(self.checkpoints)) if self.checkpoints else ():
            pairs = {(name, alias) for alias in aliases}
            if not pairs <= self.seen:
                self.seen |= pairs
                self.add_artifact(f"checkpoint-{self.run.id}", "checkpoint", partial(self._fill, name), aliases)

    def _fill(self, name: str, artifact: Any) -> None:
        """Adds a checkpoint by hard links, which take space once the run drops it; an OSError for a full disk."""
        source, links = Path(self.checkpoints, name), self.links / name
        if not links.exists():
            size = sum(path.stat().st_size for path in source.iterdir())
            if shutil.disk_usage(source).free < CHECKPOINTS_FREE * size:
                raise OSError(f"the disk has no space for {CHECKPOINTS_FREE} more of its size")
            shutil.copytree(source, links, copy_function=os.link)
        state = json.loads((links / "meta.json").read_text(encoding="utf-8"))["state"]
        facts = {"step": state["step"], "flops": state["flops"], "eval/loss": state["losses"].get("eval/loss")}
        _add_folder(artifact, path=str(links), metadata=facts | {"data": state["data"]})

    def close(
        self,
        status: str,
        summary: dict[str, Any],
        growths: Sequence[dict[str, Any]] = (),
        model: dict[str, Any] | None = None,
    ) -> None:
        """Records the end: final numbers, the table of the growths, and the exported model as an artifact."""
        self.run.summary.update({"status": status} | summary)
        if growths:
            self.run.summary["growth/all"] = table(growths)
        if model:
            fill = partial(_add_folder, path=model["folder"], metadata=model["metadata"])
            self.add_artifact(f"model-{self.run.id}", "model", fill, ["latest", "final"])
        self.run.finish(exit_code=0 if status == "completed" else 1)

    def add_artifact(self, name: str, kind: str, fill: Callable[[Any], None], aliases: list[str]) -> None:
        """Logs an artifact that `fill` gives its content; a failure is a line."""
        import wandb

        signal.alarm(0)  # the checksums of large files take their time
        try:
            artifact = wandb.Artifact(name, kind)
            fill(artifact)
            self.run.log_artifact(artifact, aliases=aliases)
        except Exception as error:
            self.report(f"artifact {name} cannot be uploaded: {_first_line(error)}")
        signal.alarm(CALL_TIMEOUT)


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """A table of W&B, with a column for each key that a row has."""
    import wandb

    columns: list[Any] = list(dict.fromkeys(column for row in rows for column in row))
    return wandb.Table(columns, [[row.get(column) for column in columns] for row in rows], allow_mixed_types=True)


def named_checkpoints(folder: Path) -> list[tuple[str, list[str]]]:
    """The checkpoints that `latest` and `best` in `checkpoints/` name, the older first, with these aliases."""
    found: dict[str, list[str]] = {}
    for alias in ("latest", "best"):
        with suppress(OSError, ValueError):  # not there yet
            name = (folder / alias).read_text(encoding="utf-8").strip()
            if re.fullmatch(r"step_\d+", name) and (folder / name).is_dir():
                found.setdefault(name, []).append(alias)
    return sorted(found.items())


def _add_folder(artifact: Any, path: str, metadata: dict[str, Any]) -> None:
    artifact.metadata = metadata
    artifact.add_dir(path, policy="immutable", skip_cache=True)  # uploaded from where it is


def _refer(artifact: Any, corpus: dict[str, Any]) -> None:
    """References to the sources of a corpus; nothing of them is read or uploaded."""
    artifact.metadata = corpus["metadata"]
    for number, place in enumerate(corpus["places"]):
        artifact.add_reference(place, name=f"{number}", checksum=False)


def open_run(order: dict[str, Any]) -> Any:
    """An offline run of wandb; FLOPs are the axis of all curves."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # offline means no network at all
    import wandb

    settings = wandb.Settings(
        console="wrap",  # the lines of train.log that this process prints
        silent=True,
        program=order["argv"][0],
        x_stats_pid=order["pid"],  # measures the run's load, not this process's
        x_transaction_log_flush_interval=1,
    )
    run = wandb.init(mode="offline", resume="allow", reinit="finish_previous", settings=settings, **order["run"])
    for counter in HIDDEN:  # no panel of their own; each can be chosen as the x axis
        run.define_metric(counter, hidden=True)
    run.define_metric("*", step_metric="flops")
    run.define_metric("eval/loss", step_metric="flops", summary="min,last")
    return run


class Upload:
    """`wandb sync` of what is not uploaded yet, oldest first; the newest recording while it grows.

    `folder` has the recordings of this run, one for each time that it was resumed. Without an `environment`, with
    the key, nothing is uploaded. A server that does not answer is reported after `patience` seconds.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None, patience: float) -> None:
        environment = environment or {}
        self.folder = folder
        self.key = environment.get("WANDB_API_KEY", "").strip()  # a trailing newline is refused
        self.environment = environment | {"WANDB_API_KEY": self.key}
        self.environment.pop("WANDB_MODE", None)  # already applied by the run
        self.folders = _not_uploaded(folder) if environment else []
        self.current = self.folders[-1] if self.folders else None
        self.page = ""  # address of the run's page, once the server has accepted the run
        self.process: Popen[bytes] | None = None
        self.log: IO[bytes] = TemporaryFile()  # noqa: SIM115 - not in the run directory, as it may have secrets
        self.report_late_at = time.monotonic() + patience

    def poll(self, report: Report) -> None:
        """Starts the next upload; reports a failed one, once the page, and once a server that does not answer."""
        if self.process and not self.page and (found := re.search(rb"View run .* at (http\S+)", self._printed())):
            self.page = found[1].decode(errors="replace")
            report(PAGE + self.page)
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
        lines = _lines(self._printed().decode(errors="replace"))
        errors = [line for line in lines if "ERROR" in line or "Error:" in line]
        if _has(self.folders[0], "synced") and not errors:
            return ""
        for mark in self.folders[0].glob("*.wandb.synced"):
            mark.unlink()
        problem = [*(errors or lines or ["it printed nothing"])][-1].removeprefix("wandb: ERROR ")
        return problem.replace(self.key, "***") if self.key else problem

    def _printed(self) -> bytes:
        """Its output so far; the uploading process writes at the position that a `seek` would move."""
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0)


def watch_stop_button(page: str, server: dict[str, str], pid: int, report: Report) -> None:
    """Asks the server, in a thread, whether Stop was pressed on the run's page; then ends the run as SIGTERM does.

    `page` is ADDRESS/ENTITY/PROJECT/runs/ID; `server` has its address and the key, without which it is not asked.
    """
    entity, project, _, run_id = map(urllib.parse.unquote, page.rsplit("/", 4)[1:])
    variables = {"entityName": entity, "projectName": project, "runId": run_id}
    credentials = base64.b64encode(f"api:{server['key']}".encode()).decode()
    request = urllib.request.Request(
        f"{server['url']}/graphql",
        json.dumps({"query": _STOPPED_QUERY, "variables": variables}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {credentials}"},
    )

    def ask() -> None:
        while True:
            with suppress(OSError, ValueError, TypeError, KeyError):  # asked again
                with urllib.request.urlopen(request, timeout=CALL_TIMEOUT) as answer:
                    is_stopped = json.load(answer)["data"]["project"]["run"]["stopped"]
                if is_stopped is True and os.getppid() == pid:
                    report(STOP)
                    return os.kill(pid, signal.SIGTERM)
            time.sleep(STOP_INTERVAL)

    if server["key"]:
        threading.Thread(target=ask, daemon=True).start()


def _line(file: IO[bytes]) -> bytes:
    """The next complete line; empty if there is none."""
    start = file.tell()
    line = file.readline()
    if line.endswith(b"\n"):
        return line
    file.seek(start)
    return b""


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
    return json.loads(line) if line.endswith(b"\n") else {"end": {"status": "failed", "summary": {}}}


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


if __name__ == "__main__":
    main()
