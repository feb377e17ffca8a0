"""What can be done with a run: inspect its data, plan it, launch its processes, train it, resume it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apollo_cli import files
from apollo_cli.config.config import Config, parse
from apollo_cli.config.data import is_streamed
from apollo_cli.config.hydra_syntax import pasted, resume_words
from apollo_cli.data import cache_folder
from apollo_cli.data.corpus import Corpus
from apollo_cli.data.inspect import inspection
from apollo_cli.errors import EXIT_USER_ERROR, ApolloError, CheckpointError, ConfigError, ReportedError
from apollo_cli.growth.plan import Plan
from apollo_cli.models.model_config import TITLES
from apollo_cli.run_directory import RunDirectory, as_saved
from apollo_cli.signals import interruptible
from apollo_cli.tracking.console import Console, duration, plan_bounds, plan_segment, plan_table, plan_totals
from apollo_cli.tracking.wandb import check_variables
from apollo_cli.training.calibration import estimated_duration
from apollo_cli.training.checkpoint import Checkpoints
from apollo_cli.training.corpora import check_files, prepare_corpus, training_batches
from apollo_cli.training.device import Device, choose, emulates_bf16
from apollo_cli.training.distributed.group import ProcessGroup, connect
from apollo_cli.training.extension import extended, record_extension
from apollo_cli.training.init_from.source import check_corpus, find_source, first_sample
from apollo_cli.training.memory import check_fits_in_memory
from apollo_cli.training.planning import make_plan, recorded_source
from apollo_cli.training.pretraining import Pretraining
from apollo_cli.training.session import Result
from apollo_cli.training.state import Checkpoint


def train(config: Config, run_dir: Path) -> Result:
    """Trains a new run in `run_dir`, or does what the config asks for instead.

    Raises:
        ApolloError: the user can correct it; nothing stays in `run_dir` if training has not begun.
        Interrupted: a signal stopped it; it can be resumed.
    """
    check_variables(config.tracking)
    processes, directory = connect(), RunDirectory(run_dir)
    device, console = choose(config.run, processes), Console(quiet=not processes.is_main)
    if not config.run.plan:
        config = config.in_precision(device.precision)  # a resume elsewhere keeps it
    with processes.initialized(config.distributed.timeout, device.device):
        if processes.env is not None and processes.env.restarts > 0:
            holds_it = processes.is_main and directory.is_claimed and directory.config() == as_saved(config.raw)
            if processes.broadcast(holds_it):
                return _resume(config, device, directory, console, {})
        if config.data.inspect:
            return inspect(config, device, directory, console)
        if config.run.plan:
            return plan(config, device, directory, console)
        if device.needs_launch(config.run):
            return launch(config, device, directory)
        if processes.is_main:  # before the plan is shown; what is missing elsewhere is said where it is read
            check_files(config)
        run_plan = make_plan(config, device)
        _show(run_plan, config, device, console)
        check_fits_in_memory(run_plan, device)
        with _locked(directory, processes), interruptible():
            with _claimed(directory, config, run_plan, processes):
                corpus = _corpus_of_new_run(config, run_plan, console, processes)
            _show_corpus(corpus, run_plan, config, console)
            return Pretraining(config, run_plan, device, corpus, directory, console).run(None)


def _corpus_of_new_run(config: Config, run_plan: Plan, console: Console, processes: ProcessGroup) -> Corpus:
    """The corpus of a run that begins; a CheckpointError if its source was trained on other tokens."""
    cache, first = cache_folder.path(config.data.cache_dir), first_sample(config)
    corpus = prepare_corpus(config, cache, console, run_plan.steps, processes, first)
    if source := find_source(config):
        check_corpus(source, corpus, config)
    return corpus


def inspect(config: Config, device: Device, directory: RunDirectory, console: Console) -> Result:
    """Shows the corpus instead of training on it; writes nothing into the run directory."""
    run_plan = make_plan(config, device)
    with interruptible():
        corpus = _corpus_of_new_run(config, run_plan, console, device.processes)
    for table in inspection(corpus, training_batches(config, corpus, first_sample(config))):
        console.show(table)
    console.say(f"fingerprint {corpus.fingerprint}")
    console.say(f"packed rows in {corpus.folder} (it may be deleted, and is packed again when it is needed)")
    return Result(directory.path, run_plan, {})


def plan(config: Config, device: Device, directory: RunDirectory, console: Console) -> Result:
    """Shows the plan, and writes it into the run directory."""
    check_files(config)
    run_plan = make_plan(config, device)
    _show(run_plan, config, device, console)
    dearest = max(run_plan, run_plan.earliest or run_plan, key=lambda each: each.flops)
    seconds, source = estimated_duration(dearest, config, device)
    most = "at most " if run_plan.may_end_early or run_plan.earliest else ""
    console.say(f"training takes {most}about {duration(seconds)} (h:mm:ss): {source}", in_words=True)
    with _locked(directory, device.processes), interruptible():
        directory.claim(config.raw, run_plan.as_dict() | {"estimated_seconds": seconds})
        console.say(f"plan written to {directory}; nothing was trained")
    return Result(directory.path, run_plan, {})


def launch(config: Config, device: Device, directory: RunDirectory) -> Result:
    """Starts `devices` processes that train a new run; a ReportedError if they ended early and have printed why."""
    run_plan = make_plan(config, device)
    check_fits_in_memory(run_plan, device)
    processes = device.processes
    with _locked(directory, processes), interruptible(), _claimed(directory, config, run_plan, processes):
        pass
    cache_dir = {"cache_dir": config.data.cache_dir} if config.data.cache_dir else {}  # as if typed there
    return _launch(config, run_plan, directory, {"data": cache_dir})


def resume(run_dir: Path, overrides: dict[str, Any] | None = None) -> Result:
    """Continues the run in `run_dir` from its newest checkpoint, or from its start if it has none.

    Args:
        run_dir: of an interrupted run, or of any that is to be longer.
        overrides: keys and sections that replace saved ones; only such as cannot change the result, and a longer
            `budget`.

    Raises:
        CheckpointError: it is not a run directory, it is in use, its checkpoints are damaged, or this device only
            emulates its precision.
    """
    processes, directory = connect(), RunDirectory(run_dir)
    saved = json.loads(processes.broadcast_via_store("config", lambda: json.dumps(directory.config())))
    if processes.env:
        saved["devices"] = None  # their processes run already
    for key, value in (overrides or {}).items():
        if key == "budget":  # an extension, which `_resume` makes where it is one
            continue
        section = saved.get(key)
        saved[key] = section | value if isinstance(section, dict) and isinstance(value, dict) else value
    config = parse(saved)
    check_variables(config.tracking)
    if config.run.plan:
        raise CheckpointError(f"{directory}: only a plan was made there (plan=true), nothing to resume")
    _check_cache_dir(config, directory, overrides or {})
    device, console = choose(config.run, processes), Console(quiet=not processes.is_main)
    is_launched = processes.env is not None  # by `train`, which emulates what is typed
    if config.run.precision == "bf16" and emulates_bf16(device.device) and not is_launched:
        raise CheckpointError(
            f"{directory}: it has precision=bf16, which {device.name} only emulates, hundreds of times slower; "
            "resume it on a GPU or a CPU that has bf16, or begin another with precision=fp32"
        )
    with processes.initialized(config.distributed.timeout, device.device):
        return _resume(config, device, directory, console, overrides or {})


def _resume(
    config: Config, device: Device, directory: RunDirectory, console: Console, overrides: dict[str, Any]
) -> Result:
    processes, cache = device.processes, cache_folder.path(config.data.cache_dir)
    typed = overrides.get("budget", {})
    longer = {} if typed == config.budget.lengths else typed  # the same command continues an extended run
    with _locked(directory, processes), interruptible():
        checkpoint = processes.broadcast(_load(directory, config, longer, console) if processes.is_main else None)
        run_plan = _restore_plan(config, device, directory, checkpoint, console)
        if longer:
            config, run_plan = extended(config, longer, run_plan, device, directory, checkpoint)
        if not device.needs_launch(config.run):
            _show(run_plan, config, device, console)
            console.say(f"resuming {directory} at step {checkpoint.state.step if checkpoint else 0}")
            if checkpoint is None:
                corpus = _corpus_of_new_run(config, run_plan, console, processes)
            else:
                first = checkpoint.state.first_sample
                corpus = prepare_corpus(config, cache, console, run_plan.steps, processes, first)
                if checkpoint.state.data != corpus.content:
                    raise CheckpointError(
                        f"{directory}: the corpus is not the one that this run began with (its fingerprint "
                        "differs). Restore the files, or begin a new run"
                    )
            if longer and processes.is_main:  # now that nothing refuses it
                record_extension(config, run_plan, directory)
            return Pretraining(config, run_plan, device, corpus, directory, console).run(checkpoint)
    return _launch(config, run_plan, directory, overrides)


def _launch(config: Config, run_plan: Plan, directory: RunDirectory, overrides: dict[str, Any]) -> Result:
    from apollo_cli.training.distributed.launch import launch_processes

    assert config.run.devices
    try:
        launch_processes(resume_words(directory.path, overrides), config.run.devices)
    except ReportedError as error:
        if error.code == EXIT_USER_ERROR and not directory.metrics_file.exists():
            directory.unclaim()  # it did not begin
        raise
    return Result(directory.path, run_plan, directory.summary().get("losses", {}))


@contextmanager
def _locked(directory: RunDirectory, processes: ProcessGroup) -> Iterator[None]:
    """Makes the run directory if it is missing, and locks it for the process that writes there."""
    if not processes.is_main:
        yield
        return
    with files.writing(directory.path, 0):
        directory.path.mkdir(parents=True, exist_ok=True)
    with directory.owned():
        yield


@contextmanager
def _claimed(directory: RunDirectory, config: Config, run_plan: Plan, processes: ProcessGroup) -> Iterator[None]:
    """Writes config and plan of a new run; a refusal within leaves nothing of them and of a new cache folder."""
    if not processes.is_main:
        yield
        return
    with cache_folder.made_for_run(config.data.cache_dir):
        directory.claim(config.raw, run_plan.as_dict())
        try:
            yield
        except ApolloError:
            directory.unclaim()
            raise


def _show(run_plan: Plan, config: Config, device: Device, console: Console) -> None:
    model = config.model_config
    console.say(
        f"{TITLES[model.kind]}: {files.counted(model.layers, 'layer')} of width {model.hidden}, "
        f"{files.counted(model.heads, 'head')}, feed-forward {model.ffn}, rows of {model.positions} tokens, "
        f"vocabulary {model.vocabulary:,}, {run_plan.step_cost.parameters(model.layers):,} parameters",
        in_words=True,
    )
    console.show(plan_table(run_plan, estimated=config.budget.seconds is not None))
    console.say(plan_totals(run_plan), in_words=True)
    if run_plan.earliest is not None and run_plan.earliest.schedule != run_plan.schedule:
        console.say(plan_bounds(run_plan.earliest), in_words=True)
    if run_plan.schedule.extended_from:
        console.say(plan_segment(run_plan), in_words=True)
    console.say(device.sentence(config.run), in_words=True)


def _show_corpus(corpus: Corpus, run_plan: Plan, config: Config, console: Console) -> None:
    documents, rows = sum(corpus.packed.documents.values()), len(corpus.training)
    epochs = run_plan.steps * config.batch.size / rows
    times = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
    console.say(
        f"corpus: {documents:,} documents, {corpus.packed.tokens:,} tokens; the budget reads its {rows:,} training "
        f"rows {times} times",
        in_words=True,
    )


def _load(directory: RunDirectory, config: Config, longer: dict[str, Any], console: Console) -> Checkpoint | None:
    """The checkpoint that a run continues from; a CheckpointError if none can be used, or the run is complete."""
    try:
        summary = directory.summary()
    except CheckpointError as error:  # the end of the run writes it in any case
        console.say(f"{error}; it will be written anew")
        summary = {}
    is_complete = summary.get("status") == "completed"
    way = f"a new run begins with its weights if you type {pasted('init_from.path', str(directory))}"
    if is_complete and not longer:
        may_go_on = config.optim.schedule == "constant" and not is_streamed(config.data)
        if may_go_on and summary.get("ended_by", "budget") == "budget":
            way = f"budget.steps=N beside it, with a larger N than it had, makes it longer; {way}"
        raise CheckpointError(f"{directory}: this run is complete, there is nothing to resume; {way}")
    if is_complete and (ended_by := summary.get("ended_by", "budget")) != "budget":
        raise CheckpointError(f"{directory}: this run was ended by budget.{ended_by}, not by its length; {way}")
    checkpoints = Checkpoints(directory.checkpoints, config.checkpoint.keep)
    found = checkpoints.load_newest(console.say, directory.metrics_bytes())
    if is_complete and not found:
        raise CheckpointError(
            f"{directory}: this run is complete and its checkpoints are gone, so it cannot go on; {way}"
        )
    return found


def _restore_plan(
    config: Config, device: Device, directory: RunDirectory, checkpoint: Checkpoint | None, console: Console
) -> Plan:
    """The plan that the run began with, or was extended to; writes plan.json again if it is damaged or older."""
    earlier = (0, *config.budget.extended_from)[-1]
    steps, problem, planned = checkpoint.state.planned_steps if checkpoint else 0, "", dict[str, Any]()
    if device.processes.is_main:
        try:
            length, planned = directory.planned_steps(), directory.plan()
            if length <= earlier:
                problem = f"{directory.plan_file} is from before the run was extended"
            if steps <= earlier:
                steps = length
        except CheckpointError as error:
            problem = str(error)
    recorded = recorded_source(planned) if checkpoint else None
    steps, recorded, problem = device.processes.broadcast((steps, recorded, problem))
    ended = checkpoint.state.stage_ends if checkpoint else ()
    run_plan = make_plan(config, device, steps if steps > earlier else None, recorded, ended)
    if problem and device.processes.is_main:
        console.say(f"{problem}; it is written anew")
        with files.writing(directory.plan_file, 100_000):
            files.write_json(directory.plan_file, run_plan.as_dict())
    return run_plan


def _check_cache_dir(config: Config, directory: RunDirectory, overrides: dict[str, Any]) -> None:
    """Raises a ConfigError if config.yaml, perhaps another person's, alone names a folder that is no cache."""
    named = config.data.cache_dir
    is_typed = "cache_dir" in overrides.get("data", {})
    if named and not is_typed and (problems := cache_folder.cache_folder_problems(named)):
        raise ConfigError(*(f"{directory.config_file}: {problem}, beside resume=" for problem in problems))
