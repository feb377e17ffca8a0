"""One fine-tuning run of a task, a learning rate and a seed, by the trainer of pretraining."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apollo_cli import files
from apollo_cli.data.prefetch import Prefetch
from apollo_cli.errors import CheckpointError
from apollo_cli.glue import metrics
from apollo_cli.glue.classifier import Classifier, fine_tuning_flops, task_loss
from apollo_cli.glue.pretrained import Pretrained
from apollo_cli.glue.section import GlueConfig
from apollo_cli.glue.sentences import SentenceDataset, TrainingSentences
from apollo_cli.glue.tasks import GlueTask, Split
from apollo_cli.growth.expanders import CopyLayers
from apollo_cli.growth.plan import Plan, StepCost
from apollo_cli.growth.samplers import Full
from apollo_cli.growth.schedule import Schedule
from apollo_cli.models.hf import load_trunk
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import interruptible
from apollo_cli.tracking.console import Console
from apollo_cli.tracking.metrics_file import MetricsFile
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.tracking.wandb import Identity, open_mirror
from apollo_cli.tracking.writers import open_writers
from apollo_cli.training.checkpoint import Checkpoints
from apollo_cli.training.device import Device
from apollo_cli.training.distributed.ddp import ParallelStrategy
from apollo_cli.training.memory import process_bytes
from apollo_cli.training.optimizer import build_optimizer
from apollo_cli.training.session import Result, Session
from apollo_cli.training.state import Checkpoint, TrainerState
from apollo_cli.training.summary import git_commit, versions
from apollo_cli.training.trainer import TrainArgs, Trainer

TESTS = "test_predictions"  # the folder of a run with its answers to the test rows


@dataclass(frozen=True)
class TaskData:
    """The encoded rows of a task."""

    task: GlueTask
    train: SentenceDataset
    dev: list[tuple[Split, SentenceDataset]]
    test: list[tuple[Split, SentenceDataset, list[str]]]  # without labels; the names of the rows in a submission
    fingerprint: str  # of training and development rows


def evaluate_model(model: Classifier, data: TaskData, device: Device, batch_size: int) -> dict[str, float]:
    """On the development splits: `eval/loss` of the first, the metrics of all, and `eval/score`, their mean."""
    losses, values = [], dict[str, float]()
    for split, sentences in data.dev:
        outputs = outputs_of(model, sentences, device, batch_size)
        losses.append(task_loss(outputs, torch.from_numpy(sentences.labels)).item())
        scores = metrics.task_metrics(data.task, sentences.labels, predictions(data.task, outputs))
        values |= {f"{name}{split.suffix}": value for name, value in scores.items()}
    named = {f"eval/{name}": value for name, value in values.items()}
    return {"eval/loss": losses[0], **named, "eval/score": metrics.score(values)}


@torch.no_grad()
def outputs_of(model: Classifier, sentences: SentenceDataset, device: Device, batch_size: int) -> Tensor:
    """Outputs of the model, (rows, outputs) on the CPU, in the order of the rows."""
    was_training = model.training
    model.eval()
    found = torch.empty(len(sentences.rows), model.answer.out_features)  # fp32
    layers = range(len(model.blocks))
    for numbers in sentences.by_length(batch_size):
        with device.autocast():
            outputs = model(sentences.batch(numbers).to(device.device), layers)
        found[torch.from_numpy(numbers)] = outputs.float().cpu()
    model.train(was_training)
    return found


def predictions(task: GlueTask, outputs: Tensor) -> np.ndarray:
    """(rows,): indices of labels, or similarities."""
    return outputs.argmax(-1).numpy() if task.labels else outputs.squeeze(-1).numpy()


@dataclass
class FineTuning(Trainer):
    """A trainer whose steps have different numbers of tokens."""

    spent: np.ndarray  # (steps + 1, 2), FLOPs and tokens before each step

    def flops(self, step: int, depths: list[int]) -> int:
        """FLOPs of a step: its tokens count, and for attention its longest row."""
        return int(self.spent[step + 1, 0] - self.spent[step, 0])

    def tokens(self, step: int) -> int:
        """Tokens read in all steps before this one, without padding."""
        return int(self.spent[step, 1])


class GlueConsole(Console):
    """Prints rows of a fine-tuning run with its name and metrics."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _line(self, row: dict[str, Any]) -> str:
        if "eval/loss" not in row:
            return f"{self._position(row)} lr {row['train/lr']:.2e}"
        return f"{self.name} step {row['step']:>5}  {'  '.join(map(' '.join, _scores(row).items()))}"

    def _position(self, row: dict[str, Any]) -> str:
        loss = "" if self.train_loss is None else f" loss {self.train_loss:.4f}"
        step = f"{self.name} step {row['step']:>5}/{self.plan.steps}"
        return f"{step}{loss} {row['flops']:.2e} FLOPs ETA {self._eta(row)}"


class Cell(Session):
    """The session of a fine-tuning run, at a learning rate and a seed of the config."""

    out_of_memory_hint = "a smaller glue.max_length or batch.size needs less"

    def __init__(
        self,
        config: GlueConfig,
        lr: float,
        seed: int,
        data: TaskData,
        pretrained: Pretrained,
        device: Device,
        directory: RunDirectory,
    ) -> None:
        self.config, self.lr, self.seed, self.rows, self.pretrained = config, lr, seed, data, pretrained
        self.name = f"{data.task.name}_lr{lr:g}_seed{seed}"
        self.training = TrainingSentences(data.train, seed, config.batch.size)
        self.steps = config.glue.epochs * self.training.steps_per_epoch
        self.values = {"task": data.task.name, "lr": lr, "seed": seed, **config.recipe}
        super().__init__(self._plan(device), device, directory, GlueConsole(self.name), data.fingerprint)

    @cached_property
    def spent(self) -> np.ndarray:
        """(steps + 1, 2): FLOPs and tokens before each step."""
        task, sizes = self.rows.task, self.training.sizes(self.steps).tolist()
        each = [(fine_tuning_flops(self.pretrained.model_config, task.outputs, *size), size[-1]) for size in sizes]
        return np.concatenate([np.zeros((1, 2), dtype=np.int64), np.cumsum(each, axis=0, dtype=np.int64)])

    def _plan(self, device: Device) -> Plan:
        """One stage of all layers; the cost of a step is the mean, for the estimate of the remaining time."""
        layers = self.pretrained.model_config.layers
        flops, tokens = (int(total) // self.steps for total in self.spent[-1])
        step_cost = StepCost(
            target=layers,
            accumulation=1,
            tokens_per_step=tokens,
            flops=lambda depth, frozen: flops,
            parameters=lambda layers: self.pretrained.num_parameters,
            memory_bytes=lambda layers, depth: process_bytes(device, 16 * self.pretrained.num_parameters, 1),
        )
        schedule = Schedule.over(self.steps, [layers], [1.0])
        return Plan(schedule, Full(), CopyLayers("nearest"), step_cost, self.seed)

    def start(self) -> Result:
        """Begins the run, or resumes it where it stopped; a CheckpointError if the run there has other rows."""
        with self.directory.owned(), interruptible():
            if not self.directory.is_claimed:
                self.directory.claim(self.values, self.plan.as_dict())
                return self.run(None)
            checkpoints = Checkpoints(self.directory.checkpoints, self.config.checkpoint.keep)
            checkpoint = checkpoints.load_newest(self.console.say, self.directory.metrics_bytes())
            if checkpoint and checkpoint.state.data != self.data:
                raise CheckpointError(
                    f"{self.directory}: the rows of {self.rows.task.title} are not those that this run began with. "
                    "Restore the files, or type another out="
                )
            self.console.say(f"resuming {self.directory} at step {checkpoint.state.step if checkpoint else 0}")
            return self.run(checkpoint)

    def tracker(self, state: TrainerState) -> Tracker:
        metrics_file = MetricsFile(self.directory.metrics_file, state.metrics_bytes)
        group, tags = self.pretrained.group, (self.pretrained.model_config.kind, self.rows.task.name)
        identity = Identity(state.run_id, f"{group}/{self.name}", group, tags, "glue")
        shown = self.values | {"pretrained": self.pretrained.facts}
        tracking, say = self.config.tracking, self.console.say
        mirror = open_mirror(tracking, identity, shown, self.directory.path, metrics_file.dropped_rows, say)
        writers = open_writers(tracking, self.directory.path, state.step)
        return Tracker(metrics_file, self.console, [*([mirror] if mirror else []), *writers])

    def make_trainer(self, checkpoint: Checkpoint | None, state: TrainerState, tracker: Tracker) -> Trainer:
        config, device = self.config, self.device
        torch.manual_seed(self.seed)
        body, pooler = load_trunk(self.pretrained.folder, config.glue.dropout)
        model = Classifier(body, self.rows.task.outputs, pooler).to(device.device)
        optim = config.optim.at(self.lr)
        optimizer = build_optimizer(model, optim)
        strategy = ParallelStrategy(model, lambda blocks: None)
        if checkpoint:
            self.restore(checkpoint, strategy, optimizer)
        return FineTuning(
            args=TrainArgs(
                optim=optim,
                log_every=config.log.every,
                eval_every=self.training.steps_per_epoch,
                checkpoint_every=config.checkpoint.every,
                on_nonfinite=config.on_nonfinite,
            ),
            plan=self.plan,
            device=device,
            strategy=strategy,
            optimizer=optimizer,
            training=Prefetch(self.training, 1, device.device),
            measure=lambda gates, full_depth: evaluate_model(model, self.rows, device, config.batch.size),
            tracker=tracker,
            checkpoints=Checkpoints(self.directory.checkpoints, config.checkpoint.keep),
            refused_steps=self.directory.refused_steps,
            state=state,
            spent=self.spent,
        )

    def finish(self, trainer: Trainer) -> None:
        """Predicts the test rows, and deletes the weights, which a grid of runs does not need."""
        assert isinstance(trainer.model, Classifier)
        task, folder = self.rows.task, self.directory.path / TESTS
        for split, sentences, indices in self.rows.test:
            outputs = outputs_of(trainer.model, sentences, self.device, self.config.batch.size)
            text = submission(task, indices, predictions(task, outputs))
            with files.writing(folder, len(text)):
                folder.mkdir(exist_ok=True)
                files.write_text(folder / f"{task.title}{split.suffix}.tsv", text)
        trainer.checkpoints.wait_for_removal()
        files.remove(self.directory.checkpoints)

    def summary(self, status: str, state: TrainerState) -> dict[str, Any]:
        return {
            "status": status,
            "task": self.rows.task.name,
            "lr": self.lr,
            "seed": self.seed,
            "losses": state.losses,
            "totals": {
                "steps": state.step,
                "planned_steps": self.plan.steps,
                "flops": state.flops,
                "skipped_steps": state.skipped_steps,
                "train_seconds": state.train_seconds,
                "total_seconds": state.total_seconds,
            },
            "data": {"fingerprint": self.data, "training_rows": len(self.rows.train.rows)},
            "frequent_score": metrics.frequent_score(self.rows.task, [dev.labels for _, dev in self.rows.dev]),
            "pretrained": self.pretrained.facts,
            "device": self.device.name,
            "precision": self.device.precision,
            "versions": versions(),
            "git_commit": git_commit(),
        }

    def print_summary(self, summary: dict[str, Any]) -> None:
        """One line; the table comes when all runs are done."""
        scores = ", ".join(f"{name} {value}" for name, value in _scores(summary["losses"]).items())
        self.console.say(f"{self.name} {summary['status']}: {scores or 'no evaluation'}")


def _scores(row: dict[str, Any]) -> dict[str, str]:
    scores = {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}
    return {name: "-" if value is None else f"{value:.4f}" for name, value in scores.items()}


def submission(task: GlueTask, indices: list[str], given: np.ndarray) -> str:
    """The predictions as gluebenchmark.com takes them: lines of `index` and `prediction`, by names of labels."""
    names = [task.labels[each] if task.labels else f"{np.clip(each, 0, 5):.3f}" for each in given]
    rows = [f"{index}\t{name}" for index, name in zip(indices, names, strict=True)]
    return "\n".join(["index\tprediction", *rows]) + "\n"
