"""Weights & Biases as a mirror: it may fail, training goes on, and it never prompts."""

import logging
import netrc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from apollo_cli import files
from apollo_cli.config import Tracking


@dataclass(frozen=True)
class Identity:
    """How a run is known in W&B.

    Attributes:
        id: drawn once and kept in the checkpoints, so that a resumed run goes on in W&B too.
        name: for people.
        group: the sweep, if the run is part of one.
        tags: model, sampler, expander, ...
    """

    id: str
    name: str
    group: str | None
    tags: tuple[str, ...]


def identify(run_dir: Path, name: str, tags: tuple[str, ...], run_id: str) -> Identity:
    """The identity of the run in `run_dir`; a sweep leaves its multirun.yaml one folder up."""
    in_sweep = (run_dir.parent / "multirun.yaml").exists()
    group = f"{name}/{run_dir.parent.name}" if in_sweep else None
    return Identity(run_id, f"{group or name}/{run_dir.name}", group, tags)


class Mirror:
    """An open W&B run that takes the same rows as metrics.jsonl."""

    def __init__(self, run: Any, skip_rows: int, say: Callable[[str], None]) -> None:
        self.run, self.skip_rows, self.say = run, skip_rows, say

    def row(self, row: dict[str, Any]) -> None:
        """Logs a row, unless W&B has it from before an interruption."""
        if self.skip_rows:
            self.skip_rows -= 1
        elif self.run is not None:
            self._try(lambda: self.run.log(row | {"flops": float(row["flops"])}))

    def close(self, status: str, summary: dict[str, Any]) -> None:
        """Final numbers into the run's summary, and the end of the run."""
        if self.run is not None:
            exit_code = 0 if status == "completed" else 1
            self._try(lambda: self.run.summary.update({"status": status} | summary))
            self._try(lambda: self.run.finish(exit_code=exit_code))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a mirror must not stop a run, whatever breaks in it
            self.say(f"W&B failed and is left out from here on; metrics.jsonl is complete: {error}")
            self.run = None


def open_mirror(
    tracking: Tracking,
    identity: Identity,
    config: dict[str, Any],
    run_dir: Path,
    skip_rows: int,
    say: Callable[[str], None],
) -> Mirror | None:
    """Opens the W&B run that `tracking.wandb` asks for; None where it is disabled or cannot be had.

    `auto` goes online where a key is known and falls back to offline; no way leads to a prompt.
    """
    mode = os.environ.get("WANDB_MODE") if tracking.wandb == "auto" else tracking.wandb
    if mode is None or mode not in ("online", "offline", "disabled"):
        mode = "online"
    if mode == "online" and not has_key():
        if tracking.wandb == "online":
            say("W&B has no API key here (wandb login stores one); this run is recorded offline")
        mode = "offline"
    if mode == "disabled":
        return None
    try:
        run = _open(mode, tracking, identity, config, run_dir)
    except Exception as error:  # no server, a wrong key, a time-out, ...
        if mode == "online":
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            say(f"W&B cannot be reached ({reason}); this run is recorded offline")
            return open_mirror(
                tracking.model_copy(update={"wandb": "offline"}), identity, config, run_dir, skip_rows, say
            )
        say(f"W&B cannot be used; metrics.jsonl has everything: {error}")
        return None
    if mode == "offline":
        say(f"W&B offline; to upload later: wandb sync {files.shown(Path(run.settings.sync_dir))}")
    return Mirror(run, skip_rows, say)


def _open(mode: str, tracking: Tracking, identity: Identity, config: dict[str, Any], run_dir: Path) -> Any:
    if mode == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means no network at all
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    run = wandb.init(
        mode=mode,  # type: ignore[arg-type]
        project=tracking.project,
        id=identity.id,
        name=identity.name,
        group=identity.group,
        job_type="pretrain",
        tags=identity.tags,
        dir=str(run_dir),
        config=config,
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(init_timeout=tracking.timeout, console="off", silent=True),
    )
    run.define_metric("flops")
    for metrics in ("train/*", "eval/*", "growth/*", "perf/*"):
        run.define_metric(metrics, step_metric="flops")
    return run


def has_key() -> bool:
    """Whether W&B would find an API key: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.exists() and netrc.netrc(path).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False
