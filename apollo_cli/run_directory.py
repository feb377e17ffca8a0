"""A run directory: the names of its files, the format they are in, and who works in it."""

import fcntl
import json
import os
import platform
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any

import yaml
from filelock import FileLock, Timeout

from apollo_cli import files
from apollo_cli.errors import CheckpointError, ConfigError, OccupiedError

FORMAT = 8
_LARGEST = 16_000_000  # bytes of a config.yaml or plan.json; ours have some thousand

# Links that wandb makes; it replaces them or leaves them alone, and writes through none.
_WANDB_LINK = re.compile(r"(latest-run|debug(-internal|-core)?\.log)(\.\d+)?")

# What a format brought to config.yaml, with the value that older runs were made with; in a section by its kind.
_SINCE: dict[int, dict[str, Any]] = {
    2: {"on_nonfinite": "stop"},
    6: {"devices": None, "distributed": {"kind": "ddp", "timeout": 600}},
}
_INIT = {"init_std": 0.02, "init_positions": "random", "init_positions_std": 0.02}
_OF_DATA = {"validation_seed": 0, "inspect": False}
_SECTION_SINCE: dict[int, dict[tuple[str, str | None], dict[str, Any]]] = {
    2: {("data", "text"): {"errors": "strict"}},
    3: {
        ("model", "bert"): _INIT | {"init_residual": "plain", "mask_words": False},
        ("model", "gpt"): _INIT | {"init_residual": "by_depth"},
        ("data", "pydocs"): _OF_DATA,
        ("data", "text"): _OF_DATA | {"validation_files": []},
        ("data", "hub"): _OF_DATA | {"validation_split": None},
    },
    4: {("schedule", None): {"trained": None}},
    5: {
        ("expander", kind): {"source": None, "source_flops": None}
        for kind in ("interpolate", "stack", "net2net", "append", "middle", "boundary", "msg")
    },
    7: {("schedule", None): {"widths": None}},
    8: {("optim", None): {"knots": None}},
}


class RunDirectory:
    """The files of one run. `config.yaml` makes a folder a run directory; it is written last."""

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
        self.wandb = path / "wandb"
        self._lock_file = path / ".lock"

    def __str__(self) -> str:
        return files.shown(self.path)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Holds the directory's lock; a process that dies lets go of it.

        There are two: of `.lock`, which other machines on a shared disk see too, and of the folder itself, which
        nobody can delete while the run goes on in it.

        Raises:
            OccupiedError: another process has it; the message has its number.
            CheckpointError: it holds what leads elsewhere.
            StorageError: the directory cannot be written to.
        """
        with ExitStack() as held:
            with files.writing(self._lock_file, 100):
                try:
                    held.enter_context(_locked(self.path))
                    self._refuse_what_leads_elsewhere()  # before anything is written, and where nobody else writes
                    held.enter_context(FileLock(self._lock_file, timeout=0))
                except (BlockingIOError, Timeout):
                    owner = self._owner()
                    raise OccupiedError(
                        f"{self} is in use by {owner}; stop that one, or wait for its end"
                    ) from None
                held.callback(self._lock_file.unlink, missing_ok=True)  # while it is held
                self._lock_file.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
            yield

    def _refuse_what_leads_elsewhere(self) -> None:
        """A stranger may have put links to files outside in the place of ours, or a FIFO that nobody writes to.

        Raises:
            CheckpointError: something that a run writes or reads is neither a file nor a folder.
        """
        for path in self._contents():
            mode = path.lstat().st_mode
            of_wandb = self.wandb in path.parents and _WANDB_LINK.fullmatch(path.name)
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and of_wandb):
                continue
            what = "a symbolic link" if stat.S_ISLNK(mode) else "a FIFO, a socket or a device"
            raise CheckpointError(
                f"{files.shown(path)} is {what}; a run keeps to files and folders of its own: put those in its "
                "place, or delete it"
            )

    def _contents(self) -> Iterator[Path]:
        """What has a name of ours, and everything in it; what else may be there is nobody's business."""
        left = [path for path in vars(self).values() if path != self.path]
        while left:
            path = left.pop()
            if os.path.lexists(path):
                yield path
            if path.is_dir() and not path.is_symlink():
                left.extend(path.iterdir())

    def _owner(self) -> str:
        """Whoever has the lock says so a moment later; nobody can if somebody deleted the file."""
        for _ in range(20):
            with suppress(OSError):
                if owner := self._lock_file.read_text(encoding="utf-8").strip():
                    return owner
            sleep(0.05)
        return "another process"

    def claim(self, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Makes the owned folder the directory of a new run.

        Raises:
            ConfigError: a run is in it already.
        """
        if taken := [
            path for path in (self.config_file, self.metrics_file, self.checkpoints, self.model) if path.exists()
        ]:
            problem = f"{self} has a {taken[0].name} already: choose another directory"
            raise ConfigError([f"{problem}, or type resume={self} if it was interrupted"])
        with files.writing(self.config_file, 100_000):
            files.write_json(self.plan_file, plan)
            self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """config.yaml, in the format of today."""
        files.write_text(self.config_file, yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False))

    def disown(self) -> None:
        """Takes a claim back: the run did not begin, and nothing of it is to stay."""
        for file in (self.config_file, self.plan_file):
            file.unlink(missing_ok=True)

    @property
    def is_claimed(self) -> bool:
        """Whether a run is in it that `resume` can go on with."""
        return self.config_file.is_file()

    def config(self) -> dict[str, Any]:
        """The plain values of config.yaml, those of an older format brought up to date.

        Raises:
            CheckpointError: it is missing, damaged, or of a newer format.
        """
        if not self.is_claimed:
            raise CheckpointError(f"resume={self.path}: not a run directory (no config.yaml in it)")
        values = _read(self.config_file, _parse_yaml)
        return up_to_date(self.config_file, values)

    def planned_steps(self) -> int:
        """The length that plan.json gave to the run; a budget in seconds does not give the same one twice.

        Raises:
            CheckpointError: plan.json is missing or damaged.
        """
        steps = _read(self.plan_file, json.loads).get("steps")
        if type(steps) is not int or steps < 1:
            raise CheckpointError(f"{self.plan_file} is damaged: steps is {steps!r}")
        return steps

    def plan(self) -> dict[str, Any]:
        """plan.json; empty where there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        return _read(self.plan_file, json.loads) if self.plan_file.exists() else {}

    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def summary(self) -> dict[str, Any]:
        """summary.json; a run that has none yet has the status `running`.

        Raises:
            CheckpointError: it is damaged.
        """
        return _read(self.summary_file, json.loads) if self.summary_file.exists() else {"status": "running"}


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return _read(path, _parse_yaml)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock of the folder itself, where the file system has such locks.

    Raises:
        BlockingIOError: another process has it.
    """
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


def up_to_date(path: Path | str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a config of any format, as those of today; messages call it `path`.

    Raises:
        CheckpointError: it is of a newer format, or of none.
    """
    values = dict(values)
    written = values.pop("format", 1)  # the first format did not say
    if type(written) is not int or written < 1:
        raise CheckpointError(f"{path} is damaged: format is {written!r}, it should be a whole number")
    if written > FORMAT:
        raise CheckpointError(
            f"{path}: a newer apollo-train wrote this run (format {written}, this one reads up to {FORMAT}); "
            "update apollo-train"
        )
    for number in range(written + 1, FORMAT + 1):
        values = _SINCE.get(number, {}) | values
        for (name, kind), keys in _SECTION_SINCE.get(number, {}).items():
            section = values.get(name)
            if isinstance(section, dict) and section.get("kind") == kind:
                values[name] = keys | section
    return _with_new_names(values)


def _with_new_names(values: dict[str, Any]) -> dict[str, Any]:
    """The values with keys of before a renaming under their names of today."""
    expander, model, name = values.get("expander"), values.get("model"), values.get("name")
    if name in ("late_silent", "repro_late_silent", "repro_gpu_late_silent"):
        values["name"] = name.replace("silent", "zero_init")
    if isinstance(expander, dict) and "source" in expander:
        init_from = {"path": expander["source"], "flops": expander.get("source_flops")}
        expander = {key: value for key, value in expander.items() if key not in ("source", "source_flops")}
        values = values | {"expander": expander, "init_from": init_from}
    if isinstance(expander, dict) and "entry" in expander:
        values["expander"] = {"gate_duration" if key == "entry" else key: v for key, v in expander.items()}
    if isinstance(model, dict) and "mask_words" in model:
        values["model"] = {"whole_word_masking" if key == "mask_words" else key: v for key, v in model.items()}
    return values


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them may stand for billions of values, and ours have none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has YAML aliases")
        return super().compose_node(parent, index)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _PlainLoader)


def _read(path: Path, parse: Any) -> dict[str, Any]:
    """The keys of a JSON or YAML file; whatever is in it, nothing is executed."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is damaged: it is not a file")  # to read a FIFO would take for ever
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} is damaged: {files.in_units(path.stat().st_size)} are not one of ours")
        value = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is damaged: {reason[0]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it holds no keys")
    return value
