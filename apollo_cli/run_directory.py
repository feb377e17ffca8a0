"""A run directory: the names of its files, their format, and a lock against a second process."""

import fcntl
import json
import os
import platform
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any

import yaml
from filelock import FileLock, Timeout

from apollo_cli import files
from apollo_cli.errors import CheckpointError, ConfigError, OccupiedError, first_line

FORMAT = 1
_MAX_BYTES = 16_000_000  # of a config.yaml or plan.json, which have some thousand
_MAX_DEPTH = 50  # of nested values in a config.yaml, which has a few
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is nine times as fast; some builds lack it

# Links that wandb makes; it replaces them or leaves them, and never writes through them.
_WANDB_LINK = re.compile(r"(latest-run|debug(-internal|-core)?\.log)(\.\d+)?")


class RunDirectory:
    """The files of one run. A folder with a `config.yaml`, which is written last, is a run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.plan_file = path / "plan.json"
        self.metrics_file = path / "metrics.jsonl"
        self.log_file = path / "train.log"
        self.summary_file = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.refused_steps = path / "refused_steps"
        self.model = path / "model"
        self.averaged_model = path / "model_ema"
        self.best_model = path / "model_best"
        self.wandb = path / "wandb"
        self._lock_file = path / ".lock"

    def __str__(self) -> str:
        return files.shown(self.path)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Holds the directory's lock while entered; the lock of a process that dies is released.

        Two files are locked: `.lock`, which other machines on a shared disk see too, and the folder itself, whose
        lock remains if `.lock` is deleted.

        Raises:
            OccupiedError: another process holds the lock; the message has its process id.
            CheckpointError: a link or a special file stands where a run has a file.
            StorageError: the directory cannot be written to.
        """
        with ExitStack() as held:
            with files.writing(self._lock_file, 100):
                try:
                    held.enter_context(_locked(self.path))
                    self._refuse_links()  # before anything is written, and while no other run writes
                    held.enter_context(FileLock(self._lock_file, timeout=0))
                except (BlockingIOError, Timeout):
                    owner = self._owner()
                    raise OccupiedError(
                        f"{self} is in use by {owner}; stop that one, or wait for its end"
                    ) from None
                held.callback(self._lock_file.unlink, missing_ok=True)  # while it is held
                self._lock_file.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
            yield

    def _refuse_links(self) -> None:
        """Raises a CheckpointError for a link or FIFO in place of a file, as an untrusted run may have it."""
        for path in self._contents():
            mode = path.lstat().st_mode
            of_wandb = self.wandb in path.parents and _WANDB_LINK.fullmatch(path.name)
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and of_wandb):
                continue
            what = "a symbolic link" if stat.S_ISLNK(mode) else "a FIFO, a socket or a device"
            raise CheckpointError(
                f"{files.shown(path)} is {what}; a run directory holds regular files and folders only: replace it "
                "by one, or delete it"
            )

    def _contents(self) -> Iterator[Path]:
        """The files and folders of a run that exist, and everything in them; other files are ignored."""
        left = [path for path in vars(self).values() if path != self.path]
        while left:
            path = left.pop()
            if os.path.lexists(path):
                yield path
            if path.is_dir() and not path.is_symlink():
                left.extend(path.iterdir())

    def _owner(self) -> str:
        """The process that holds the lock, from `.lock`."""
        for _ in range(20):  # written a moment after the lock is taken
            with suppress(OSError):
                if owner := self._lock_file.read_text(encoding="utf-8").strip():
                    return owner
            sleep(0.05)
        return "another process"

    def claim(self, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Makes the locked folder the directory of a new run; a ConfigError if it holds a run already."""
        for path in (self.config_file, self.metrics_file, self.checkpoints, self.model):
            if path.exists():
                problem = f"{self} has a {path.name} already: choose another directory"
                is_complete = self.summary().get("status") == "completed"
                resume = "" if is_complete else f", or type {shlex.quote(f'resume={self}')} to continue that run"
                raise ConfigError(f"{problem}{resume}")
        with files.writing(self.config_file, 100_000):
            files.write_json(self.plan_file, plan)
            self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        files.write_text(self.config_file, yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False))

    def unclaim(self) -> None:
        """Removes what `claim` wrote, for a run that did not begin."""
        for file in (self.config_file, self.plan_file):
            file.unlink(missing_ok=True)

    @property
    def is_claimed(self) -> bool:
        return self.config_file.is_file()

    @property
    def newest_run(self) -> Path | None:
        """The newest of the runs in the folder, as in `outputs/apollo`."""
        return max((path.parent for path in self.path.glob("*/config.yaml")), default=None)  # their names are times

    def not_a_run(self) -> CheckpointError:
        """The error for a folder that is no run directory; it names the newest run in it."""
        hint = f"; the newest run in it is {files.shown(self.newest_run)}" if self.newest_run else ""
        return CheckpointError(f"{self.path}: not a run directory (no config.yaml in it){hint}")

    def config(self) -> dict[str, Any]:
        """The plain values of config.yaml; a CheckpointError if it is missing, damaged, or of a newer format."""
        if not self.is_claimed:
            raise self.not_a_run()
        return without_format(self.config_file, read_keys(self.config_file))

    def planned_steps(self) -> int:
        """The steps in plan.json, which a budget in seconds cannot reproduce; a CheckpointError if it has none."""
        steps = read_keys(self.plan_file).get("steps")
        if type(steps) is not int or steps < 1:
            raise CheckpointError(f"{self.plan_file} is damaged: steps is {steps!r}")
        return steps

    def plan(self) -> dict[str, Any]:
        """plan.json, empty if the file is missing; a CheckpointError if it is damaged."""
        return read_keys(self.plan_file) if self.plan_file.exists() else {}

    def metrics_bytes(self) -> int:
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def summary(self) -> dict[str, Any]:
        """summary.json, before it is written the status `running`; a CheckpointError if it is damaged."""
        return read_keys(self.summary_file) if self.summary_file.exists() else {"status": "running"}


def as_saved(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a config.yaml with them is read."""
    return _parse_yaml(yaml.safe_dump(values))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the folder while entered, where the file system can; a BlockingIOError if it is locked already."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
        yield
    finally:
        os.close(descriptor)


def without_format(path: Path | str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its `format`; a CheckpointError with `path` if that is newer, missing, or not a number."""
    values = dict(values)
    written = values.pop("format", None)
    if type(written) is not int or written < 1:
        raise CheckpointError(f"{path} is damaged: format is {written!r}, it should be a whole number from 1")
    if written > FORMAT:
        raise CheckpointError(
            f"{path}: a newer apollo-train wrote this run (format {written}, this one reads up to {FORMAT}); "
            "update apollo-train"
        )
    return values


def _parse_yaml(text: str) -> Any:
    """The value of safe YAML without aliases, a few lines of which may expand to billions of values."""
    depth = 0
    for event in yaml.parse(text, _YAML):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it has YAML aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError("it is nested too deeply")
    return yaml.load(text, _YAML)


def read_keys(path: Path) -> dict[str, Any]:
    """The keys of a JSON or YAML file, by its suffix; a CheckpointError if it is missing or damaged."""
    parse = json.loads if path.suffix == ".json" else _parse_yaml  # neither executes anything
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is damaged: it is not a file")  # reading a FIFO would wait for ever
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(
                f"{path} is damaged: {files.in_units(path.stat().st_size)} are more than a run writes"
            )
        value = parse(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise CheckpointError(f"{path} is damaged: {place}{error.problem}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it holds no keys")
    return value
