"""The training loop: grow, step, log, evaluate, save, in that order."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from apollo_cli import files
from apollo_cli.config import Config
from apollo_cli.data.batches import EvaluationBatches, TrainingBatches
from apollo_cli.errors import TrainingError
from apollo_cli.growth.expanders import grow
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.growth.plan import Plan
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.training.checkpoint import Checkpoint, Checkpoints, Progress, random_state, restore_random_state
from apollo_cli.training.device import Device
from apollo_cli.training.diagnosis import MOST_SKIPS_IN_A_ROW, Diagnosis, finite
from apollo_cli.training.evaluate import evaluate
from apollo_cli.training.interrupt import Interrupted, StopRequest
from apollo_cli.training.optimizer import learning_rate, state_by_name


@dataclass
class Loop:
    """One run's moving parts. `run` is the whole story; the methods below are its sentences."""

    config: Config
    plan: Plan
    device: Device
    model: LanguageModel
    new_block: Callable[[], nn.Module]
    optimizer: torch.optim.Optimizer
    training: TrainingBatches
    validation: EvaluationBatches
    tracker: Tracker
    checkpoints: Checkpoints
    refused_steps: Path
    progress: Progress

    def __post_init__(self) -> None:
        self.saved_step = self.progress.step
        self.started = perf_counter() - self.progress.total_seconds

    def run(self, stop: StopRequest) -> None:
        """Trains until the plan, or the budget in seconds, is done.

        Raises:
            Interrupted: a signal came; the state is saved.
            TrainingError: a loss or a gradient is not finite; the state before that step is saved.
            StorageError: a row or a checkpoint cannot be written; the last checkpoint is whole.
        """
        config, progress = self.config, self.progress
        self.model.train()
        if progress.step == 0:
            self.evaluate()
        while not self.done():
            if self.plan.schedule.at(progress.step).layers != len(self.model.blocks):
                self.save()
                self.grow()
            self.step()
            if progress.step % config.log.every == 0 or self.done():
                self.log()
            if progress.step % config.eval.every == 0 or self.done():
                self.evaluate()
            if progress.step % config.checkpoint.every == 0 or self.done() or stop.signum:
                self.save()
            if stop.signum and not self.done():
                raise Interrupted(stop.signum)

    def done(self) -> bool:
        """Whether the plan is fulfilled or the budget in seconds spent."""
        seconds = self.config.budget.seconds
        spent = seconds is not None and self.progress.train_seconds >= seconds
        return spent or self.progress.step >= self.plan.steps

    def grow(self) -> None:
        """Expands the stored layers to those of the stage that begins; evaluates on both sides of it."""
        growth = self.plan.stages[self.plan.schedule.index(self.progress.step)]
        if growth.growth_matrix is None:
            raise RuntimeError(f"the first stage stores {growth.stage.layers} layers, not {len(self.model.blocks)}")
        ends = {"growth/from": len(self.model.blocks), "growth/to": growth.stage.layers}
        before = evaluate(self.model, self.validation, self.device)
        self.row(ends | before)
        self.model.blocks = grow(
            self.model.blocks,
            self.new_block,
            self.optimizer,
            growth.growth_matrix,
            self.config.expander.moments,
        )
        after = evaluate(self.model, self.validation, self.device)
        self.row(ends | after)
        self.progress.growths.append(
            {"step": self.progress.step, "from": ends["growth/from"], "to": ends["growth/to"]}
            | {"eval/loss_before": finite(before["eval/loss"]), "eval/loss_after": finite(after["eval/loss"])}
        )

    def step(self) -> None:
        """One update: accumulated micro-steps, each with a depth of its own, clipped, at its learning rate."""
        progress, start = self.progress, perf_counter()
        luck = random_state(self.device.device) if self.model.shape.dropout else None
        self.lr = learning_rate(self.config.optim, progress.step, self.plan.steps, self.plan.schedule.growth_steps)
        losses = self.backward()
        self.grad_norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]).item()
        total = losses.sum().item()
        if math.isfinite(total) and math.isfinite(self.grad_norm):
            self.update(total)
        else:
            self.refuse(losses, luck)
        self.optimizer.zero_grad()
        progress.flops += sum(map(self.plan.work.flops, self.depths))
        progress.step += 1
        self.device.synchronize()
        progress.train_seconds += perf_counter() - start
        self.tracker.step(self.standing() | {"train/depth": self.depths[-1]})

    def backward(self) -> Tensor:
        """Gradients of all micro-steps, summed up; returns the loss of each."""
        step, accumulation = self.progress.step, self.plan.work.accumulation
        self.depths = [self.plan.depth(step * accumulation + part) for part in range(accumulation)]
        losses = []
        for part, depth in enumerate(self.depths):
            batch = self.training.micro_batch(step, part).to(self.device.device)
            with self.device.autocast():
                loss = self.model.loss(batch, layer_map("nearest", len(self.model.blocks), depth))
            (loss / accumulation).backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    def update(self, total_loss: float) -> None:
        """Clipped gradients into weights."""
        progress = self.progress
        if limit := self.config.optim.clip:
            clip_grads_with_norm_(self.model.parameters(), limit, torch.tensor(self.grad_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        progress.loss_sum += total_loss
        progress.loss_count += len(self.depths)
        progress.loss_max = max(progress.loss_max, total_loss / len(self.depths))
        progress.norm_max = max(progress.norm_max, self.grad_norm)
        progress.skipped_in_a_row = 0

    def refuse(self, losses: Tensor, luck: dict[str, Tensor] | None) -> None:
        """Leaves the weights as they are, and a diagnosis; goes on only with `on_nonfinite=skip`.

        Args:
            losses: of the micro-steps.
            luck: the random state before the step, where dropout draws from it.

        Raises:
            TrainingError: after a checkpoint of the state before the step.
        """
        progress = self.progress
        diagnosis = self.diagnosis(losses)
        path = diagnosis.write(self.refused_steps)
        skip = self.config.run.on_nonfinite == "skip"
        if skip and progress.skipped_in_a_row < MOST_SKIPS_IN_A_ROW:
            progress.skipped_steps += 1
            progress.skipped_in_a_row += 1
            self.tracker.say(f"{diagnosis}; skipped, see {files.shown(path)}")
            return
        if luck is not None:
            restore_random_state(luck, self.device.device)
        self.save()
        ways = "a lower optim.lr, a longer optim.warmup or precision=fp32 may help"
        if skip:
            raise TrainingError(f"{diagnosis}, as in the {MOST_SKIPS_IN_A_ROW} steps before it; {ways}")
        raise TrainingError(
            f"{diagnosis}. The step was not applied; see {files.shown(path)}. In a new run {ways}; this one "
            "leaves such steps out if on_nonfinite=skip stands beside resume="
        )

    def diagnosis(self, losses: Tensor) -> Diagnosis:
        """Of the step whose gradients are there now."""
        step, parameters = self.progress.step, self.model.named_parameters()
        return Diagnosis(
            step=step,
            stage=self.plan.schedule.number(len(self.model.blocks)),
            layers=len(self.model.blocks),
            learning_rate=self.lr,
            depths=self.depths,
            losses=losses.tolist(),
            grad_norm=self.grad_norm,
            parameters=[name for name, p in parameters if p.grad is not None and not p.grad.isfinite().all()],
            rows=[self.training.row_numbers(step, part).tolist() for part in range(len(self.depths))],
            data=self.progress.data,
        )

    def log(self) -> None:
        """A training row: the loss averaged since the last one."""
        progress = self.progress
        seconds = progress.train_seconds - progress.logged_train_seconds
        tokens = (progress.step - progress.logged_step) * self.plan.work.tokens_per_step
        self.row(
            {
                "train/loss": progress.loss_sum / progress.loss_count if progress.loss_count else None,
                "train/loss_max": progress.loss_max if progress.loss_count else None,
                "train/lr": self.lr,
                "train/grad_norm": self.grad_norm,
                "train/grad_norm_max": progress.norm_max if progress.loss_count else None,
                "train/depth": self.depths[-1],
                "train/skipped_steps": progress.skipped_steps,
                "perf/tokens_per_second": tokens / seconds,
                "perf/flops_per_second": (progress.flops - progress.logged_flops) / seconds,
            }
        )
        progress.loss_sum, progress.loss_count, progress.loss_max, progress.norm_max = 0.0, 0, 0.0, 0.0
        progress.logged_train_seconds, progress.logged_flops = progress.train_seconds, progress.flops
        progress.logged_step = progress.step

    def evaluate(self) -> None:
        """An evaluation row."""
        self.row(evaluate(self.model, self.validation, self.device))

    def save(self) -> None:
        """A checkpoint, unless this step has one."""
        if self.saved_step == self.progress.step:
            return
        self.standing()
        self.progress.metrics_bytes = self.tracker.metrics_bytes()
        weights = {name: t.detach().cpu() for name, t in self.model.state_dict().items()}
        optimizer = state_by_name(self.model, self.optimizer)
        self.checkpoints.save(
            Checkpoint(len(self.model.blocks), weights, optimizer, random_state(self.device.device), self.progress)
        )
        self.saved_step = self.progress.step

    def row(self, values: dict[str, Any]) -> None:
        """Hands a row to everything that records it; a value that is not finite is null there."""
        values = {k: finite(v) if isinstance(v, float) else v for k, v in values.items()}
        self.progress.losses |= {k: v for k, v in values.items() if k == "train/loss" or k.startswith("eval/")}
        self.tracker.row(self.standing() | values)

    def standing(self) -> dict[str, Any]:
        """The columns of every row."""
        progress = self.progress
        progress.total_seconds = perf_counter() - self.started
        return {
            "step": progress.step,
            "micro_step": progress.step * self.plan.work.accumulation,
            "tokens": progress.step * self.plan.work.tokens_per_step,
            "flops": progress.flops,
            "train_seconds": progress.train_seconds,
            "total_seconds": progress.total_seconds,
            "stage": self.plan.schedule.number(len(self.model.blocks)),
            "layers": len(self.model.blocks),
        }
