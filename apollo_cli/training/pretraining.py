"""A pretraining run: its model, trainer, tracking and export."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from apollo_cli import files
from apollo_cli.config.config import Config
from apollo_cli.data.batches import EvaluationBatches
from apollo_cli.data.corpus import Corpus
from apollo_cli.data.prefetch import Prefetch
from apollo_cli.data.tokenizer import exported_ids, save_companions
from apollo_cli.errors import CheckpointError
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.rng import Purpose, generator
from apollo_cli.models.build import build
from apollo_cli.models.hf import save_model
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.run_directory import FORMAT, RunDirectory
from apollo_cli.tracking.console import Console, summary_table
from apollo_cli.tracking.metrics_file import MetricsFile
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.tracking.wandb import FACTS, identify, open_mirror, run_id_of_agent
from apollo_cli.tracking.writers import open_writers
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.checkpoint import BEST, Checkpoints, load_checkpoint
from apollo_cli.training.corpora import training_batches
from apollo_cli.training.cuda_graphs import CudaRecorder, Graphs
from apollo_cli.training.device import Device
from apollo_cli.training.distributed.ddp import DataParallel, ParallelStrategy
from apollo_cli.training.evaluate import evaluate
from apollo_cli.training.examples import Example, example_lines, examples, frequency_loss
from apollo_cli.training.init_from.source import SourceModel, checkpoint_model, find_source, first_sample
from apollo_cli.training.init_from.transfer import WeightTransfer
from apollo_cli.training.labels import labels, tags
from apollo_cli.training.model_card import CARD, WeightsOf, model_card
from apollo_cli.training.optimizer import build_optimizer
from apollo_cli.training.planning import make_plan, make_task
from apollo_cli.training.session import Session, readable
from apollo_cli.training.state import Checkpoint, TrainerState
from apollo_cli.training.summary import data_facts, summarize
from apollo_cli.training.trainer import TrainArgs, Trainer, grow_layers

_STAGE_COLUMNS = ("layers", "width", "first_step", "end_step", "parameters", "memory_bytes", "flops", "map_flops")


class Pretraining(Session):
    """A session that trains a language model on a corpus."""

    def __init__(
        self, config: Config, plan: Plan, device: Device, corpus: Corpus, directory: RunDirectory, console: Console
    ) -> None:
        super().__init__(plan, device, directory, console, corpus.content)
        self.config, self.corpus = config, corpus
        self.profiles = config.run.profile and device.processes.is_main
        self.learned: dict[str, Any] = {}  # what the summary of a completed run says beside its losses
        self.examples: list[Example] = []

    def new_state(self) -> TrainerState:
        """The counters of a run that begins.

        Its rows may be those after the last ones that its source read; `wandb agent` may give its id.
        """
        state = super().new_state()
        return replace(state, first_sample=first_sample(self.config), run_id=run_id_of_agent() or state.run_id)

    def summary(self, status: str, state: TrainerState) -> dict[str, Any]:
        run_dir = self.directory.path
        facts = summarize(self.config, self.plan, self.device, self.corpus, run_dir, status, state)
        return facts | self.learned

    def print_summary(self, summary: dict[str, Any]) -> None:
        self.console.show(summary_table(summary))
        for line in example_lines(self.examples):
            self.console.say(line)
        if summary["status"] == "completed":
            own = shlex.quote(f"run={files.shown(self.directory.path)}")
            prompt = "'prompt=the [MASK] of'" if self.config.model.kind == "bert" else "prompt=the"
            commands = (f"{files.command('apollo-sample')} {own} {prompt}", f"{files.command('apollo-eval')} {own}")
            self.console.say(f"try it: {'; '.join(commands)}")

    def replan(self, ended: Sequence[int]) -> Plan:
        """The plan of the rest of a run whose first stages have ended at these steps."""
        self.plan = make_plan(self.config, self.device, recorded=self.plan.source, ended=ended)
        self.console.start(self.plan)
        return self.plan

    def finish(self, trainer: Trainer) -> None:
        if self.plan.earliest and self.device.processes.is_main:
            with files.writing(self.directory.plan_file, 100_000):  # as it has become
                files.write_json(self.directory.plan_file, self.plan.as_dict())
        self._note_what_is_missing(trainer)
        model = trainer.strategy.gather_model()
        self._export(model, self.directory.model, trainer.state, "end")
        if self.device.processes.is_main:
            self._show_what_is_learned(model)
        if self.config.optim.ema is not None:
            with trainer.optimizer.averaged():
                averaged = trainer.strategy.gather_model()
                self._export(averaged, self.directory.averaged_model, trainer.state, "average")
        if self.config.checkpoint.best and self.device.processes.is_main:
            try:
                best = checkpoint_model(self.config, self.directory, BEST)
                self._export(best, self.directory.best_model, trainer.state, "best")
            except CheckpointError as error:  # it was lost, or written before checkpoint.best=true was typed
                self.console.say(f"note: there is no {self.directory.best_model.name}: {error}")

    def _note_what_is_missing(self, trainer: Trainer) -> None:
        """Says what the clock has cut off, which alone ends a run before the model is whole."""
        where, last = files.shown(self.directory.model), self.plan.schedule.stages[-1]
        if (trainer.layers, trainer.width) != (last.layers, last.width):
            width = f" at {trainer.width:g} of the width" if trainer.width != last.width else ""
            self.console.say(
                "note: budget.seconds was spent before the last growth, for steps took longer than in the plan: "
                f"{where} has {trainer.layers} of {last.layers} layers{width}"
            )
        elif not trainer.is_whole:
            self.console.say(
                "note: budget.seconds was spent before the gates of the new layers were open: eval/loss is of the "
                f"gated model, and {where} has no gates"
            )

    def _show_what_is_learned(self, model: LanguageModel) -> None:
        """Measures the loss of answering by frequency, and lets the model answer."""
        config, corpus = self.config, self.corpus
        rows, task = corpus.evaluation(config.eval.rows), make_task(config, corpus.tokenizer)
        batches = EvaluationBatches(rows, task, config.batch.micro_size)
        by_frequency = frequency_loss(config.model.kind, corpus.training, batches, config.data.vocab_size)
        self.examples = examples(model, corpus.tokenizer, rows)
        self.learned = {"frequency_loss": by_frequency, "examples": [asdict(each) for each in self.examples]}

    def tracker(self, state: TrainerState) -> Tracker:
        config = self.config
        if not self.device.processes.is_main:
            return Tracker(None, self.console)
        metrics = MetricsFile(self.directory.metrics_file, state.metrics_bytes)
        identity = identify(self.directory.path, config.run.name, tags(config), state.run_id)
        facts = {"data": data_facts(config, self.corpus), "plan": self.plan.as_dict()}
        shown = {"format": FORMAT, **config.raw, **labels(config, self.plan, self.device), FACTS: facts}
        stages = [{key: stage[key] for key in _STAGE_COLUMNS} for stage in facts["plan"]["stages"]]
        mirror = open_mirror(
            config.tracking, identity, shown, self.directory.path, metrics.dropped_rows, self.console.say, stages
        )
        writers = open_writers(config.tracking, self.directory.path, state.step)
        return Tracker(metrics, self.console, [*([mirror] if mirror else []), *writers])

    def make_trainer(self, checkpoint: Checkpoint | None, state: TrainerState, tracker: Tracker) -> Trainer:
        """The trainer, new or with a checkpoint's state; a CheckpointError if that is of another plan or model."""
        config, device, seed = self.config, self.device, self.config.run.seed
        torch.manual_seed(seed)
        stages = self.plan.schedule.stages
        source = find_source(config) if config.init_from.optimizer and not checkpoint else None
        first = checkpoint or stages[0]
        layers, width = first.layers, first.width
        if (layers, width) not in ((s.layers, s.width) for s in stages) or state.step > self.plan.steps:
            share = f" of {width:g} of the width" if width != 1 else ""
            raise CheckpointError(
                f"{self.directory}: the checkpoint (step {state.step}, {layers} layers{share}) is of another plan"
            )
        batches = training_batches(config, self.corpus, state.first_sample, device.processes)
        undivided = training_batches(config, self.corpus, state.first_sample)
        transfer = WeightTransfer(config.model_config, device, undivided, state, self.console.say)
        stored = source.model_config.layers if source else layers
        strategy = self._make_strategy(stored, width, None if checkpoint or source else transfer)
        optimizer = build_optimizer(strategy.language_model(), config.optim)
        if checkpoint:
            self.restore(checkpoint, strategy, optimizer)
        elif source:
            self._begin_with_optimizer(source, strategy, optimizer)
        validation = EvaluationBatches(
            self.corpus.evaluation(config.eval.rows),
            make_task(config, self.corpus.tokenizer),
            config.batch.micro_size,
            device.processes.rank,
            device.processes.world_size,
        )
        return Trainer(
            args=TrainArgs(
                optim=config.optim,
                log_every=config.log.every,
                eval_every=config.eval.every,
                checkpoint_every=config.checkpoint.every,
                on_nonfinite=config.run.on_nonfinite,
                seconds=config.budget.seconds,
                target_loss=config.budget.target_loss,
                patience=config.budget.patience,
                keeps_best=config.checkpoint.best,
                moments=config.expander.moments,
                lr_scale=config.expander.lr_scale,
                lr_steps=config.expander.lr_steps,
                window=config.schedule.window,
                threshold=config.schedule.threshold,
            ),
            plan=self.plan,
            device=device,
            strategy=strategy,
            optimizer=optimizer,
            training=Prefetch(batches, config.batch.accumulation, device.device),
            measure=lambda gates, full_depth: evaluate(
                strategy.language_model(),
                validation,
                device,
                gates,
                self.console.evaluating,
                full_depth=full_depth,
            ),
            tracker=tracker,
            checkpoints=Checkpoints(
                self.directory.checkpoints, config.checkpoint.keep, device.processes, in_shards=strategy.in_shards
            ),
            refused_steps=self.directory.refused_steps,
            state=state,
            width=width,
            transfer=transfer,
            replan=self.replan if config.schedule.when == "plateau" else None,
            graphs=self._make_graphs(strategy),
        )

    def _make_graphs(self, strategy: ParallelStrategy) -> Graphs | None:
        """Those of `compile=graphs`, where a step can be one: on one device, with a gradient for all parameters."""
        if not self.device.graphs:
            return None
        if self.device.processes.env:
            reason = "several processes share each step"
        elif not self.plan.trains_all:
            reason = "not every step has gradients for all stored layers"
        else:
            return Graphs(CudaRecorder(self.device.device))
        self.console.say(
            f"compile=graphs: {reason}, so blocks are compiled and nothing is captured, as compile=true"
        )
        return None

    def _make_strategy(self, layers: int, width: float, transfer: WeightTransfer | None) -> ParallelStrategy:
        """The model on its devices, with its initial weights, or without if `transfer` is None."""
        config, device = self.config, self.device
        if device.processes.env and config.distributed.kind == "fsdp":
            from apollo_cli.training.distributed.fsdp import FullyShardedDataParallel

            strategy = FullyShardedDataParallel(config.model_config.narrowed(width), layers, device)
            if transfer:
                on_cpu = torch.device("cpu")
                strategy.load_from_rank_zero(
                    self._new_model(layers, width, on_cpu, transfer) if device.processes.is_main else None
                )
            return strategy
        model = self._new_model(layers, width, device.device, transfer)
        if device.processes.env:
            return DataParallel(model, device.compile_blocks, self.plan.trains_all)
        return ParallelStrategy(model, device.compile_blocks)

    def _begin_with_optimizer(self, source: SourceModel, strategy: ParallelStrategy, optimizer: AdamW) -> None:
        """Gives model and optimizer the state of the source, then grows both to the first stage."""
        run = source.run
        assert run
        assert run.checkpoint
        with readable(run.directory):
            strategy.restore(load_checkpoint(run.directory.checkpoints, run.checkpoint).tensors, optimizer)
        if growth := self.plan.stages[0].growth:
            rng = generator(self.plan.seed, Purpose.GROWTH, 0)
            grow_layers(strategy, optimizer, growth, self.config.expander.moments, self.config.optim, rng)
        self.console.say(f"begun from {source}, with its optimizer's state")

    def _new_model(
        self, layers: int, width: float, device: torch.device, transfer: WeightTransfer | None
    ) -> LanguageModel:
        """A model, initialized from the source if `transfer` is given and the config has a source."""
        model = build(self.config.model_config.narrowed(width), layers).to(device)
        if transfer and (source := find_source(self.config)):
            transfer.init_model(model, source.load(), self.plan, 0, before_step=lambda: None)
            self.console.say(f"begun from {source}")
        return model

    def _export(self, model: LanguageModel, final: Path, state: TrainerState, of: WeightsOf) -> None:
        """Writes the folder `final` in transformers' format, completely or not at all; on rank 0."""
        if not self.device.processes.is_main:
            return
        kind, tokenizer = self.config.model.kind, self.corpus.tokenizer
        temporary = final.with_name(f".{final.name}.tmp")
        size = sum(t.nbytes for t in model.state_dict().values())
        try:
            with files.writing(final, size):
                files.remove(temporary)
                temporary.mkdir()
                save_model(model, temporary, exported_ids(kind, tokenizer))
                save_companions(kind, tokenizer, self.config.data.seq_len, temporary)
                card = model_card(self.config, self.plan, self.summary("completed", state), of=of)
                (temporary / CARD).write_text(card, encoding="utf-8")
                for file in temporary.iterdir():
                    files.sync(file)
                files.remove(final)
                temporary.rename(final)
                files.sync(self.directory.path)
        except SafetensorError as error:  # what the library raises if the disk is full
            raise files.unwritable(final, size, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
