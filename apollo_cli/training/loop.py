"""The training loop: grow, step, log, evaluate, save, in that order."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from apollo_cli.config import Config
from apollo_cli.data.batches import EvaluationBatches, TrainingBatches
from apollo_cli.errors import TrainingError
from apollo_cli.growth.expanders import grow
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.growth.plan import Plan
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.training.checkpoint import Checkpoint, Checkpoints, Progress, random_state
from apollo_cli.training.device import Device
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
    progress: Progress

    def __post_init__(self) -> None:
        self.saved_step = self.progress.step
        self.started = perf_counter() - self.progress.total_seconds

    def run(self, stop: StopRequest) -> None:
        """Trains until the plan, or the budget in seconds, is done.

        Raises:
            Interrupted: a signal came; the state is saved.
            TrainingError: the loss or its gradient is not finite; the weights are those before the step.
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
        self.row(ends | evaluate(self.model, self.validation, self.device))
        self.model.blocks = grow(
            self.model.blocks,
            self.new_block,
            self.optimizer,
            growth.growth_matrix,
            self.config.expander.moments,
        )
        self.row(ends | evaluate(self.model, self.validation, self.device))

    def step(self) -> None:
        """One update: accumulated micro-steps, each with a depth of its own, clipped, at its learning rate."""
        progress, accumulation = self.progress, self.plan.work.accumulation
        stored, losses, start = len(self.model.blocks), [], perf_counter()
        for part in range(accumulation):
            self.depth = self.plan.depth(progress.step * accumulation + part)
            batch = self.training.micro_batch(progress.step, part).to(self.device.device)
            with self.device.autocast():
                loss = self.model.loss(batch, layer_map("nearest", stored, self.depth))
            (loss / accumulation).backward()
            losses.append(loss.detach())
            progress.flops += self.plan.work.flops(self.depth)
        self.grad_norm = self.clip()
        progress.loss_sum += torch.stack(losses).sum().item()  # the device is asked once a step
        progress.loss_count += accumulation
        self.lr = learning_rate(self.config.optim, progress.step, self.plan.steps, self.plan.schedule.growth_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        self.device.synchronize()
        progress.train_seconds += perf_counter() - start
        self.tracker.step(self.standing() | {"train/depth": self.depth})

    def clip(self) -> float:
        """Clips the gradient and returns its norm before; refuses one that is not finite."""
        limit = self.config.optim.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {self.progress.step}: the gradient's norm is {norm} (depth {self.depth}, "
                f"{len(self.model.blocks)} layers). The step was refused. Try a lower optim.lr, a longer "
                "optim.warmup, or precision=fp32"
            )
        return norm

    def log(self) -> None:
        """A training row: the loss averaged since the last one."""
        progress = self.progress
        seconds = progress.train_seconds - progress.logged_train_seconds
        tokens = (progress.step - progress.logged_step) * self.plan.work.tokens_per_step
        self.row(
            {
                "train/loss": progress.loss_sum / progress.loss_count,
                "train/lr": self.lr,
                "train/grad_norm": self.grad_norm,
                "train/depth": self.depth,
                "perf/tokens_per_second": tokens / seconds,
                "perf/flops_per_second": (progress.flops - progress.logged_flops) / seconds,
            }
        )
        progress.loss_sum, progress.loss_count = 0.0, 0
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
        """Hands a row to everything that records it."""
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
