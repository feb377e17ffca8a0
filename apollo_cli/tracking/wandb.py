"""Weights & Biases as a mirror: it may fail or hang, training goes on, and it never prompts.

A process of its own (`recorder.py`) follows metrics.jsonl; this one starts it, passes on what it has to say, and
ends it when its time is up. So no server, key or bug over there can hold a row up.
"""

import configparser
import json
import netrc
import os
import select
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Any
from urllib.parse import urlsplit

from apollo_cli import files
from apollo_cli.config.training import TrackingArgs
from apollo_cli.tracking import recorder

FACTS = "apollo"  # beside the config: what a comparison needs to know of a run
_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}


@dataclass(frozen=True)
class Identity:
    """How a run is known in W&B.

    Attributes:
        id: drawn once and kept in the checkpoints, so that a resumed run goes on in W&B too.
        name: for people.
        group: the sweep, if the run is part of one.
        tags: model, sampler, expander, ...
        job_type: pretrain or glue.
    """

    id: str
    name: str
    group: str | None
    tags: tuple[str, ...]
    job_type: str = "pretrain"


def identify(run_dir: Path, name: str, tags: tuple[str, ...], run_id: str) -> Identity:
    """The identity of the run in `run_dir`; a sweep leaves its multirun.yaml one folder up."""
    in_sweep = (run_dir.parent / "multirun.yaml").exists()
    group = f"{name}/{run_dir.parent.name}" if in_sweep else None
    return Identity(run_id, f"{group or name}/{run_dir.name}", group, tags)


class WandbProcess:
    """A recorder at work. No method raises because of it, and only `close` waits.

    Args:
        order: for the recorder.
        say: takes a line for people.
    """

    def __init__(self, order: dict[str, Any], say: Callable[[str], None]) -> None:
        self.folder, self.timeout, self.say = Path(order["folder"]), order["timeout"], say
        self.heard, self.hinted = b"", False
        words = [sys.executable, "-P", recorder.__file__]
        # a session of its own: Ctrl-C is for the run, which then says farewell
        self.process: Popen[bytes] | None = Popen(
            words, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True, bufsize=0
        )
        os.set_blocking(self._out, False)
        self._send(order)

    def row(self, row: dict[str, Any]) -> None:
        """The recorder reads the row in metrics.jsonl; here its words are passed on."""
        self._listen()

    def close(self, status: str, summary: dict[str, Any]) -> None:
        """Final numbers; waits for the upload, but not beyond the timeout, and not at all after a signal."""
        if self.process is None:
            return
        now = time.monotonic()  # one clock for all processes
        deadline = now + self.timeout
        # the recorder ends a little earlier, so that it can say why
        self._send({"status": status, "summary": summary, "deadline": now + 0.8 * self.timeout})
        try:
            while self._listen() and (left := deadline - time.monotonic()) > 0:
                select.select([self._out], [], [], left)
            if self.process:
                self._log(f"did not finish within {self.timeout:g} seconds")
        finally:
            if self.process:
                self.process.terminate()  # it closes its file and goes; nobody waits for it
                self.process = None

    @property
    def _out(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(OSError):  # it is gone, and `_listen` will see that
            self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def _listen(self) -> bool:
        """Passes on what the recorder said; whether it is still there."""
        if self.process is None:
            return False
        try:
            said = os.read(self._out, 65536)
        except BlockingIOError:
            return True
        *lines, self.heard = (self.heard + said).split(b"\n")
        for line in lines:
            self._log(line.decode(errors="replace"))
        if said:
            return True
        if self._reap():
            self._log("recorder was ended; metrics.jsonl goes on")
        return False

    def _log(self, line: str) -> None:
        """A line for people; the first one has the way to upload later, if there is something to upload."""
        if not self.hinted and any(self.folder.glob("offline-run-*/*.wandb")):
            self.hinted = True
            line += f"; to upload later: {files.command('wandb')} sync {shlex.quote(files.shown(self.folder))}"
        self.say(f"W&B {line}")

    def _reap(self) -> int:
        """Its output has ended: so has the recorder, and nothing that it began shall stay. Its exit code."""
        assert self.process is not None
        process, self.process = self.process, None
        with suppress(TimeoutExpired):
            process.wait(1)  # output ends a moment earlier
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def open_mirror(
    tracking: TrackingArgs,
    identity: Identity,
    config: dict[str, Any],
    run_dir: Path,
    skip_rows: int,
    say: Callable[[str], None],
) -> WandbProcess | None:
    """Starts the recorder that `tracking.wandb` asks for; None where it is disabled or cannot be had.

    Args:
        tracking: what is asked for.
        identity: of the run.
        config: for W&B to show.
        run_dir: has metrics.jsonl, which is there already.
        skip_rows: rows that come again after an interruption; W&B has them.
        say: takes a line for people.
    """
    mode = _mode(tracking, say)
    if mode == "disabled":
        return None
    folder, metrics = run_dir.resolve() / "wandb", run_dir.resolve() / "metrics.jsonl"
    run = {
        "project": tracking.project,
        "id": identity.id,
        "name": identity.name,
        "group": identity.group,
        "tags": identity.tags,
        "job_type": identity.job_type,
        "dir": str(folder.parent),
        "config": config,
    }
    try:
        order = {
            "run": run,
            "online": mode == "online",
            "folder": str(folder),
            "metrics": str(metrics),
            "skip": metrics.read_bytes().count(b"\n") + skip_rows,
            "timeout": tracking.timeout,
            "argv": sys.argv,
            "pid": os.getpid(),
        }
        return WandbProcess(order, say)
    except OSError as error:  # no process, no memory
        say(f"W&B cannot be used; metrics.jsonl has everything: {error}")
        return None


def _mode(tracking: TrackingArgs, say: Callable[[str], None]) -> str:
    """online, offline or disabled; `auto` leaves it to WANDB_MODE, and all need a key to be online."""
    asked = os.environ.get("WANDB_MODE") or "online" if tracking.wandb == "auto" else tracking.wandb
    if asked == "disabled":
        return asked
    if asked not in _MODES:
        say(f"WANDB_MODE={asked} means nothing to W&B (it may be {', '.join([*_MODES, 'disabled'])}): offline")
        return "offline"
    if _MODES[asked] == "online" and not _host():
        say("The address of the W&B server (WANDB_BASE_URL) is none; this run is recorded offline")
        return "offline"
    if _MODES[asked] == "online" and not has_key():
        if tracking.wandb == "online":
            say("W&B has no API key here (wandb login stores one); this run is recorded offline")
        return "offline"
    return _MODES[asked]


def has_key() -> bool:
    """Whether W&B would find an API key: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY", "").strip() or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.exists() and netrc.netrc(path).authenticators(_host()) is not None
    except (netrc.NetrcParseError, OSError, ValueError):
        return False


def _host() -> str:
    """The server's name and port; empty if its address is none. `wandb login --host` stores it in a file."""
    stored = configparser.ConfigParser(interpolation=None)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    with suppress(configparser.Error, OSError, ValueError):
        stored.read(folder / "settings")
    default = stored.get("default", "base_url", fallback="https://api.wandb.ai")
    try:
        address = urlsplit(os.environ.get("WANDB_BASE_URL") or default)
        return address.netloc if address.scheme in ("http", "https") and address.hostname else ""
    except ValueError:
        return ""
