"""The run of a job: new, continued, or completed by an earlier start of the sweep."""

from contextlib import suppress
from pathlib import Path

from apollo_cli import files
from apollo_cli.cli.resume import CACHE_KEY, OVERRIDABLE_KEYS, OVERRIDABLE_SECTIONS
from apollo_cli.config.config import Config
from apollo_cli.config.schema import flat
from apollo_cli.errors import ApolloError, CheckpointError, OccupiedError
from apollo_cli.run_directory import RunDirectory, as_saved

_BEGUN = "begun"


def train_or_continue(config: Config, run_dir: Path, label: str) -> dict[str, float]:
    """Trains a new run, continues one, or passes over one that is complete; returns its losses.

    An earlier start of the sweep may have left a run in `run_dir`; `label` is the line that announces the job.

    Raises:
        OccupiedError: another run is in its directory, or another process works there.
        ApolloError: as `train` and `resume` raise.
    """
    from apollo_cli.training.distributed.group import connect
    from apollo_cli.training.run import resume, train

    processes, directory = connect(), RunDirectory(run_dir)
    found = processes.broadcast_via_store("job", lambda: _found(directory, config))
    if processes.is_main:
        print(label + (f": {found}" if found.endswith("before") else ""), flush=True)
    if not found:
        return train(config, run_dir).losses
    if found == _BEGUN:
        values = {name: config.raw[name] for name in (*OVERRIDABLE_SECTIONS, *OVERRIDABLE_KEYS)}
        return resume(run_dir, values | {"data": {"cache_dir": config.data.cache_dir}}).losses
    return directory.summary().get("losses", {})


def _found(directory: RunDirectory, config: Config) -> str:
    """What an earlier start left there, in a word; empty for nothing; an OccupiedError for another run."""
    if not directory.is_claimed:
        return ""
    _refuse_another_run(directory, config)
    if config.run.plan:
        return "planned before"
    with suppress(CheckpointError):  # a damaged summary is written anew
        if directory.summary().get("status") == "completed":
            return "completed before"
    return _BEGUN


def record_failure(run_dir: Path, error: str) -> None:
    """Writes the reason of a failure into the job's directory; a run that is complete there stays as it is."""
    directory = RunDirectory(run_dir)
    with suppress(OSError, ApolloError), directory.owned():  # otherwise the screen has the error
        before = directory.summary()
        if before["status"] != "completed":
            files.write_json(directory.summary_file, before | {"status": "failed", "error": error})


def _refuse_another_run(directory: RunDirectory, config: Config) -> None:
    """Raises an OccupiedError, with the keys that differ, for a directory in which another run began."""
    try:
        there = flat(directory.config())
    except CheckpointError as error:
        raise OccupiedError(str(error)) from error
    here = flat(as_saved(config.raw))
    if here["precision"] == "auto":  # the run recorded what that was where it began
        here["precision"] = there.get("precision")
    differing = [
        f"{key} is {there.get(key, 'not set')} there and {here.get(key, 'not set')} here"
        for key in dict.fromkeys((*here, *there))
        if key not in ("experiment", CACHE_KEY, *OVERRIDABLE_KEYS)
        and key.partition(".")[0] not in OVERRIDABLE_SECTIONS
        and there.get(key) != here.get(key)
    ]
    if differing:
        shown = [*differing[:3], *(["..."] if len(differing) > 3 else [])]
        raise OccupiedError(
            f"{directory} holds another run: {', '.join(shown)}; type what began there, another "
            "hydra.sweep.dir, or a hydra.sweep.subdir that differs between jobs"
        )
