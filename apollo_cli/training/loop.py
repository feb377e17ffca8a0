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
from apollo_cli.config import Config
from apollo_cli.data.batches import EvaluationBatches
from apollo_cli.data.prefetch import Prefetch
from apollo_cli.errors import TrainingError
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.randomness import Purpose, generator
from apollo_cli.growth.routes import Route
from apollo_cli.growth.schedule import Stage
from apollo_cli.models.footprint import Footprint
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.checkpoint import Checkpoint, Checkpoints, Progress, random_state, restore_random_state
from apollo_cli.training.device import Device
from apollo_cli.training.diagnosis import MOST_SKIPS_IN_A_ROW, Diagnosis, finite
from apollo_cli.training.evaluate import evaluate
from apollo_cli.training.interrupt import Interrupted, StopRequest
from apollo_cli.training.memory import forget_peak, num_pieces, peak_bytes
from apollo_cli.training.optimizer import build_optimizer, learning_rate, state_by_name
from apollo_cli.training.placement import Placement
from apollo_cli.training.transfer import Transfer


@dataclass(frozen=True)
class Launched:
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
    luck: dict[str, Tensor] | None
    losses: Tensor
    grad_norm: Tensor


@dataclass
class Loop:
    """One run's moving parts. `run` is the whole story; the methods below are its sentences."""

    config: Config
    plan: Plan
    device: Device
    placement: Placement
    optimizer: AdamW
    training: Prefetch
    validation: EvaluationBatches
    tracker: Tracker
    checkpoints: Checkpoints
    refused_steps: Path
    progress: Progress
    width: float = field(default=1.0, kw_only=True)  # of the model now, as a share of the target's
    transfer: Transfer | None = field(default=None, kw_only=True)  # None where nothing grows

    def __post_init__(self) -> None:
        self.saved_step = self.progress.step
        self.started = perf_counter() - self.progress.total_seconds
        self.launched: list[Launched] = []
        self.blocked = torch.zeros((), device=self.device.device)  # 1 from a step that is not finite to `settle`

    @property
    def model(self) -> LanguageModel:
        """With the layers that are stored now."""
        return self.placement.model

    @property
    def footprint(self) -> Footprint:
        """Of the model as wide as it is now."""
        return Footprint(self.model.shape, self.device.device.type, self.device.bf16)

    def run(self, stop: StopRequest) -> None:
        """Trains until the plan, or the budget in seconds, is done.

        Raises:
            Interrupted: a signal came; the state is saved.
            TrainingError: a loss or a gradient is not finite; the state before that step is saved.
            StorageError: a row or a checkpoint cannot be written; the last checkpoint is whole.
        """
        config, progress = self.config, self.progress
        periods = (config.log.every, config.eval.every, config.checkpoint.every)
        forget_peak(self.device)
        self.model.train()
        if progress.step == 0:
            self.evaluate()
        while not self.done():
            if self.grows():
                self.save()
                self.grow(stop)
            self.step()
            signum = self.asked_to_stop(stop)  # looked at once: whatever follows from it is settled before
            if signum or self.done() or self.grows() or any(progress.step % every == 0 for every in periods):
                self.settle()
            if progress.step % config.log.every == 0 or self.done():
                self.log()
            if progress.step % config.eval.every == 0 or self.done():
                self.evaluate()
            is_due = progress.step % config.checkpoint.every == 0
            if (is_due and not progress.skipped_in_a_row) or self.done() or signum:
                self.save()
            if signum and not self.done():
                raise Interrupted(signum)

    def asked_to_stop(self, stop: StopRequest) -> int:
        """The signal that came, to whichever process, or 0."""
        (signum,) = self.device.ranks.highest(stop.signum or 0)
        return int(signum)

    def done(self) -> bool:
        """Whether the plan is fulfilled or the budget in seconds spent."""
        seconds = self.config.budget.seconds
        spent = seconds is not None and self.progress.train_seconds >= seconds
        return spent or self.progress.step >= self.plan.steps

    def grows(self) -> bool:
        """Whether the next step belongs to a stage of more layers, or of a larger width."""
        stage = self.plan.schedule.at(self.progress.step)
        return (stage.layers, stage.width) != (len(self.model.blocks), self.width)

    def grow(self, stop: StopRequest) -> None:
        """Expands the stored layers to those of the stage that begins, and their width to its own.

        Evaluates on both sides of it.

        Raises:
            Interrupted: a signal came while a map was learned; a checkpoint is of just before the growth.
        """
        stage = self.plan.stages[self.plan.schedule.index(self.progress.step)]
        if stage.growth is None:
            raise RuntimeError(f"the first stage stores {stage.stage.layers} layers, not {len(self.model.blocks)}")
        ends: dict[str, float] = {"growth/from": len(self.model.blocks), "growth/to": stage.stage.layers}
        if stage.stage.width != self.width:
            ends |= {"growth/width_from": self.width, "growth/width_to": stage.stage.width}
        before = self.measured()
        self.row(ends | before)
        if stage.stage.width == self.width and self.plan.expander.learning is None:
            self.placement.grow(self.optimizer, stage.growth, self.config.expander.moments)
        else:
            self.enlarge(stage.stage, stop)
        after = self.measured()
        forget_peak(self.device)  # the peak of a row is that of its stage
        self.row(ends | after)
        self.progress.growths.append(
            {"step": self.progress.step, **{key.removeprefix("growth/"): value for key, value in ends.items()}}
            | {"eval/loss_before": finite(before["eval/loss"]), "eval/loss_after": finite(after["eval/loss"])}
        )

    def enlarge(self, stage: Stage, stop: StopRequest) -> None:
        """A larger model, filled from the one that is there, with an optimizer afresh."""
        config, transfer, index = self.config, self.transfer, self.plan.schedule.stages.index(stage)
        if transfer is None:
            raise RuntimeError("this loop was given nothing that makes a model larger")

        def before_step() -> None:
            if signum := self.asked_to_stop(stop):
                raise Interrupted(signum)

        def filling(model: LanguageModel, source: LanguageModel) -> None:
            transfer.fill(model, source, index, before_step)

        self.optimizer.state.clear()  # before there is a larger one
        self.draw_dropout_of(stage.first_step * self.plan.work.accumulation, of_first=True)
        self.placement.enlarge(config.shape.narrowed(stage.width), stage.layers, filling)
        self.optimizer, self.width = build_optimizer(self.model, config.optim), stage.width

    def step(self) -> None:
        """One update: accumulated micro-steps, each with a depth of its own, clipped, at its learning rate.

        Nothing here waits for the device. What the step gave is read by `settle`, on a device that runs ahead
        when a row, an evaluation or a checkpoint needs it, elsewhere at once.
        """
        progress = self.progress
        if not self.launched:
            self.clock = perf_counter()
        luck = random_state(self.device.device) if self.model.shape.dropout else None
        lr = learning_rate(self.config.optim, progress.step, self.plan.steps, self.plan.schedule.growth_steps)
        depths = self.depths(progress.step)
        losses = self.backward(progress.step, depths)
        self.launched.append(Launched(progress.step, lr, depths, luck, losses, self.update(losses, lr)))
        progress.step += 1
        progress.flops += self.flops(progress.step - 1, depths)
        if not self.device.runs_ahead or self.config.budget.seconds is not None:  # the clock is looked at each time
            self.settle()
        self.tracker.step(self.standing() | {"train/depth": depths[-1]})

    def depths(self, step: int) -> list[int]:
        """Of its micro-steps."""
        first = step * self.plan.work.accumulation
        return [self.plan.depth(first + part) for part in range(self.plan.work.accumulation)]

    def flops(self, step: int, depths: list[int]) -> int:
        """Of a step whose micro-steps run these depths."""
        return sum(self.plan.flops_of(step, depth) for depth in depths)

    def tokens(self, step: int) -> int:
        """Read in all steps before this one."""
        return step * self.plan.work.tokens_per_step

    def backward(self, step: int, depths: list[int]) -> Tensor:
        """Gradients of all micro-steps, summed up; returns the loss of each (micro-steps,)."""
        self.optimizer.zero_grad()
        losses = []
        for part, depth in enumerate(depths):
            batch = self.training.micro_batch(step, part)
            rows, seq_len = batch.tokens.shape
            count = num_pieces(self.footprint, rows, seq_len, depth, len(self.model.blocks))
            route = self.plan.route(step * len(depths) + part, depth)
            self.draw_dropout_of(step * len(depths) + part)
            *first, last = batch.pieces(count)
            pieces = [self.piece(piece, route, count * len(depths), last=False) for piece in first]
            pieces.append(self.piece(last, route, count * len(depths), last=part + 1 == len(depths)))
            losses.append(torch.stack(pieces).mean())
        return self.device.ranks.mean(torch.stack(losses))

    def draw_dropout_of(self, micro_step: int, *, of_first: bool = False) -> None:
        """Several processes have each dropout of their own, or all that of the first one.

        A function of (seed, micro-step, rank).
        """
        ranks = self.device.ranks
        if ranks.place and self.model.shape.dropout:
            luck = generator(
                self.plan.seed, Purpose.DROPOUT, micro_step * ranks.size + (0 if of_first else ranks.rank)
            )
            torch.manual_seed(int(luck.integers(2**63)))

    def loss(self, batch: Batch, route: Route) -> Tensor:
        """Of the language model."""
        return self.placement.loss(batch, route)

    def piece(self, batch: Batch, route: Route, pieces: int, *, last: bool) -> Tensor:
        """Adds a piece's share of the step's gradient, the last one of the step that of all processes too.

        Returns:
            Its loss.
        """
        with self.placement.summing(last):
            with self.device.autocast():
                loss = self.loss(batch, route)
            (loss / pieces).backward()
        return loss.detach()

    def update(self, losses: Tensor, lr: float) -> Tensor:
        """Clipped gradients into weights, unless something is not finite, now or since `settle`; returns the norm.

        The device itself decides: AdamW's fused kernel leaves everything as it is where `blocked` is 1.
        """
        norm = self.placement.grad_norm()
        if limit := self.config.optim.clip:
            clip_grads_with_norm_(self.model.parameters(), limit, norm)
        self.blocked = torch.maximum(self.blocked, (~torch.isfinite(losses.sum() + norm)).float())
        self.optimizer.lr = lr
        self.optimizer.step(self.blocked)
        return norm

    def settle(self) -> None:
        """Waits for the device and takes in what the launched steps gave.

        Raises:
            TrainingError: one of them was not finite, and is not to be skipped.
        """
        if not self.launched:
            return
        launched, self.launched = self.launched, []
        values = torch.stack([torch.cat([each.losses, each.grad_norm[None]]) for each in launched]).tolist()
        seconds = perf_counter() - self.clock
        if self.config.budget.seconds is not None:  # all are to see the same end
            (seconds,) = self.device.ranks.highest(seconds)
        self.progress.train_seconds += seconds
        for i, (each, (*losses, norm)) in enumerate(zip(launched, values, strict=True)):
            self.newest, self.grad_norm = each, norm
            if not all(map(math.isfinite, (*losses, norm))):
                self.refuse(launched[i:], losses)
                break
            self.take_in(losses, norm)

    def take_in(self, losses: list[float], norm: float) -> None:
        """An update that was made."""
        progress, loss = self.progress, math.fsum(losses)
        progress.loss_sum += loss
        progress.loss_count += len(losses)
        progress.loss_max = max(progress.loss_max, loss / len(losses))
        progress.norm_max = max(progress.norm_max, norm)
        progress.skipped_in_a_row = 0

    def refuse(self, launched: list[Launched], losses: list[float]) -> None:
        """Goes back to the first of these steps, keeps that state and a diagnosis; `on_nonfinite=skip` goes on.

        The weights are those before it, for the device let no step through from there on.

        Args:
            launched: the step that is refused, and those after it.
            losses: its micro-steps'.

        Raises:
            TrainingError: after a checkpoint of the state before the step.
        """
        progress, refused = self.progress, launched[0]
        progress.step = refused.step
        progress.flops -= sum(self.flops(each.step, each.depths) for each in launched)
        self.blocked.zero_()
        if refused.luck is not None:
            restore_random_state(refused.luck, self.device.device)
        self.backward(refused.step, refused.depths)  # once more, for its gradients
        if refused.luck is not None:
            restore_random_state(refused.luck, self.device.device)
        diagnosis = self.diagnosis(refused, losses)
        ranks = self.device.ranks
        path = ranks.of_first(diagnosis.write(self.refused_steps) if ranks.is_first else self.refused_steps)
        if not progress.skipped_in_a_row:  # else the last save has these weights, and older ones are better
            self.save()
        ways = "a lower optim.lr, a longer optim.warmup or precision=fp32 may help"
        if self.config.run.on_nonfinite == "stop":
            raise TrainingError(
                f"{diagnosis}. The step was not applied; see {files.shown(path)}. In a new run {ways}; this one "
                "leaves such steps out if on_nonfinite=skip stands beside resume="
            )
        if progress.skipped_in_a_row == MOST_SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{diagnosis}, as in the {MOST_SKIPS_IN_A_ROW} steps before it; in a new run {ways}", goes_on=False
            )
        progress.step += 1
        progress.flops += self.flops(refused.step, refused.depths)  # they were spent
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        self.tracker.say(f"{diagnosis}; skipped, see {files.shown(path)}")

    def diagnosis(self, refused: Launched, losses: list[float]) -> Diagnosis:
        """Of the step whose gradients are there now."""
        step = refused.step
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        spoiled = self.device.ranks.highest(
            *(not self.placement.local(grad).isfinite().all() for grad in gradients.values())
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
            data=self.progress.data,
        )

    def log(self) -> None:
        """A training row: the loss averaged since the last one."""
        progress = self.progress
        seconds = progress.train_seconds - progress.logged_train_seconds
        tokens = self.tokens(progress.step) - self.tokens(progress.logged_step)
        self.row(
            {
                "train/loss": progress.loss_sum / progress.loss_count if progress.loss_count else None,
                "train/loss_max": progress.loss_max if progress.loss_count else None,
                "train/lr": self.newest.lr,
                "train/grad_norm": self.grad_norm,
                "train/grad_norm_max": progress.norm_max if progress.loss_count else None,
                "train/depth": self.newest.depths[-1],
                "train/skipped_steps": progress.skipped_steps,
                "perf/tokens_per_second": tokens / seconds,
                "perf/flops_per_second": (progress.flops - progress.logged_flops) / seconds,
                "perf/peak_memory_bytes": peak_bytes(self.device),
            }
        )
        progress.loss_sum, progress.loss_count, progress.loss_max, progress.norm_max = 0.0, 0, 0.0, 0.0
        progress.logged_train_seconds, progress.logged_flops = progress.train_seconds, progress.flops
        progress.logged_step = progress.step

    def measured(self) -> dict[str, float]:
        """The validation losses of the model as it stands: before a growth as the stage that ends has it."""
        step = self.progress.step - 1 if self.grows() else self.progress.step
        return evaluate(self.model, self.validation, self.device, self.plan.gates(step))

    def evaluate(self) -> None:
        """An evaluation row."""
        self.row(self.measured())

    def save(self) -> None:
        """A checkpoint, unless this step has one."""
        if self.saved_step == self.progress.step:
            return
        self.refuse_spoiled_weights()
        self.standing()
        self.progress.metrics_bytes = self.tracker.metrics_bytes()
        optimizer, luck = state_by_name(self.model, self.optimizer), random_state(self.device.device)
        self.checkpoints.save(
            Checkpoint(
                layers=len(self.model.blocks),
                width=self.width,
                weights=self.placement.weights(),
                optimizer=optimizer,
                rng=luck,
                progress=self.progress,
                in_shards=self.placement.in_shards,
            )
        )
        self.saved_step = self.progress.step

    def refuse_spoiled_weights(self) -> None:
        """A loss and a gradient may be finite and the update too large all the same.

        Raises:
            TrainingError: a weight is not finite; the checkpoints that are there are older.
        """
        # not finite as soon as one weight is not
        sums = torch.stack([self.placement.local(p).sum() for p in self.model.parameters()])
        (spoiled,) = self.device.ranks.highest(not sums.isfinite().all())
        if spoiled:
            raise TrainingError(
                f"step {self.progress.step}: there are weights that are not finite, for an update was too large. "
                "They are not saved; checkpoints that are there are from before, but the same would come again. In "
                "a new run a lower optim.lr or a longer optim.warmup may help",
                goes_on=False,
            )

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
            "tokens": self.tokens(progress.step),
            "flops": progress.flops,
            "train_seconds": progress.train_seconds,
            "total_seconds": progress.total_seconds,
            "stage": self.plan.schedule.number(progress.step, len(self.model.blocks), self.width),
            "layers": len(self.model.blocks),
        } | ({"width": self.width} if self.plan.schedule.grows_in_width else {})
