"""One run from a config to an exported model: plan, data, model, loop, export, summary."""

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import platformdirs
import torch
import yaml

from apollo_cli import files
from apollo_cli.config import Config, Hub, PyDocs, Text, parse
from apollo_cli.data import sources
from apollo_cli.data.batches import EvaluationBatches, TrainingBatches
from apollo_cli.data.packing import Corpus, Recipe, prepare
from apollo_cli.data.tokenizer import save_companions, special_ids
from apollo_cli.errors import CheckpointError, ConfigError
from apollo_cli.growth.plan import Plan
from apollo_cli.models.build import build
from apollo_cli.models.hf import save_model
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.tracking.console import Console, plan_table, plan_totals, summary_table
from apollo_cli.tracking.metrics_file import MetricsFile
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.tracking.wandb import identify, open_mirror
from apollo_cli.training.checkpoint import Checkpoint, Checkpoints, Progress, restore_random_state
from apollo_cli.training.device import Device, choose
from apollo_cli.training.interrupt import Interrupted, StopRequest
from apollo_cli.training.loop import Loop
from apollo_cli.training.optimizer import build_optimizer, restore_state
from apollo_cli.training.planning import make_plan, make_task
from apollo_cli.training.summary import summarize


@dataclass(frozen=True)
class Result:
    """What a finished run leaves. `losses` has the last `train/loss` and `eval/...`."""

    run_dir: Path
    plan: Plan
    losses: dict[str, float]


def train(config: Config, run_dir: Path) -> Result:
    """Trains a new run in `run_dir`; with `plan=true` only plans it.

    Raises:
        ApolloError: something that the user can mend; nothing is written if training has not begun.
        Interrupted: a signal stopped it; `resume` goes on.
    """
    console = Console()
    device = choose(config.run)
    plan = make_plan(config, device)
    _show(plan, config, console)
    if taken := [name for name in ("config.yaml", "plan.json", "metrics.jsonl") if (run_dir / name).exists()]:
        problem = f"{run_dir} has a {taken[0]} already: choose another directory"
        raise ConfigError([f"{problem}, or type resume={run_dir} if it was interrupted"])
    corpus = None if config.run.plan else _prepare_corpus(config, console)
    run_dir.mkdir(parents=True, exist_ok=True)
    files.write_text(run_dir / "config.yaml", yaml.safe_dump(config.raw, sort_keys=False))
    files.write_json(run_dir / "plan.json", plan.as_dict())
    if corpus is None:
        console.say(f"plan written to {files.shown(run_dir)}; nothing was trained")
        return Result(run_dir, plan, {})
    return _Session(config, plan, device, corpus, run_dir, console).run(None)


def resume(run_dir: Path, overrides: dict[str, Any] | None = None) -> Result:
    """Goes on with the run in `run_dir` from its newest checkpoint, or from its start if it has none.

    Args:
        run_dir: of an interrupted run.
        overrides: sections that replace saved ones; only such as cannot change the result.

    Raises:
        CheckpointError: not a run directory, or its checkpoints are damaged.
    """
    console = Console()
    config = load_config(run_dir, overrides or {})
    if config.run.plan:
        raise CheckpointError(f"{run_dir}: only a plan was made there (plan=true), nothing to resume")
    if (run_dir / "summary.json").exists() and _read(run_dir / "summary.json").get("status") == "completed":
        raise CheckpointError(f"{run_dir}: this run is complete, there is nothing to resume")
    device = choose(config.run)
    plan = make_plan(config, device, steps=_read(run_dir / "plan.json").get("steps"))
    checkpoint = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep).load_newest(console.say)
    _show(plan, config, console)
    console.say(f"resuming {run_dir} at step {checkpoint.progress.step if checkpoint else 0}")
    corpus = _prepare_corpus(config, console)
    if checkpoint and checkpoint.progress.data != corpus.fingerprint:
        raise CheckpointError(
            f"{run_dir}: the corpus is not the one that this run began with (its fingerprint differs). Restore the "
            "files, or begin a new run"
        )
    return _Session(config, plan, device, corpus, run_dir, console).run(checkpoint)


def load_config(run_dir: Path, overrides: dict[str, Any]) -> Config:
    """The config of a run directory.

    Raises:
        CheckpointError: there is none.
    """
    path = run_dir / "config.yaml"
    if not path.is_file() or not (run_dir / "plan.json").is_file():
        raise CheckpointError(f"resume={run_dir}: not a run directory (no config.yaml and plan.json in it)")
    raw = _read(path)
    return parse(raw | {name: raw.get(name, {}) | values for name, values in overrides.items()})


def _read(path: Path) -> dict[str, Any]:
    """A JSON or YAML file of a run directory."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it holds no keys")
    return value


class _Session:
    """The part of a run that has a run directory."""

    def __init__(
        self, config: Config, plan: Plan, device: Device, corpus: Corpus, run_dir: Path, console: Console
    ) -> None:
        self.config, self.plan, self.device = config, plan, device
        self.corpus, self.run_dir, self.console = corpus, run_dir, console

    def run(self, checkpoint: Checkpoint | None) -> Result:
        """Trains from the checkpoint or from the start, exports, and writes summary.json whatever happens."""
        self.console.log_to(self.run_dir / "train.log")
        progress = (
            checkpoint.progress if checkpoint else Progress(data=self.corpus.fingerprint, run_id=uuid4().hex[:16])
        )
        tracker = self._tracker(progress)
        status = "failed"
        try:
            loop = self._loop(checkpoint, progress, tracker)
            self.console.start(self.plan)
            with StopRequest() as stop:
                loop.run(stop)
            self._export(loop.model)
            status = "completed"
        except Interrupted:
            status = "interrupted"
            raise
        except KeyboardInterrupt as error:  # a second signal, or one during the export
            status = "interrupted"
            raise Interrupted(signal.SIGINT) from error
        except SystemExit as error:
            status = "interrupted"
            raise Interrupted(signal.SIGTERM) from error
        finally:
            self.console.stop()
            summary = summarize(
                config=self.config,
                plan=self.plan,
                device=self.device,
                corpus=self.corpus,
                run_dir=self.run_dir,
                status=status,
                progress=progress,
            )
            files.write_json(self.run_dir / "summary.json", summary)
            tracker.close(status, summary["totals"] | summary["losses"])
            self.console.show(summary_table(summary))
        return Result(self.run_dir, self.plan, progress.losses)

    def _tracker(self, progress: Progress) -> Tracker:
        config = self.config
        metrics = MetricsFile(self.run_dir / "metrics.jsonl", progress.metrics_bytes)
        tags = (config.model.kind, config.sampler.kind, config.expander.kind)
        identity = identify(self.run_dir, config.run.name, tags, progress.run_id)
        mirror = open_mirror(
            config.tracking, identity, config.raw, self.run_dir, metrics.dropped_rows, self.console.say
        )
        return Tracker(metrics, self.console, [mirror] if mirror else [])

    def _loop(self, checkpoint: Checkpoint | None, progress: Progress, tracker: Tracker) -> Loop:
        config, device, seed = self.config, self.device, self.config.run.seed
        torch.manual_seed(seed)
        layers = checkpoint.layers if checkpoint else self.plan.schedule.stages[0].layers
        model = build(config.shape, layers).to(device.device)

        def new_block() -> torch.nn.Module:
            block = model.new_block()
            if device.compile:
                block.compile()
            return block

        if device.compile:
            for block in model.blocks:
                block.compile()
        optimizer = build_optimizer(model, config.optim)
        if checkpoint:
            try:
                model.load_state_dict(checkpoint.weights)
            except RuntimeError as error:
                raise CheckpointError(
                    f"{self.run_dir}: the checkpoint is of another model than config.yaml says"
                ) from error
            restore_state(model, optimizer, checkpoint.optimizer)
            restore_random_state(checkpoint.rng, device.device)
        task = make_task(config, special_ids(config.model.kind, self.corpus.tokenizer))
        batch, rows = config.batch, self.corpus.validation[: config.eval.rows]
        return Loop(
            config=config,
            plan=self.plan,
            device=device,
            model=model,
            new_block=new_block,
            optimizer=optimizer,
            training=TrainingBatches(self.corpus.training, task, seed, batch.size, batch.micro_size),
            validation=EvaluationBatches(rows, task, batch.micro_size),
            tracker=tracker,
            checkpoints=Checkpoints(self.run_dir / "checkpoints", config.checkpoint.keep),
            progress=progress,
        )

    def _export(self, model: LanguageModel) -> None:
        """Writes `model/` in transformers' format, whole or not at all."""
        kind, tokenizer = self.config.model.kind, self.corpus.tokenizer
        special = special_ids(kind, tokenizer)
        if kind == "bert":
            ids = {"pad_token_id": special["pad"]}
        else:
            ids = {"bos_token_id": special["eos"], "eos_token_id": special["eos"]}
        temporary, final = self.run_dir / ".model.tmp", self.run_dir / "model"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_model(model, temporary, ids)
        save_companions(kind, tokenizer, self.config.data.seq_len, temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)


def _show(plan: Plan, config: Config, console: Console) -> None:
    console.show(plan_table(plan, estimated=config.budget.seconds is not None))
    console.say(plan_totals(plan))


def _prepare_corpus(config: Config, console: Console) -> Corpus:
    data = config.data
    recipe = Recipe(config.model.kind, data.tokenizer, data.vocab_size, data.seq_len, data.validation)
    cache = Path(data.cache_dir or platformdirs.user_cache_dir("apollo-train")).expanduser()
    corpus = prepare(_source(config), recipe, cache, console.say)
    if len(corpus.validation) < config.eval.rows:
        console.say(
            f"note: {len(corpus.validation)} rows are held out, eval.rows={config.eval.rows} asks for more; all "
            "are used (data.validation holds out more)"
        )
    return corpus


def _source(config: Config) -> sources.Source:
    data = config.data
    if isinstance(data, Text):
        return sources.TextFiles(data.files, data.document, data.text_field)
    if isinstance(data, Hub):
        return sources.Hub(data.path, data.name, data.split, data.streaming, data.text_field)
    assert isinstance(data, PyDocs)
    return sources.PyDocs()
