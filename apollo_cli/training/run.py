"""One run from a config to an exported model: plan, data, model, loop, export, summary."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from apollo_cli import files
from apollo_cli.config import Config, parse
from apollo_cli.data import cache_folder, sources
from apollo_cli.data.batches import EvaluationBatches, TrainingBatches
from apollo_cli.data.hub import Hub
from apollo_cli.data.inspection import inspection
from apollo_cli.data.mixture import Mixture as MixtureOfSources
from apollo_cli.data.packing import Corpus, prepare
from apollo_cli.data.prefetch import Prefetch
from apollo_cli.data.recipe import Bound, Recipe
from apollo_cli.data.section import Mixture, OfHub, OfPyDocs, OfText
from apollo_cli.data.tokenizer import save_companions, special_ids
from apollo_cli.errors import ApolloError, CheckpointError, ConfigError, SaidError
from apollo_cli.growth.plan import Plan
from apollo_cli.models.build import build
from apollo_cli.models.hf import load_model, save_model
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.outcome import MENDABLE
from apollo_cli.overrides import resume_words
from apollo_cli.run_directory import FORMAT, RunDirectory
from apollo_cli.tracking.console import Console, plan_table, plan_totals, summary_table
from apollo_cli.tracking.metrics_file import MetricsFile
from apollo_cli.tracking.tracker import Silence, Tracker
from apollo_cli.tracking.wandb import FACTS, identify, open_mirror
from apollo_cli.training.checkpoint import Checkpoint, Checkpoints, Progress
from apollo_cli.training.device import Device, choose
from apollo_cli.training.distributed import ALONE, Ranks, join
from apollo_cli.training.interrupt import interruptible
from apollo_cli.training.loop import Loop
from apollo_cli.training.memory import refuse_what_cannot_fit
from apollo_cli.training.optimizer import build_optimizer
from apollo_cli.training.placement import Copies, Placement
from apollo_cli.training.planning import make_plan, make_task
from apollo_cli.training.session import Result, Session
from apollo_cli.training.source import check_tokenizer, find
from apollo_cli.training.summary import data_facts, summarize
from apollo_cli.training.transfer import Transfer


def train(config: Config, run_dir: Path) -> Result:
    """Trains a new run in `run_dir`; with `plan=true` only plans it.

    Raises:
        ApolloError: something that the user can mend; nothing is written if training has not begun.
        Interrupted: a signal stopped it; `resume` goes on.
    """
    ranks = join()
    _refuse_other_devices(config, ranks)
    device, directory = choose(config.run, ranks), RunDirectory(run_dir)
    with ranks.group(config.distributed.timeout, device.device):
        if ranks.place and ranks.place.restarts and ranks.of_first(ranks.is_first and _is_begun(directory, config)):
            return _go_on(config, device, directory, cache_folder.path(config.data.cache_dir), {})
        return _begin(config, device, directory)


def _is_begun(directory: RunDirectory, config: Config) -> bool:
    """Whether an earlier start of this run, not another one, left it there."""
    as_saved = yaml.safe_load(yaml.safe_dump(config.raw))
    return directory.is_claimed and directory.config() == as_saved


def _refuse_other_devices(config: Config, ranks: Ranks) -> None:
    asked = config.run.devices
    if ranks.place and asked not in (None, ranks.size):
        raise ConfigError([f"devices={asked}: {ranks.size} processes were started already; leave it out"])


def _begin(config: Config, device: Device, directory: RunDirectory) -> Result:
    ranks, run_dir, cache = device.ranks, directory.path, cache_folder.path(config.data.cache_dir)
    console = Console(speaks=ranks.is_first)
    plan = make_plan(config, device)
    if config.data.inspect:
        return _inspect(config, plan, run_dir, cache, console)
    is_for_others = device.shared_by(config.run) > ranks.size and not config.run.plan
    if not is_for_others:
        _show(plan, config, device, console)
    if not config.run.plan:
        refuse_what_cannot_fit(plan, device)
    with _held(directory, ranks), interruptible():
        if config.run.plan or is_for_others:
            _claim(directory, config, plan, ranks)
        if config.run.plan:
            console.say(f"plan written to {directory}; nothing was trained")
            return Result(run_dir, plan, {})
        if not is_for_others:
            with cache_folder.in_use(cache):  # before there is anything to resume
                _claim(directory, config, plan, ranks)
                try:
                    corpus = prepare_corpus(config, cache, console, plan.steps, ranks)
                except ApolloError:
                    if ranks.is_first:
                        directory.disown()
                    raise
            return Pretraining(config, plan, device, corpus, directory, console).run(None)
    return _by_others(config, plan, directory, {})


def _claim(directory: RunDirectory, config: Config, plan: Plan, ranks: Ranks) -> None:
    if ranks.is_first:
        directory.claim(config.raw, plan.as_dict())


@contextmanager
def _held(directory: RunDirectory, ranks: Ranks) -> Iterator[None]:
    """The run directory, made if missing, by the process that writes into it."""
    if not ranks.is_first:
        yield
        return
    with files.writing(directory.path, 0):
        directory.path.mkdir(parents=True, exist_ok=True)
    with directory.owned():
        yield


def _by_others(config: Config, plan: Plan, directory: RunDirectory, overrides: dict[str, Any]) -> Result:
    """Has `devices` processes go on with the run, with `overrides`.

    Raises:
        SaidError: they ended without having finished it, and said why.
    """
    from apollo_cli.training.launch import launch

    assert config.run.devices
    try:
        launch(resume_words(directory.path, overrides), config.run.devices)
    except SaidError as error:
        if error.code == MENDABLE and not directory.metrics_file.exists():
            directory.disown()  # it did not begin
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
    ranks, directory = join(), RunDirectory(run_dir)
    saved = json.loads(ranks.agreed("config", lambda: json.dumps(directory.config())))
    if ranks.place:
        saved["devices"] = None  # they have been started
    config = with_overrides(saved, overrides or {})
    _refuse_other_devices(config, ranks)
    if config.run.plan:
        raise CheckpointError(f"{directory}: only a plan was made there (plan=true), nothing to resume")
    cache = _cache_to_resume(config, directory, overrides or {})
    device = choose(config.run, ranks)
    with ranks.group(config.distributed.timeout, device.device):
        return _go_on(config, device, directory, cache, overrides or {})


def _go_on(
    config: Config, device: Device, directory: RunDirectory, cache: Path, overrides: dict[str, Any]
) -> Result:
    ranks = device.ranks
    console = Console(speaks=ranks.is_first)
    with directory.owned() if ranks.is_first else nullcontext(), interruptible():
        if _is_complete(directory, console):
            raise CheckpointError(f"{directory}: this run is complete, there is nothing to resume")
        checkpoint = None
        if ranks.is_first:
            checkpoints = Checkpoints(directory.checkpoints, config.checkpoint.keep)
            checkpoint = checkpoints.load_newest(console.say, directory.metrics_bytes())
        checkpoint = ranks.of_first(checkpoint)
        plan = _plan_again(config, device, directory, checkpoint, console)
        if device.shared_by(config.run) == ranks.size:
            _show(plan, config, device, console)
            console.say(f"resuming {directory} at step {checkpoint.progress.step if checkpoint else 0}")
            with cache_folder.in_use(cache):
                corpus = prepare_corpus(config, cache, console, plan.steps, ranks)
            if checkpoint and checkpoint.progress.data != corpus.content:
                raise CheckpointError(
                    f"{directory}: the corpus is not the one that this run began with (its fingerprint differs). "
                    "Restore the files, or begin a new run"
                )
            return Pretraining(config, plan, device, corpus, directory, console).run(checkpoint)
    return _by_others(config, plan, directory, overrides)


def load_config(directory: RunDirectory, overrides: dict[str, Any]) -> Config:
    """The config of a run directory, with `overrides` in it.

    Raises:
        CheckpointError: there is none.
        ConfigError: what is there is no valid config.
    """
    return with_overrides(directory.config(), overrides)


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


def _plan_again(
    config: Config, device: Device, directory: RunDirectory, checkpoint: Checkpoint | None, console: Console
) -> Plan:
    """The plan that the run began with; plan.json is written anew if it is lost.

    Raises:
        CheckpointError: it is lost and nothing else has the length of this run.
    """
    of_checkpoint = checkpoint.progress.planned_steps if checkpoint else 0
    steps, problem = device.ranks.of_first(_planned_steps(directory, of_checkpoint))
    if problem and checkpoint and not steps and config.budget.seconds is not None:
        raise CheckpointError(
            f"{problem}. Nothing else has the length of this run, for its budget is in seconds: restore the file "
            "from a copy, or begin a new run"
        )
    plan = make_plan(config, device, steps=steps or None)
    if problem and device.ranks.is_first:
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


class Pretraining(Session):
    """A session that trains a language model on a corpus."""

    def __init__(
        self, config: Config, plan: Plan, device: Device, corpus: Corpus, directory: RunDirectory, console: Console
    ) -> None:
        super().__init__(plan, device, directory, console)
        self.config, self.corpus = config, corpus

    @property
    def data(self) -> str:
        """The fingerprint of the corpus."""
        return self.corpus.content

    def summary(self, status: str, progress: Progress) -> dict[str, Any]:
        """summary.json."""
        return summarize(
            config=self.config,
            plan=self.plan,
            device=self.device,
            corpus=self.corpus,
            run_dir=self.directory.path,
            status=status,
            progress=progress,
        )

    def present(self, summary: dict[str, Any]) -> None:
        """The closing summary on the screen."""
        self.console.show(summary_table(summary))

    def finish(self, loop: Loop) -> None:
        """Exports the model."""
        model = loop.placement.whole()
        if self.device.ranks.is_first:
            self._export(model)

    def tracker(self, progress: Progress) -> Tracker:
        """Rows go to metrics.jsonl, the console and, if it is asked for, W&B."""
        config = self.config
        if not self.device.ranks.is_first:
            return Silence()
        metrics = MetricsFile(self.directory.metrics_file, progress.metrics_bytes)
        tags = (config.model.kind, config.sampler.kind, config.expander.kind)
        identity = identify(self.directory.path, config.run.name, tags, progress.run_id)
        facts = {"data": data_facts(config, self.corpus), "plan": self.plan.as_dict()}
        shown = {"format": FORMAT, **config.raw, FACTS: facts}
        mirror = open_mirror(
            config.tracking, identity, shown, self.directory.path, metrics.dropped_rows, self.console.say
        )
        return Tracker(metrics, self.console, [mirror] if mirror else [])

    def loop(self, checkpoint: Checkpoint | None, progress: Progress, tracker: Tracker) -> Loop:
        """The moving parts, new or as the checkpoint has them.

        Raises:
            CheckpointError: it is of another plan or another model.
        """
        config, device, seed = self.config, self.device, self.config.run.seed
        torch.manual_seed(seed)
        stages = self.plan.schedule.stages
        first = checkpoint or stages[0]
        layers, width = first.layers, first.width
        if (layers, width) not in ((s.layers, s.width) for s in stages) or progress.step > self.plan.steps:
            share = f" of {width:g} of the width" if width != 1 else ""
            raise CheckpointError(
                f"{self.directory}: the checkpoint (step {progress.step}, {layers} layers{share}) is of another "
                "plan"
            )
        batches = training_batches(config, self.corpus, device.ranks)
        whole = training_batches(config, self.corpus)
        transfer = Transfer(self.plan, device, whole, progress, self.console.say)
        placement = self._placed(layers, width, None if checkpoint else transfer)
        optimizer = build_optimizer(placement.model, config.optim)
        if checkpoint:
            self.restore(checkpoint if placement.in_shards else checkpoint.read(), placement, optimizer)
        task = make_task(config, self.corpus.tokenizer)
        batch, rows = config.batch, self.corpus.evaluation(config.eval.rows)
        return Loop(
            config=config,
            plan=self.plan,
            device=device,
            placement=placement,
            optimizer=optimizer,
            training=Prefetch(batches, device.device),
            validation=EvaluationBatches(rows, task, batch.micro_size, device.ranks.rank, device.ranks.size),
            tracker=tracker,
            checkpoints=Checkpoints(self.directory.checkpoints, config.checkpoint.keep, device.ranks),
            refused_steps=self.directory.refused_steps,
            progress=progress,
            width=width,
            transfer=transfer,
        )

    def _placed(self, layers: int, width: float, transfer: Transfer | None) -> Placement:
        """The model on its devices, with the weights that it begins with; None where a checkpoint has them."""
        config, device = self.config, self.device
        if device.ranks.place and config.distributed.kind == "fsdp":
            from apollo_cli.training.shards import Shards

            placement = Shards(config.shape.narrowed(width), layers, device)
            if transfer:
                on_cpu = torch.device("cpu")
                placement.take(self._new_model(layers, width, on_cpu, transfer) if device.ranks.is_first else None)
            return placement
        model = self._new_model(layers, width, device.device, transfer)
        if device.ranks.place:
            return Copies(model, device.compiles, self.plan.trains_all)
        return Placement(model, device.compiles)

    def _new_model(
        self, layers: int, width: float, device: torch.device, transfer: Transfer | None
    ) -> LanguageModel:
        """With the weights that it begins with."""
        model = build(self.config.shape.narrowed(width), layers).to(device)
        if transfer:
            self._begin_from_source(model, transfer)
        return model

    def _begin_from_source(self, model: LanguageModel, transfer: Transfer) -> None:
        """Gives a new model the weights of the source, if there is one, grown to its size."""
        source = find(self.config)
        if source is None:
            return
        check_tokenizer(source, self.corpus.tokenizer)
        transfer.fill(model, load_model(source.folder), 0, before_step=lambda: None)
        self.console.say(f"begun from {files.shown(source.folder)}")

    def _export(self, model: LanguageModel) -> None:
        """Writes `model/` in transformers' format, whole or not at all."""
        kind, tokenizer = self.config.model.kind, self.corpus.tokenizer
        special = special_ids(kind, tokenizer)
        if kind == "bert":
            ids = {"pad_token_id": special["pad"]}
        else:
            ids = {"bos_token_id": special["eos"], "eos_token_id": special["eos"]}
        final = self.directory.model
        temporary = final.with_name(".model.tmp")
        size = sum(t.nbytes for t in model.state_dict().values())
        try:
            with files.writing(final, size):
                files.remove(temporary)
                temporary.mkdir()
                save_model(model, temporary, ids)
                save_companions(kind, tokenizer, self.config.data.seq_len, temporary)
                for file in temporary.iterdir():
                    files.sync_file(file)
                files.remove(final)
                temporary.rename(final)
                files.sync_folder(self.directory.path)
        except SafetensorError as error:  # how that library says that the disk is full
            raise files.unwritable(final, size, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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


def training_batches(config: Config, corpus: Corpus, ranks: Ranks = ALONE) -> TrainingBatches:
    """The micro-batches of a run on this corpus, or what this process has of them."""
    batch, task, seed = config.batch, make_task(config, corpus.tokenizer), config.run.seed
    return TrainingBatches(
        corpus.training, task, seed, batch.size, batch.micro_size, corpus.order, ranks.rank, ranks.size
    )


def prepare_corpus(config: Config, cache: Path, console: Console, steps: int, ranks: Ranks = ALONE) -> Corpus:
    """The packed corpus of a config, from the folder of all packed corpora or built there now.

    Of a source without an end, as much as so many steps need. Of several processes of a machine one builds.
    """
    data, source = config.data, _source(config)
    recipe = Recipe(
        kind=config.model.kind,
        tokenizer=data.tokenizer,
        vocabulary=data.vocab_size,
        seq_len=data.seq_len,
        validation=data.validation,
        validation_seed=data.validation_seed,
        bound=Bound(steps * config.batch.size, config.eval.rows) if source.is_endless else None,
    )
    with ranks.first_of_machine_first("corpus"):
        corpus = prepare(source, recipe, cache, console.say, console.progress)
    if len(corpus.validation) < config.eval.rows:
        console.say(
            f"note: {len(corpus.validation)} rows are held out, eval.rows={config.eval.rows} asks for more; all "
            "are used (data.validation holds out more)"
        )
    return corpus


def _source(config: Config) -> sources.Source:
    data = config.data
    if isinstance(data, Mixture):
        return MixtureOfSources(
            tuple(sources.Part(_plain_source(source), source.weight) for source in data.sources)
        )
    assert isinstance(data, OfPyDocs | OfText | OfHub)
    return _plain_source(data)


def _plain_source(of: OfPyDocs | OfText | OfHub) -> sources.Source:
    if isinstance(of, OfText):
        return sources.TextFiles(of.files, of.document, of.text_field, of.errors, of.validation_files)
    if isinstance(of, OfHub):
        return Hub(of.path, of.name, of.split, of.streaming, of.text_field, of.validation_split)
    return sources.PyDocs()
