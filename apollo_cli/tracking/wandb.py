"""Weights & Biases as a mirror of a run that never blocks it, fails it, or prompts.

`recorder.py`, a process of its own, follows metrics.jsonl; the run starts it, prints its lines, and ends it after
the time-out.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import Any
from urllib.parse import urlsplit

from apollo_cli import files
from apollo_cli.config.schema import validate
from apollo_cli.config.training import TrackingArgs
from apollo_cli.errors import ConfigError
from apollo_cli.run_directory import RunDirectory
from apollo_cli.tracking import recorder
from apollo_cli.tracking.tracker import Listener

FACTS = "apollo"  # key beside the config: the facts on a run that a comparison needs
LABELS = ("method", "scratch", "target_layers", "size", "parameters", "made_with")  # to group and filter by in W&B
LONGEST = 128  # letters of a name in W&B
_TRUE = ("1", "on", "yes", "true")  # of WANDB_DISABLED, as transformers reads it
_VARIABLES = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "group": "WANDB_RUN_GROUP"}
_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}


@dataclass(frozen=True)
class Identity:
    """Names of a run in W&B."""

    id: str  # random, kept in the checkpoints, so that a resumed run continues in W&B
    name: str
    group: str
    tags: tuple[str, ...]  # model, sampler, expander, ...
    job_type: str = "pretrain"  # or glue


def identify(run_dir: Path, name: str, tags: tuple[str, ...], run_id: str) -> Identity:
    """The group is the sweep, or the name of a single run."""
    sweep = run_dir.resolve().parent
    group = f"{sweep.parent.name}/{sweep.name}" if (sweep / "multirun.yaml").exists() else name
    return Identity(run_id, f"{group}/{run_dir.name}"[-LONGEST:], group[-LONGEST:], tags)


def check_variables(tracking: TrackingArgs) -> None:
    """Raises a ConfigError for names of the environment that W&B would refuse."""
    if _mode(tracking, lambda _: None) == "disabled":
        return
    values, problems = tracking.model_dump(), list[str]()
    for key, variable in _VARIABLES.items():
        if values[key] is None and (name := os.environ.get(variable)):
            found: list[str] = []
            validate(TrackingArgs, "", values | {key: name}, found)
            problems += [problem.replace(key, variable, 1) for problem in found]
    if problems:
        raise ConfigError(*problems)


def run_id_of_agent() -> str | None:
    """The id that `wandb agent` gives to a run of its sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


class WandbProcess(Listener):
    """A running recorder. No method raises because of it, and only `close` waits."""

    def __init__(self, order: dict[str, Any], say: Callable[[str], None]) -> None:
        self.folder, self.timeout, self.say = Path(order["folder"]), order["timeout"], say
        self.uploads_model, self.page = order["upload"] != "none", ""
        self.unfinished_line, self.hint_shown = b"", False
        words = [sys.executable, "-P", recorder.__file__]
        # a session of its own: Ctrl-C goes to the run alone, which then sends its finish message
        process = Popen(words, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True, bufsize=0)
        assert process.stdin
        assert process.stdout
        self._orders, self._out = process.stdin, process.stdout.fileno()
        self.process: Popen[bytes] | None = process
        os.set_blocking(self._out, False)
        self._send(order)

    def row(self, row: dict[str, Any]) -> None:
        """Prints the recorder's lines; the recorder itself reads the row in metrics.jsonl."""
        self._forward_lines()

    def close(self, status: str, summary: dict[str, Any]) -> None:
        """Sends the final numbers; waits for the upload until the time-out, and not at all after a signal."""
        if self.process is None:
            return
        end: dict[str, Any] = {"status": status, "summary": final_numbers(summary)}
        end["growths"] = [growth | {"jump": _jump(growth)} for growth in summary.get("growths", ())]
        if self.uploads_model and status == "completed" and (folder := self.folder.with_name("model")).is_dir():
            facts = {"flops": summary["totals"]["flops"], "eval/loss": summary["losses"].get("eval/loss")}
            facts |= {"data": summary["data"]["fingerprint"], "git_commit": summary["git_commit"]}
            end["model"] = {"folder": str(folder), "metadata": facts}
        now = time.monotonic()  # the same clock in all processes
        deadline = now + self.timeout
        # the recorder ends a little earlier, so that it can report why
        self._send({"end": end, "deadline": now + 0.8 * self.timeout})
        try:
            while self._forward_lines() and (left := deadline - time.monotonic()) > 0:
                select.select([self._out], [], [], left)
            if self.process:
                self._log(f"did not finish within {self.timeout:g} seconds")
        finally:
            if self.process:
                self.process.terminate()  # it closes its file first; not waited for
                self.process = None

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # it is gone, which `_forward_lines` reports
            self._orders.write(json.dumps(message).encode() + b"\n")

    def _forward_lines(self) -> bool:
        """Prints what the recorder wrote; returns whether it still runs."""
        if self.process is None:
            return False
        try:
            received = os.read(self._out, 65536)
        except BlockingIOError:
            return True
        *lines, self.unfinished_line = (self.unfinished_line + received).split(b"\n")
        for line in lines:
            self._log(line.decode(errors="replace"))
        if received:
            return True
        process, self.process = self.process, None
        with suppress(TimeoutExpired):
            process.wait(1)  # output ends a moment earlier
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        if process.wait():
            self._log("recorder was killed; metrics.jsonl is complete")
        return False

    def _log(self, line: str) -> None:
        """Prints a line; the first problem names the command to upload later, if there is something to upload."""
        if line.startswith(recorder.PAGE):
            self.page = line.removeprefix(recorder.PAGE)
        elif line != recorder.STOP and not self.hint_shown and any(self.folder.glob("offline-run-*/*.wandb")):
            self.hint_shown = True
            line += f"; to upload later: {files.command('wandb')} sync {shlex.quote(files.shown(self.folder))}"
        self.say(f"W&B {line}")


def final_numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """What W&B shows of summary.json; the minimum and the last of `eval/loss` are its own."""
    totals, growths = summary["totals"], summary.get("growths")
    found = totals | {key: value for key, value in summary["losses"].items() if key != "eval/loss"}
    if scratch := totals.get("scratch_flops"):
        found["saving/flops_at_equal_steps"] = 1 - (totals["flops"] + (totals["source_flops"] or 0)) / scratch
    found |= {key: value for key in ("ended_by", "extended_from", "frequency_loss") if (value := summary.get(key))}
    if best := summary.get("best"):
        found |= {"best/step": best["step"], "best/eval/loss": best["eval/loss"]}
    return found | ({"growth/last_jump": _jump(growths[-1])} if growths else {})


def _jump(growth: dict[str, Any]) -> float | None:
    """By how much a growth raised the validation loss; None where one of both is not finite."""
    before, after = growth["eval/loss_before"], growth["eval/loss_after"]
    return None if before is None or after is None else after - before


def _corpus(config: dict[str, Any]) -> dict[str, Any] | None:
    """The corpus as an artifact that refers to its sources; None where it has no place, as pydocs, or no facts."""
    facts, data = config.get(FACTS, {}).get("data"), config.get("data") or {}
    places = [place for source in data.get("sources") or [data] for place in _places(source)]
    if not facts or not places:
        return None
    return {"name": f"corpus-{facts['fingerprint'][:12]}", "metadata": facts, "places": places}


def _places(source: Mapping[str, Any]) -> list[str]:
    """Addresses of the files, or of the datasets of the hub, that a source of the config names."""
    names = [source.get(key) or [] for key in ("files", "validation_files", "path")]
    words = [Path(word) for found in names for word in ([found] if isinstance(found, str) else found)]
    here, on_hub = list[str](), list[str]()
    for path in (word.expanduser() for word in words):
        if source.get("path") and not path.exists():
            on_hub.append(f"https://huggingface.co/datasets/{path}")
        else:
            matches = sorted(glob(str(path), recursive=True))  # noqa: PTH207 - may be absolute
            here += [Path(match).resolve().as_uri() for match in matches]
    return [*here, *on_hub]


def open_mirror(
    tracking: TrackingArgs,
    identity: Identity,
    config: dict[str, Any],
    run_dir: Path,
    skip_rows: int,
    say: Callable[[str], None],
    stages: Sequence[dict[str, Any]] = (),
) -> WandbProcess | None:
    """Starts the recorder; None where `tracking.wandb` disables it or it cannot be started.

    The run has a metrics.jsonl already. `config` is shown in W&B, `skip_rows` are dropped by a resume and will be
    appended again (W&B has them if it was on), and `stages` are those of the plan, as a table.
    """
    mode = _mode(tracking, say)
    if mode == "disabled":
        return None
    directory = RunDirectory(run_dir.resolve())
    folder, metrics, log = directory.wandb, directory.metrics_file, directory.log_file
    log.touch()
    is_recorded = folder.exists()  # by an earlier session of this run, whose rows W&B has
    kept = recorder.named_checkpoints(directory.checkpoints) if is_recorded else []
    tags = (*identity.tags, *tracking.tags, *os.environ.get("WANDB_TAGS", "").split(","))
    run = {
        **asdict(identity),
        "project": tracking.project or os.environ.get("WANDB_PROJECT") or "apollo",
        "entity": tracking.entity,  # None and no notes: as the environment says
        "notes": tracking.notes,
        "group": tracking.group or os.environ.get("WANDB_RUN_GROUP") or identity.group,
        "tags": list(dict.fromkeys(tag.strip()[:64] for tag in tags if tag.strip())),  # as W&B takes them
        "dir": str(folder.parent),
        "config": config,
    }
    try:
        order = {
            "run": run,
            "online": mode == "online",
            "folder": str(folder),
            "metrics": str(metrics),
            "log": str(log),
            "log_from": log.stat().st_size if is_recorded else 0,
            "stages": stages,
            "upload": tracking.upload,
            "corpus": _corpus(config) if tracking.upload != "none" else None,
            "checkpoints": str(directory.checkpoints) if tracking.upload == "checkpoints" else None,
            "seen": [(name, alias) for name, aliases in kept for alias in aliases],
            "server": {"url": _address(), "key": _key()},
            "skip": metrics.read_bytes().count(b"\n") + skip_rows if is_recorded else 0,
            "timeout": tracking.timeout,
            "argv": sys.argv,
            "pid": os.getpid(),
        }
        return WandbProcess(order, say)
    except OSError as error:  # no process, no memory
        say(f"W&B cannot be used; metrics.jsonl has everything: {error}")
        return None


def _mode(tracking: TrackingArgs, say: Callable[[str], None]) -> str:
    """online, offline or disabled; `auto` follows WANDB_MODE, and without a key online becomes offline."""
    asked = os.environ.get("WANDB_MODE") or "online" if tracking.wandb == "auto" else tracking.wandb
    if tracking.wandb == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in _TRUE:
        say("WANDB_DISABLED is set: nothing is recorded for W&B")
        return "disabled"
    if asked == "disabled":
        return asked
    if asked not in _MODES:
        say(f"WANDB_MODE={asked}: should be one of {', '.join([*_MODES, 'disabled'])}; recording offline")
        return "offline"
    if _MODES[asked] == "online" and not _host():
        say("WANDB_BASE_URL: should be the http(s) address of a W&B server; recording offline")
        return "offline"
    if _MODES[asked] == "online" and not has_key():
        if tracking.wandb == "online":
            say("tracking.wandb=online: no API key found; recording offline (wandb login stores a key)")
        return "offline"
    return _MODES[asked]


def has_key() -> bool:
    """Whether there is an API key in the environment or in the netrc file."""
    return bool(_key() or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))


def _key() -> str:
    """The API key of the environment or the netrc file; empty without one."""
    if key := os.environ.get("WANDB_API_KEY", "").strip():
        return key
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        found = netrc.netrc(path).authenticators(_host()) if path.exists() else None
    except (netrc.NetrcParseError, OSError, ValueError):
        found = None
    return found[2] if found else ""


def _host() -> str:
    """Name and port of the server, empty if its address is not valid."""
    try:
        address = urlsplit(_address())
        return address.netloc if address.scheme in ("http", "https") and address.hostname else ""
    except ValueError:
        return ""


def _address() -> str:
    """The address of the server; `wandb login --host` stores it in a file."""
    stored = configparser.ConfigParser(interpolation=None)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    with suppress(configparser.Error, OSError, ValueError):
        stored.read(folder / "settings")
    default = stored.get("default", "base_url", fallback="https://api.wandb.ai")
    return (os.environ.get("WANDB_BASE_URL") or default).rstrip("/")
