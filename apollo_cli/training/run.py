"""A run: begun, shown instead, or gone on with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from apollo_cli import files
from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import resume_words
from apollo_cli.data import cache_folder
from apollo_cli.data.inspect import inspection
from apollo_cli.errors import EXIT_USER_ERROR, ApolloError, CheckpointError, ConfigError, SaidError
from apollo_cli.growth.plan import Plan
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import interruptible
from apollo_cli.tracking.console import Console, plan_table, plan_totals
from apollo_cli.training.checkpoint import Checkpoints
from apollo_cli.training.corpora import prepare_corpus, training_batches
from apollo_cli.training.device import Device, choose
from apollo_cli.training.distributed.group import ProcessGroup, join
from apollo_cli.training.memory import check_fits_in_memory
from apollo_cli.training.planning import make_plan
from apollo_cli.training.pretraining import Pretraining
from apollo_cli.training.session import Result
from apollo_cli.training.state import Checkpoint


def train(config: Config, run_dir: Path) -> Result:
    """Trains a new run in `run_dir`; with `plan=true` only plans it.

    Raises:
        ApolloError: something that the user can mend; nothing is written if training has not begun.
        Interrupted: a signal stopped it; `resume` goes on.
    """
    processes = join()
    _refuse_other_devices(config, processes)
    device, directory = choose(config.run, processes), RunDirectory(run_dir)
    with processes.group(config.distributed.timeout, device.device):
        if (
            processes.place
            and processes.place.restarts
            and processes.broadcast(processes.is_main and _is_begun(directory, config))
        ):
            return _resume(config, device, directory, cache_folder.path(config.data.cache_dir), {})
        return _start(config, device, directory)


def _is_begun(directory: RunDirectory, config: Config) -> bool:
    """Whether an earlier start of this run, not another one, left it there."""
    as_saved = yaml.safe_load(yaml.safe_dump(config.raw))
    return directory.is_claimed and directory.config() == as_saved


def _refuse_other_devices(config: Config, processes: ProcessGroup) -> None:
    asked = config.run.devices
    if processes.place and asked not in (None, processes.world_size):
        raise ConfigError([f"devices={asked}: {processes.world_size} processes were started already; leave it out"])


def _start(config: Config, device: Device, directory: RunDirectory) -> Result:
    processes, run_dir, cache = device.processes, directory.path, cache_folder.path(config.data.cache_dir)
    console = Console(speaks=processes.is_main)
    plan = make_plan(config, device)
    if config.data.inspect:
        return _inspect(config, plan, run_dir, cache, console)
    is_for_others = device.shared_by(config.run) > processes.world_size and not config.run.plan
    if not is_for_others:
        _show(plan, config, device, console)
    if not config.run.plan:
        check_fits_in_memory(plan, device)
    with _lock(directory, processes), interruptible():
        if config.run.plan or is_for_others:
            _claim(directory, config, plan, processes)
        if config.run.plan:
            console.say(f"plan written to {directory}; nothing was trained")
            return Result(run_dir, plan, {})
        if not is_for_others:
            with cache_folder.in_use(cache):  # before there is anything to resume
                _claim(directory, config, plan, processes)
                try:
                    corpus = prepare_corpus(config, cache, console, plan.steps, processes)
                except ApolloError:
                    if processes.is_main:
                        directory.unclaim()
                    raise
            return Pretraining(config, plan, device, corpus, directory, console).run(None)
    return _launch_processes(config, plan, directory, {})


def _claim(directory: RunDirectory, config: Config, plan: Plan, processes: ProcessGroup) -> None:
    if processes.is_main:
        directory.claim(config.raw, plan.as_dict())


@contextmanager
def _lock(directory: RunDirectory, processes: ProcessGroup) -> Iterator[None]:
    """The run directory, made if missing, by the process that writes into it."""
    if not processes.is_main:
        yield
        return
    with files.writing(directory.path, 0):
        directory.path.mkdir(parents=True, exist_ok=True)
    with directory.owned():
        yield


def _launch_processes(config: Config, plan: Plan, directory: RunDirectory, overrides: dict[str, Any]) -> Result:
    """Has `devices` processes go on with the run, with `overrides`.

    Raises:
        SaidError: they ended without having finished it, and said why.
    """
    from apollo_cli.training.distributed.launch import launch

    assert config.run.devices
    try:
        launch(resume_words(directory.path, overrides), config.run.devices)
    except SaidError as error:
        if error.code == EXIT_USER_ERROR and not directory.metrics_file.exists():
            directory.unclaim()  # it did not begin
        raise
    return Result(directory.path, plan, directory.summary().get("losses", {}))


def resume(run_dir: Path, overrides: dict[str, Any] | None = None) -> Result:
    """Goes on with the run in `run_dir` from its newest checkpoint, or from its start if it has none.

    Args:
        run_dir: of an interrupted run.
        overrides: keys and sections that replace saved ones; only such as cannot change the result.

    Raises:
        CheckpointError: not a run directory, in use, or its checkpoints are damaged.
    """
    processes, directory = join(), RunDirectory(run_dir)
    saved = json.loads(processes.broadcast_via_store("config", lambda: json.dumps(directory.config())))
    if processes.place:
        saved["devices"] = None  # they have been started
    config = with_overrides(saved, overrides or {})
    _refuse_other_devices(config, processes)
    if config.run.plan:
        raise CheckpointError(f"{directory}: only a plan was made there (plan=true), nothing to resume")
    cache = _cache_to_resume(config, directory, overrides or {})
    device = choose(config.run, processes)
    with processes.group(config.distributed.timeout, device.device):
        return _resume(config, device, directory, cache, overrides or {})


def _resume(
    config: Config, device: Device, directory: RunDirectory, cache: Path, overrides: dict[str, Any]
) -> Result:
    processes = device.processes
    console = Console(speaks=processes.is_main)
    with directory.owned() if processes.is_main else nullcontext(), interruptible():
        if _is_complete(directory, console):
            raise CheckpointError(f"{directory}: this run is complete, there is nothing to resume")
        checkpoint = None
        if processes.is_main:
            checkpoints = Checkpoints(directory.checkpoints, config.checkpoint.keep)
            checkpoint = checkpoints.load_newest(console.say, directory.metrics_bytes())
        checkpoint = processes.broadcast(checkpoint)
        plan = _restore_plan(config, device, directory, checkpoint, console)
        if device.shared_by(config.run) == processes.world_size:
            _show(plan, config, device, console)
            console.say(f"resuming {directory} at step {checkpoint.state.step if checkpoint else 0}")
            with cache_folder.in_use(cache):
                corpus = prepare_corpus(config, cache, console, plan.steps, processes)
            if checkpoint and checkpoint.state.data != corpus.content:
                raise CheckpointError(
                    f"{directory}: the corpus is not the one that this run began with (its fingerprint differs). "
                    "Restore the files, or begin a new run"
                )
            return Pretraining(config, plan, device, corpus, directory, console).run(checkpoint)
    return _launch_processes(config, plan, directory, overrides)


def with_overrides(raw: dict[str, Any], overrides: dict[str, Any]) -> Config:
    """The config of these plain values, but for `overrides`: keys, and sections of keys.

    Raises:
        ConfigError: it is not valid.
    """
    for key, value in overrides.items():
        saved = raw.get(key)
        raw[key] = saved | value if isinstance(saved, dict) and isinstance(value, dict) else value
    return parse(raw)


def _is_complete(directory: RunDirectory, console: Console) -> bool:
    try:
        return directory.summary().get("status") == "completed"
    except CheckpointError as error:  # the end of the run writes it in any case
        console.say(f"{error}; it will be written anew")
        return False


def _restore_plan(
    config: Config, device: Device, directory: RunDirectory, checkpoint: Checkpoint | None, console: Console
) -> Plan:
    """The plan that the run began with; plan.json is written anew if it is lost.

    Raises:
        CheckpointError: it is lost and nothing else has the length of this run.
    """
    of_checkpoint = checkpoint.state.planned_steps if checkpoint else 0
    steps, problem = device.processes.broadcast(_planned_steps(directory, of_checkpoint))
    if problem and checkpoint and not steps and config.budget.seconds is not None:
        raise CheckpointError(
            f"{problem}. Nothing else has the length of this run, for its budget is in seconds: restore the file "
            "from a copy, or begin a new run"
        )
    plan = make_plan(config, device, steps=steps or None)
    if problem and device.processes.is_main:
        console.say(f"{problem}; it is written anew")
        with files.writing(directory.plan_file, 100_000):
            files.write_json(directory.plan_file, plan.as_dict())
    return plan


def _planned_steps(directory: RunDirectory, of_checkpoint: int) -> tuple[int, str]:
    """The length of the run, 0 where nothing has it, and what is wrong with plan.json."""
    try:
        planned = directory.planned_steps()
    except CheckpointError as error:
        return of_checkpoint, str(error)
    return of_checkpoint or planned, ""


def _show(plan: Plan, config: Config, device: Device, console: Console) -> None:
    console.show(plan_table(plan, estimated=config.budget.seconds is not None))
    console.say(plan_totals(plan))
    console.say(device.sentence(config.run))


def _cache_to_resume(config: Config, directory: RunDirectory, overrides: dict[str, Any]) -> Path:
    """The cache folder of a run that goes on; its config.yaml may be a stranger's.

    Raises:
        ConfigError: that alone names a folder which is no cache.
    """
    named = config.data.cache_dir
    typed = "cache_dir" in overrides.get("data", {})
    if named and not typed and (problems := cache_folder.problems(named)):
        raise ConfigError([f"{directory.config_file}: {problem}, beside resume=" for problem in problems])
    return cache_folder.path(named)


def _inspect(config: Config, plan: Plan, run_dir: Path, cache: Path, console: Console) -> Result:
    """Shows the corpus instead of training on it; nothing of the run is written."""
    with interruptible(), cache_folder.in_use(cache):
        corpus = prepare_corpus(config, cache, console, plan.steps)
    for table in inspection(corpus, training_batches(config, corpus)):
        console.show(table)
    console.say(f"fingerprint {corpus.fingerprint}")
    console.say(f"packed rows in {corpus.folder} (it may be deleted, and is packed again when it is needed)")
    return Result(run_dir, plan, {})
