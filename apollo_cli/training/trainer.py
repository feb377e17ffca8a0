"""The training loop: grow, step, log, evaluate, save, in that order."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from apollo_cli import files
from apollo_cli.config.config import Config
from apollo_cli.data.batches import EvaluationBatches
from apollo_cli.data.prefetch import Prefetch
from apollo_cli.errors import TrainingError
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.rng import Purpose, generator
from apollo_cli.growth.samplers import ForwardPath
from apollo_cli.growth.schedule import Stage
from apollo_cli.models.activation_memory import ActivationMemory
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.signals import Interrupted, StopRequest
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.checkpoint import Checkpoints
from apollo_cli.training.device import Device
from apollo_cli.training.distributed.ddp import ParallelStrategy
from apollo_cli.training.evaluate import evaluate
from apollo_cli.training.init_from.transfer import WeightTransfer
from apollo_cli.training.memory import num_pieces, peak_bytes, reset_peak
from apollo_cli.training.nonfinite import MOST_SKIPS_IN_A_ROW, Diagnosis, finite
from apollo_cli.training.optimizer import build_optimizer, learning_rate, state_by_name
from apollo_cli.training.state import Checkpoint, TrainerState, random_state, restore_random_state


@dataclass(frozen=True)
class PendingStep:
    """A step that the device was given; its numbers may not be there yet.

    Attributes:
        step: updates before it.
        lr: its learning rate.
        depths: of each micro-step.
        luck: torch's generators before it, where dropout draws from them.
        losses: (micro-steps,), on the device.
        grad_norm: before clipping, on the device.
    """

    step: int
    lr: float
    depths: list[int]
    rng: dict[str, Tensor] | None
    losses: Tensor
    grad_norm: Tensor


@dataclass
class Trainer:
    """One run's moving parts. `run` is the whole story; the methods below are its sentences."""

    config: Config
    plan: Plan
    device: Device
    strategy: ParallelStrategy
    optimizer: AdamW
    training: Prefetch
    validation: EvaluationBatches
    tracker: Tracker
    checkpoints: Checkpoints
    refused_steps: Path
    state: TrainerState
    width: float = field(default=1.0, kw_only=True)  # of the model now, as a share of the target's
    transfer: WeightTransfer | None = field(default=None, kw_only=True)  # None where nothing grows

    def __post_init__(self) -> None:
        self.saved_step = self.state.step
        self.started = perf_counter() - self.state.total_seconds
        self.pending_steps: list[PendingStep] = []
        self.blocked = torch.zeros((), device=self.device.device)  # 1 from a step that is not finite to `settle`

    @property
    def model(self) -> LanguageModel:
        """With the layers that are stored now."""
        return self.strategy.model

    @property
    def footprint(self) -> ActivationMemory:
        """Of the model as wide as it is now."""
        return ActivationMemory(self.model.model_config, self.device.device.type, self.device.bf16)

    def run(self, stop: StopRequest) -> None:
        """Trains until the plan, or the budget in seconds, is done.

        Raises:
            Interrupted: a signal came; the state is saved.
            TrainingError: a loss or a gradient is not finite; the state before that step is saved.
            StorageError: a row or a checkpoint cannot be written; the last checkpoint is whole.
        """
        config, state = self.config, self.state
        periods = (config.log.every, config.eval.every, config.checkpoint.every)
        reset_peak(self.device)
        self.model.train()
        if state.step == 0:
            self.evaluate()
        while not self.is_done():
            if self.growth_is_due():
                self.save()
                self.grow(stop)
            self.step()
            signum = self.stop_signal(stop)  # looked at once: whatever follows from it is settled before
            if (
                signum
                or self.is_done()
                or self.growth_is_due()
                or any(state.step % every == 0 for every in periods)
            ):
                self.sync_pending_steps()
            if state.step % config.log.every == 0 or self.is_done():
                self.log()
            if state.step % config.eval.every == 0 or self.is_done():
                self.evaluate()
            is_due = state.step % config.checkpoint.every == 0
            if (is_due and not state.skipped_in_a_row) or self.is_done() or signum:
                self.save()
            if signum and not self.is_done():
                raise Interrupted(signum)

    def stop_signal(self, stop: StopRequest) -> int:
        """The signal that came, to whichever process, or 0."""
        (signum,) = self.device.processes.max(stop.signum or 0)
        return int(signum)

    def is_done(self) -> bool:
        """Whether the plan is fulfilled or the budget in seconds spent."""
        seconds = self.config.budget.seconds
        spent = seconds is not None and self.state.train_seconds >= seconds
        return spent or self.state.step >= self.plan.steps

    def growth_is_due(self) -> bool:
        """Whether the next step belongs to a stage of more layers, or of a larger width."""
        stage = self.plan.schedule.at(self.state.step)
        return (stage.layers, stage.width) != (len(self.model.blocks), self.width)

    def grow(self, stop: StopRequest) -> None:
        """Expands the stored layers to those of the stage that begins, and their width to its own.

        Evaluates on both sides of it.

        Raises:
            Interrupted: a signal came while a map was learned; a checkpoint is of just before the growth.
        """
        stage = self.plan.stages[self.plan.schedule.index(self.state.step)]
        if stage.growth is None:
            raise RuntimeError(f"the first stage stores {stage.stage.layers} layers, not {len(self.model.blocks)}")
        ends: dict[str, float] = {"growth/from": len(self.model.blocks), "growth/to": stage.stage.layers}
        if stage.stage.width != self.width:
            ends |= {"growth/width_from": self.width, "growth/width_to": stage.stage.width}
        before = self.evaluate_model()
        self.row(ends | before)
        if stage.stage.width == self.width and self.plan.expander.learning is None:
            self.strategy.grow(self.optimizer, stage.growth, self.config.expander.moments)
        else:
            self.enlarge(stage.stage, stop)
        after = self.evaluate_model()
        reset_peak(self.device)  # the peak of a row is that of its stage
        self.row(ends | after)
        self.state.growths.append(
            {"step": self.state.step, **{key.removeprefix("growth/"): value for key, value in ends.items()}}
            | {"eval/loss_before": finite(before["eval/loss"]), "eval/loss_after": finite(after["eval/loss"])}
        )

    def enlarge(self, stage: Stage, stop: StopRequest) -> None:
        """A larger model, filled from the one that is there, with an optimizer afresh."""
        config, transfer, index = self.config, self.transfer, self.plan.schedule.stages.index(stage)
        if transfer is None:
            raise RuntimeError("this loop was given nothing that makes a model larger")

        def before_step() -> None:
            if signum := self.stop_signal(stop):
                raise Interrupted(signum)

        def filling(model: LanguageModel, source: LanguageModel) -> None:
            transfer.fill(model, source, index, before_step)

        self.optimizer.state.clear()  # before there is a larger one
        self.draw_dropout_of(stage.first_step * self.plan.step_cost.accumulation, broadcast=True)
        self.strategy.enlarge(config.model_config.narrowed(stage.width), stage.layers, filling)
        self.optimizer, self.width = build_optimizer(self.model, config.optim), stage.width

    def step(self) -> None:
        """One update: accumulated micro-steps, each with a depth of its own, clipped, at its learning rate.

        Nothing here waits for the device. What the step gave is read by `settle`, on a device that runs ahead
        when a row, an evaluation or a checkpoint needs it, elsewhere at once.
        """
        state = self.state
        if not self.pending_steps:
            self.clock = perf_counter()
        rng = random_state(self.device.device) if self.model.model_config.dropout else None
        lr = learning_rate(self.config.optim, state.step, self.plan.steps, self.plan.schedule.growth_steps)
        depths = self.depths(state.step)
        losses = self.backward(state.step, depths)
        self.pending_steps.append(PendingStep(state.step, lr, depths, rng, losses, self.update(losses, lr)))
        state.step += 1
        state.flops += self.flops(state.step - 1, depths)
        if not self.device.runs_ahead or self.config.budget.seconds is not None:  # the clock is looked at each time
            self.sync_pending_steps()
        self.tracker.step(self.common_columns() | {"train/depth": depths[-1]})

    def depths(self, step: int) -> list[int]:
        """Of its micro-steps."""
        first = step * self.plan.step_cost.accumulation
        return [self.plan.depth(first + part) for part in range(self.plan.step_cost.accumulation)]

    def flops(self, step: int, depths: list[int]) -> int:
        """Of a step whose micro-steps run these depths."""
        return sum(self.plan.flops_of(step, depth) for depth in depths)

    def tokens(self, step: int) -> int:
        """Read in all steps before this one."""
        return step * self.plan.step_cost.tokens_per_step

    def backward(self, step: int, depths: list[int]) -> Tensor:
        """Gradients of all micro-steps, summed up; returns the loss of each (micro-steps,)."""
        self.optimizer.zero_grad()
        losses = []
        for part, depth in enumerate(depths):
            batch = self.training.micro_batch(step, part)
            rows, seq_len = batch.tokens.shape
            count = num_pieces(self.footprint, rows, seq_len, depth, len(self.model.blocks))
            route = self.plan.forward_path(step * len(depths) + part, depth)
            self.draw_dropout_of(step * len(depths) + part)
            *first, last = batch.pieces(count)
            pieces = [
                self.backward_chunk(backward_chunk, route, count * len(depths), last=False)
                for backward_chunk in first
            ]
            pieces.append(self.backward_chunk(last, route, count * len(depths), last=part + 1 == len(depths)))
            losses.append(torch.stack(pieces).mean())
        return self.device.processes.mean(torch.stack(losses))

    def draw_dropout_of(self, micro_step: int, *, broadcast: bool = False) -> None:
        """Several processes have each dropout of their own, or all that of the first one.

        A function of (seed, micro-step, rank).
        """
        processes = self.device.processes
        if processes.place and self.model.model_config.dropout:
            rng = generator(
                self.plan.seed,
                Purpose.DROPOUT,
                micro_step * processes.world_size + (0 if broadcast else processes.rank),
            )
            torch.manual_seed(int(rng.integers(2**63)))

    def loss(self, batch: Batch, route: ForwardPath) -> Tensor:
        """Of the language model."""
        return self.strategy.loss(batch, route)

    def backward_chunk(self, batch: Batch, route: ForwardPath, pieces: int, *, last: bool) -> Tensor:
        """Adds a piece's share of the step's gradient, the last one of the step that of all processes too.

        Returns:
            Its loss.
        """
        with self.strategy.no_sync(last):
            with self.device.autocast():
                loss = self.loss(batch, route)
            (loss / pieces).backward()
        return loss.detach()

    def update(self, losses: Tensor, lr: float) -> Tensor:
        """Clipped gradients into weights, unless something is not finite, now or since `settle`; returns the norm.

        The device itself decides: AdamW's fused kernel leaves everything as it is where `blocked` is 1.
        """
        norm = self.strategy.grad_norm()
        if limit := self.config.optim.clip:
            clip_grads_with_norm_(self.model.parameters(), limit, norm)
        self.blocked = torch.maximum(self.blocked, (~torch.isfinite(losses.sum() + norm)).float())
        self.optimizer.lr = lr
        self.optimizer.step(self.blocked)
        return norm

    def sync_pending_steps(self) -> None:
        """Waits for the device and takes in what the launched steps gave.

        Raises:
            TrainingError: one of them was not finite, and is not to be skipped.
        """
        if not self.pending_steps:
            return
        pending_steps, self.pending_steps = self.pending_steps, []
        values = torch.stack([torch.cat([each.losses, each.grad_norm[None]]) for each in pending_steps]).tolist()
        seconds = perf_counter() - self.clock
        if self.config.budget.seconds is not None:  # all are to see the same end
            (seconds,) = self.device.processes.max(seconds)
        self.state.train_seconds += seconds
        for i, (each, (*losses, norm)) in enumerate(zip(pending_steps, values, strict=True)):
            self.newest, self.grad_norm = each, norm
            if not all(map(math.isfinite, (*losses, norm))):
                self.reject_step(pending_steps[i:], losses)
                break
            self.record_step(losses, norm)

    def record_step(self, losses: list[float], norm: float) -> None:
        """An update that was made."""
        state, loss = self.state, math.fsum(losses)
        state.loss_sum += loss
        state.loss_count += len(losses)
        state.loss_max = max(state.loss_max, loss / len(losses))
        state.norm_max = max(state.norm_max, norm)
        state.skipped_in_a_row = 0

    def reject_step(self, pending_steps: list[PendingStep], losses: list[float]) -> None:
        """Goes back to the first of these steps, keeps that state and a diagnosis; `on_nonfinite=skip` goes on.

        The weights are those before it, for the device let no step through from there on.

        Args:
            launched: the step that is refused, and those after it.
            losses: its micro-steps'.

        Raises:
            TrainingError: after a checkpoint of the state before the step.
        """
        state, refused = self.state, pending_steps[0]
        state.step = refused.step
        state.flops -= sum(self.flops(each.step, each.depths) for each in pending_steps)
        self.blocked.zero_()
        if refused.rng is not None:
            restore_random_state(refused.rng, self.device.device)
        self.backward(refused.step, refused.depths)  # once more, for its gradients
        if refused.rng is not None:
            restore_random_state(refused.rng, self.device.device)
        diagnosis = self.diagnosis(refused, losses)
        processes = self.device.processes
        path = processes.broadcast(diagnosis.write(self.refused_steps) if processes.is_main else self.refused_steps)
        if not state.skipped_in_a_row:  # else the last save has these weights, and older ones are better
            self.save()
        ways = "a lower optim.lr, a longer optim.warmup or precision=fp32 may help"
        if self.config.run.on_nonfinite == "stop":
            raise TrainingError(
                f"{diagnosis}. The step was not applied; see {files.shown(path)}. In a new run {ways}; this one "
                "leaves such steps out if on_nonfinite=skip stands beside resume="
            )
        if state.skipped_in_a_row == MOST_SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{diagnosis}, as in the {MOST_SKIPS_IN_A_ROW} steps before it; in a new run {ways}", goes_on=False
            )
        state.step += 1
        state.flops += self.flops(refused.step, refused.depths)  # they were spent
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        self.tracker.say(f"{diagnosis}; skipped, see {files.shown(path)}")

    def diagnosis(self, refused: PendingStep, losses: list[float]) -> Diagnosis:
        """Of the step whose gradients are there now."""
        step = refused.step
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        spoiled = self.device.processes.max(
            *(not self.strategy.local(grad).isfinite().all() for grad in gradients.values())
        )
        return Diagnosis(
            step=step,
            stage=self.plan.schedule.number(step, len(self.model.blocks), self.width),
            layers=len(self.model.blocks),
            learning_rate=refused.lr,
            depths=refused.depths,
            losses=losses,
            grad_norm=self.grad_norm,
            parameters=[name for name, is_spoiled in zip(gradients, spoiled, strict=True) if is_spoiled],
            rows=[self.training.batches.row_numbers(step, part).tolist() for part in range(len(losses))],
            data=self.state.data,
        )

    def log(self) -> None:
        """A training row: the loss averaged since the last one."""
        state = self.state
        seconds = state.train_seconds - state.logged_train_seconds
        tokens = self.tokens(state.step) - self.tokens(state.logged_step)
        self.row(
            {
                "train/loss": state.loss_sum / state.loss_count if state.loss_count else None,
                "train/loss_max": state.loss_max if state.loss_count else None,
                "train/lr": self.newest.lr,
                "train/grad_norm": self.grad_norm,
                "train/grad_norm_max": state.norm_max if state.loss_count else None,
                "train/depth": self.newest.depths[-1],
                "train/skipped_steps": state.skipped_steps,
                "perf/tokens_per_second": tokens / seconds,
                "perf/flops_per_second": (state.flops - state.logged_flops) / seconds,
                "perf/peak_memory_bytes": peak_bytes(self.device),
            }
        )
        state.loss_sum, state.loss_count, state.loss_max, state.norm_max = 0.0, 0, 0.0, 0.0
        state.logged_train_seconds, state.logged_flops = state.train_seconds, state.flops
        state.logged_step = state.step

    def evaluate_model(self) -> dict[str, float]:
        """The validation losses of the model as it stands: before a growth as the stage that ends has it."""
        step = self.state.step - 1 if self.growth_is_due() else self.state.step
        return evaluate(self.model, self.validation, self.device, self.plan.gates(step))

    def evaluate(self) -> None:
        """An evaluation row."""
        self.row(self.evaluate_model())

    def save(self) -> None:
        """A checkpoint, unless this step has one."""
        if self.saved_step == self.state.step:
            return
        self.refuse_spoiled_weights()
        self.common_columns()
        self.state.metrics_bytes = self.tracker.metrics_bytes()
        optimizer, rng = state_by_name(self.model, self.optimizer), random_state(self.device.device)
        self.checkpoints.save(
            Checkpoint(
                layers=len(self.model.blocks),
                width=self.width,
                weights=self.strategy.weights(),
                optimizer=optimizer,
                rng=rng,
                state=self.state,
                in_shards=self.strategy.in_shards,
            )
        )
        self.saved_step = self.state.step

    def refuse_spoiled_weights(self) -> None:
        """A loss and a gradient may be finite and the update too large all the same.

        Raises:
            TrainingError: a weight is not finite; the checkpoints that are there are older.
        """
        # not finite as soon as one weight is not
        sums = torch.stack([self.strategy.local(p).sum() for p in self.model.parameters()])
        (spoiled,) = self.device.processes.max(not sums.isfinite().all())
        if spoiled:
            raise TrainingError(
                f"step {self.state.step}: there are weights that are not finite, for an update was too large. "
                "They are not saved; checkpoints that are there are from before, but the same would come again. In "
                "a new run a lower optim.lr or a longer optim.warmup may help",
                goes_on=False,
            )

    def row(self, values: dict[str, Any]) -> None:
        """Hands a row to everything that records it; a value that is not finite is null there."""
        values = {k: finite(v) if isinstance(v, float) else v for k, v in values.items()}
        self.state.losses |= {k: v for k, v in values.items() if k == "train/loss" or k.startswith("eval/")}
        self.tracker.row(self.common_columns() | values)

    def common_columns(self) -> dict[str, Any]:
        """The columns of every row."""
        state = self.state
        state.total_seconds = perf_counter() - self.started
        return {
            "step": state.step,
            "micro_step": state.step * self.plan.step_cost.accumulation,
            "tokens": self.tokens(state.step),
            "flops": state.flops,
            "train_seconds": state.train_seconds,
            "total_seconds": state.total_seconds,
            "stage": self.plan.schedule.number(state.step, len(self.model.blocks), self.width),
            "layers": len(self.model.blocks),
        } | ({"width": self.width} if self.plan.schedule.grows_in_width else {})
