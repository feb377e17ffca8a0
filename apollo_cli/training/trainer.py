"""The training loop: grow, step, log, evaluate, save, in that order."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from apollo_cli import files
from apollo_cli.config.training import OptimArgs
from apollo_cli.data.prefetch import Prefetch
from apollo_cli.errors import TrainingError
from apollo_cli.growth.expanders import Growth, Ligo
from apollo_cli.growth.expansion import hand_over_norm
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.rng import Purpose, generator
from apollo_cli.growth.samplers import ForwardPath
from apollo_cli.growth.schedule import Stage, is_on_plateau
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.signals import Interrupted, StopRequest
from apollo_cli.threads import CoreWaits
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.checkpoint import Checkpoints
from apollo_cli.training.cuda_graphs import Graphs
from apollo_cli.training.device import Device
from apollo_cli.training.distributed.ddp import ParallelStrategy
from apollo_cli.training.init_from.transfer import WeightTransfer
from apollo_cli.training.init_from.weights import drawn_layers
from apollo_cli.training.memory import activation_limit, keep_freed_memory, peak_bytes, pieces_of, reset_peak
from apollo_cli.training.nonfinite import MAX_SKIPS_IN_A_ROW, Diagnosis, finite
from apollo_cli.training.optimizer import (
    TrainableModel,
    build_optimizer,
    learning_rate,
    parameter_groups,
    scaled_eps,
)
from apollo_cli.training.state import Checkpoint, TrainerState, restore_rng_state, rng_state

Measure = Callable[[Mapping[int, float], bool], dict[str, float]]
"""Validation losses of the model with these gates, at the target depth as well if the second argument is true."""


@dataclass(frozen=True)
class TrainArgs:
    """What the training loop reads of a config.

    Periods are in steps, `patience` and `window` in evaluations; `seconds` is a budget of training time.
    """

    optim: OptimArgs
    log_every: int
    eval_every: int
    checkpoint_every: int
    on_nonfinite: Literal["stop", "skip"]
    seconds: float | None = None
    target_loss: float | None = None
    patience: int | None = None
    keeps_best: bool = False
    moments: str = "keep"
    lr_scale: float = 1.0
    lr_steps: int = 1
    window: int = 1
    threshold: float = 0.0


def grow_layers(
    strategy: ParallelStrategy,
    optimizer: AdamW,
    growth: Growth,
    moments: str,
    optim: OptimArgs,
    rng: np.random.Generator,
) -> None:
    """Grows the model in depth, with the optimizer's state by the rule `moments`; `rng` draws the new layers."""
    layers, source = growth.matrix.shape
    config = strategy.model.model_config
    growth = replace(growth, branch_ratio=config.branch_ratio(source, layers))
    strategy.grow(optimizer, growth, moments, drawn_layers(strategy.language_model(), growth, rng))
    optimizer.eps = scaled_eps(config, layers, optim)


@dataclass(frozen=True)
class PendingStep:
    """A step that was launched on the device, which may not have computed it yet."""

    step: int  # updates before it
    lr: float  # its learning rate
    depths: list[int]  # of each micro-step
    rng: dict[str, Tensor] | None  # states of torch's generators before it, if dropout uses them
    losses: Tensor  # (micro-steps,), on the device
    grad_norm: Tensor  # before clipping, on the device


@dataclass
class Trainer:
    """The training loop and its state. Start reading at `run`."""

    args: TrainArgs
    plan: Plan
    device: Device
    strategy: ParallelStrategy
    optimizer: AdamW
    training: Prefetch
    measure: Measure
    tracker: Tracker
    checkpoints: Checkpoints
    refused_steps: Path  # a folder for diagnoses
    state: TrainerState
    after_step: Callable[[], None] = field(default=lambda: None, kw_only=True)
    width: float = field(default=1.0, kw_only=True)  # of the model now, as a share of the target's
    transfer: WeightTransfer | None = field(default=None, kw_only=True)  # None if nothing is enlarged
    # from the ends of the first stages to the plan of the rest; None where all ends are planned
    replan: Callable[[Sequence[int]], Plan] | None = field(default=None, kw_only=True)
    # of micro-steps, each with a gradient for all parameters, and of updates; None where nothing is captured
    graphs: Graphs | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.saved_step = self.state.step or None  # at step 0 there may be no checkpoint yet
        # a map may have been learned before
        self.started = perf_counter() - max(self.state.total_seconds, self.state.train_seconds)
        self.activation_limit = activation_limit(self.device)
        keep_freed_memory(self.device)
        is_alone_on_cpu = self.device.device.type == "cpu" and not self.device.processes.env
        self.core_waits = CoreWaits(torch.get_num_threads()) if is_alone_on_cpu else None
        self.pending_steps: list[PendingStep] = []
        self.blocked = torch.zeros((), device=self.device.device)  # 1 after a step that is not finite, until synced
        self.graph_lr = torch.zeros((), device=self.device.device)  # the rate of a captured update

    @property
    def model(self) -> TrainableModel:
        return self.strategy.model

    @property
    def layers(self) -> int:
        return len(self.model.blocks)

    def run(self, stop: StopRequest) -> None:
        """Trains until the plan is done, the budget in seconds is spent, or the validation loss ends the run.

        Raises:
            Interrupted: a signal came; the state is saved.
            TrainingError: a loss or a gradient is not finite; the state before that step is saved.
            StorageError: a row or a checkpoint cannot be written; the last checkpoint is undamaged.
        """
        args, state = self.args, self.state
        periods = (args.log_every, args.eval_every, args.checkpoint_every)
        reset_peak(self.device)
        self.model.train()
        if state.step == 0 and not state.losses:
            self.evaluate()
        while not self.is_done():
            if self.growth_is_due():
                self.save()
                self.grow(stop)
            self.step()
            self.after_step()
            signum = self.stop_signal(stop)  # read once a step, so that all below agree on it
            if (
                signum
                or self.is_done()
                or self.growth_is_due()
                or any(state.step % every == 0 for every in periods)
            ):
                self.sync_pending_steps()
            if state.step % args.log_every == 0 or self.is_done():
                self.log()
            if state.step % args.eval_every == 0 or self.is_done():
                self.evaluate()
            is_due = state.step % args.checkpoint_every == 0
            if (is_due and not state.skipped_in_a_row) or self.is_done() or signum:
                self.save()
            if signum and not self.is_done():
                raise Interrupted(signum)
        if not state.step:  # it has ended before its first step
            self.save()

    def stop_signal(self, stop: StopRequest) -> int:
        """The signal that any process received, or 0."""
        (signum,) = self.device.processes.max(stop.signum or 0)
        return int(signum)

    def is_done(self) -> bool:
        seconds = self.args.seconds
        is_spent = seconds is not None and self.state.train_seconds >= seconds
        return is_spent or bool(self.state.ended_by) or self.state.step >= self.plan.steps

    def growth_is_due(self) -> bool:
        """Whether the next step belongs to a stage of more layers or a larger width."""
        stage = self.plan.schedule.at(self.state.step)
        return (stage.layers, stage.width) != (self.layers, self.width)

    def grow(self, stop: StopRequest) -> None:
        """Grows the model to the layers and the width of the stage that begins; evaluates before and after.

        An Interrupted if a signal came while a map was learned; the last checkpoint is of just before the growth.
        """
        index = self.plan.schedule.index(self.state.step)
        stage = self.plan.stages[index]
        assert stage.growth is not None
        ends: dict[str, float] = {"growth/from": self.layers, "growth/to": stage.stage.layers}
        if stage.stage.width != self.width:
            ends |= {"growth/width_from": self.width, "growth/width_to": stage.stage.width}
        before, layers = self.evaluate_model(), self.layers
        self.row(ends | before)
        if self.graphs is not None:
            self.graphs.clear()
        if stage.stage.width == self.width and not isinstance(self.plan.expander, Ligo):
            rng = generator(self.plan.seed, Purpose.GROWTH, index)
            grow_layers(self.strategy, self.optimizer, stage.growth, self.args.moments, self.args.optim, rng)
            if not layers:
                self.begin_layers(stage.growth)
        else:
            self.enlarge(stage.stage, index, stop)
        after = self.evaluate_model()
        reset_peak(self.device)  # a row has the peak of its own stage
        self.row(ends | after)
        self.state.growths.append(
            {"step": self.state.step, **{key.removeprefix("growth/"): value for key, value in ends.items()}}
            | {"eval/loss_before": finite(before["eval/loss"]), "eval/loss_after": finite(after["eval/loss"])}
        )

    def begin_layers(self, growth: Growth) -> None:
        """What the first layers of a model need beyond their weights: their groups, and the norm below them."""
        model = self.strategy.language_model()
        self.optimizer.param_groups = parameter_groups(model, self.args.optim)
        if growth.zero_init and not model.model_config.architecture.pre_norm:
            below, above = model.get_submodule("embedding_norm"), model.blocks[-1].get_submodule("ffn_norm")
            hand_over_norm(below, above, self.optimizer, self.args.moments)

    def enlarge(self, stage: Stage, index: int, stop: StopRequest) -> None:
        """Replaces the model by a larger one, initialized from it, with a new optimizer."""
        transfer = self.transfer
        assert transfer is not None

        def before_step() -> None:
            if signum := self.stop_signal(stop):
                raise Interrupted(signum)

        def init_from(model: LanguageModel, source: LanguageModel) -> None:
            transfer.init_model(model, source, self.plan, index, before_step)

        for held in (self.optimizer.state, self.optimizer.averages):
            held.clear()  # frees its memory before the larger model takes more
        self.seed_dropout(stage.first_step * self.plan.step_cost.accumulation, same_on_all=True)
        self.strategy.enlarge(transfer.model_config.narrowed(stage.width), stage.layers, init_from)
        self.optimizer = build_optimizer(self.strategy.language_model(), self.args.optim)
        self.width = stage.width

    def step(self) -> None:
        """One update: accumulated micro-steps, each with its own depth, clipped, at its learning rate.

        Nothing here waits for the device but the capture of a graph. `sync_pending_steps` reads the losses: on a
        device that runs ahead when a row, an evaluation or a checkpoint needs them, elsewhere at once.
        """
        state = self.state
        if not self.pending_steps:
            self.clock = perf_counter()
        rng = rng_state(self.device.device) if self.model.model_config.dropout else None
        schedule = self.plan.schedule
        lr = learning_rate(
            self.args.optim, state.step, schedule.steps, schedule.growth_steps, schedule.first_planned
        )
        depths = self.depths(state.step)
        losses = self.backward(state.step, depths)
        self.pending_steps.append(PendingStep(state.step, lr, depths, rng, losses, self.update(losses, lr)))
        state.step += 1
        state.flops += self.flops(state.step - 1, depths)
        if not self.device.runs_ahead or self.args.seconds is not None:  # `is_done` reads the clock
            self.sync_pending_steps()
        self.tracker.step(self.common_columns() | {"train/depth": depths[-1]})

    def depths(self, step: int) -> list[int]:
        first = step * self.plan.step_cost.accumulation
        return [self.plan.depth(first + part) for part in range(self.plan.step_cost.accumulation)]

    def flops(self, step: int, depths: list[int]) -> int:
        return sum(self.plan.flops_of(step, depth) for depth in depths)

    def tokens(self, step: int) -> int:
        """Tokens read in all steps before this one."""
        return step * self.plan.step_cost.tokens_per_step

    def backward(self, step: int, depths: list[int]) -> Tensor:
        """Adds up the gradients of all micro-steps; returns the loss of each, (micro-steps,)."""
        self.optimizer.zero_grad(in_place=self.graphs is not None)
        losses = []
        for part, depth in enumerate(depths):
            batch = self.training.micro_batch(step, part)
            *first, last = pieces_of(batch, self.model.model_config, depth, self.device, self.activation_limit)
            count = len(first) + 1
            path = self.plan.forward_path(step * len(depths) + part, depth)
            self.seed_dropout(step * len(depths) + part)
            chunks = [self.backward_chunk(chunk, path, count * len(depths), last=False) for chunk in first]
            chunks.append(self.backward_chunk(last, path, count * len(depths), last=part + 1 == len(depths)))
            losses.append(torch.stack(chunks).mean())
        return self.device.processes.mean(torch.stack(losses))

    def seed_dropout(self, micro_step: int, *, same_on_all: bool = False) -> None:
        """Seeds torch's generator by (seed, micro-step, rank), where several processes would draw the same dropout.

        If `same_on_all`, all processes are seeded as rank 0.
        """
        processes = self.device.processes
        if processes.env and self.model.model_config.dropout:
            rank = 0 if same_on_all else processes.rank
            rng = generator(self.plan.seed, Purpose.DROPOUT, micro_step * processes.world_size + rank)
            torch.manual_seed(int(rng.integers(2**63)))

    def backward_chunk(self, batch: Batch, path: ForwardPath, chunks: int, *, last: bool) -> Tensor:
        """Adds the gradient of one of `chunks` chunks of a step, the last of which averages over processes.

        Returns its loss, ().
        """

        def work(tensors: Sequence[Tensor]) -> Tensor:
            with self.strategy.no_sync(last):
                with self.device.autocast():
                    loss = self.strategy.loss(type(batch)(*tensors), path)
                (loss / chunks).backward()
            return loss.detach()

        tensors = tuple(batch.tensors.values())
        if self.graphs is None or path.gates:  # a graph would keep the gates of its capture
            return work(tensors)
        return self.graphs.run((path.layers, path.frozen, chunks), work, tensors)

    def update(self, losses: Tensor, lr: float) -> Tensor:
        """Clips the gradients and updates the weights; returns the norm before clipping, ().

        A step that is not finite, and all steps after it until `sync_pending_steps`, are not applied. The device
        decides that: the optimizer changes nothing where `blocked` is 1.
        """

        def work(tensors: Sequence[Tensor]) -> Tensor:
            (losses,) = tensors
            norm = self.strategy.grad_norm()
            if limit := self.args.optim.clip:
                clip_grads_with_norm_(self.model.parameters(), limit, norm)
            torch.maximum(self.blocked, (~torch.isfinite(losses.sum() + norm)).float(), out=self.blocked)
            self.optimizer.step(self.blocked)
            return norm

        self.optimizer.lr, self.optimizer.lr_scales = lr, self.lr_scales()
        if self.graphs is None or self.optimizer.lr_scales:  # a graph would keep the factors of its capture
            return work([losses])
        self.optimizer.lr = self.graph_lr.fill_(lr)
        return self.graphs.run("update", work, [losses])

    def lr_scales(self) -> dict[Tensor, float]:
        """The factor of the rate of the newest layers: linearly from `lr_scale` to 1 over `lr_steps` steps."""
        args = self.args
        if args.lr_scale == 1:
            return {}
        begun = self.plan.stages[: self.plan.schedule.index(self.state.step) + 1]
        *_, (first, new) = [(0, ()), *((each.stage.first_step, each.growth.new) for each in begun if each.growth)]
        steps = self.state.step - first
        if steps >= args.lr_steps:
            return {}
        scale = 1 + (args.lr_scale - 1) * (1 - steps / args.lr_steps)
        return {p: scale for slot in new for p in self.model.blocks[slot].parameters()}

    def sync_pending_steps(self) -> None:
        """Waits for the device and records the pending steps; a TrainingError as `reject_step`."""
        if not self.pending_steps:
            return
        pending_steps, self.pending_steps = self.pending_steps, []
        values = torch.stack([torch.cat([each.losses, each.grad_norm[None]]) for each in pending_steps]).tolist()
        seconds = perf_counter() - self.clock
        if self.args.seconds is not None:  # all processes stop after the same step
            (seconds,) = self.device.processes.max(seconds)
        self.state.train_seconds += seconds
        for i, (each, (*losses, norm)) in enumerate(zip(pending_steps, values, strict=True)):
            self.newest, self.grad_norm = each, norm
            if not all(map(math.isfinite, (*losses, norm))):
                self.reject_step(pending_steps[i:], losses)
                break
            self.record_step(each, losses, norm)

    def record_step(self, applied: PendingStep, losses: list[float], norm: float) -> None:
        """Adds an applied step to the next training row."""
        state, loss = self.state, math.fsum(losses)
        state.optimizer_flops += self.plan.optimizer_flops_of(applied.step, applied.depths)
        state.loss_sum += loss
        state.loss_count += len(losses)
        state.loss_max = max(state.loss_max, loss / len(losses))
        state.norm_max = max(state.norm_max, norm)
        state.skipped_in_a_row = 0

    def reject_step(self, pending_steps: list[PendingStep], losses: list[float]) -> None:
        """Goes back to a step that is not finite, saves the state before it and a diagnosis, stops or skips it.

        The weights are those before it, for the device has applied no step since. `pending_steps` has the step and
        those after it, `losses` those of its micro-steps.

        Raises:
            TrainingError: on_nonfinite=stop, or too many skipped steps in a row.
        """
        state, refused = self.state, pending_steps[0]
        state.step = refused.step
        state.flops -= sum(self.flops(each.step, each.depths) for each in pending_steps)
        self.blocked.zero_()
        if refused.rng is not None:
            restore_rng_state(refused.rng, self.device.device)
        self.backward(refused.step, refused.depths)  # again, for its gradients
        if refused.rng is not None:
            restore_rng_state(refused.rng, self.device.device)
        diagnosis = self.diagnosis(refused, losses)
        processes = self.device.processes
        path = processes.broadcast(diagnosis.write(self.refused_steps) if processes.is_main else self.refused_steps)
        # after a skipped step the newest checkpoint has these weights already; one more would push out an older one
        if not state.skipped_in_a_row:
            self.save()
        in_fp32 = " or precision=fp32" if self.device.bf16 else ""
        ways = f"a lower optim.lr or a longer optim.warmup{in_fp32} may help"
        if self.args.on_nonfinite == "stop":
            raise TrainingError(
                f"{diagnosis}. The step was not applied; see {files.shown(path)}. In a new run {ways}; to skip "
                "such steps in this one, resume with on_nonfinite=skip"
            )
        if state.skipped_in_a_row == MAX_SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{diagnosis}, as in the {MAX_SKIPS_IN_A_ROW} steps before it; in a new run {ways}", resumable=False
            )
        state.step += 1
        state.flops += self.flops(refused.step, refused.depths)  # spent all the same
        state.optimizer_flops += self.plan.optimizer_flops_of(refused.step, refused.depths)
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        self.tracker.say(f"{diagnosis}; skipped, see {files.shown(path)}")

    def diagnosis(self, refused: PendingStep, losses: list[float]) -> Diagnosis:
        step = refused.step
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        nonfinite = self.device.processes.max(
            *(not self.strategy.local(grad).isfinite().all() for grad in gradients.values())
        )
        return Diagnosis(
            step=step,
            stage=self.plan.schedule.number(step, self.layers, self.width),
            layers=self.layers,
            learning_rate=refused.lr,
            depths=refused.depths,
            losses=losses,
            grad_norm=self.grad_norm,
            parameters=[name for name, is_nonfinite in zip(gradients, nonfinite, strict=True) if is_nonfinite],
            rows=[self.training.batches.row_numbers(step, part).tolist() for part in range(len(losses))],
            data=self.state.data,
        )

    def log(self) -> None:
        """A training row: the mean loss since the last one."""
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
            | ({} if self.graphs is None else {"perf/capture_seconds": self.graphs.seconds})
        )
        state.loss_sum, state.loss_count, state.loss_max, state.norm_max = 0.0, 0, 0.0, 0.0
        state.logged_train_seconds, state.logged_flops = state.train_seconds, state.flops
        state.logged_step = state.step
        if self.core_waits:
            self.core_waits.look(self.tracker.say)

    @property
    def gates(self) -> Mapping[int, float]:
        """The gates of the stored layers as they are now, before a growth those at the end of the stage before."""
        step = self.state.step
        return self.plan.gates(step, self.plan.schedule.index(step - 1) if self.growth_is_due() else None)

    def evaluate_model(self) -> dict[str, float]:
        """The validation losses of the model with its gates."""
        losses = self.measure(self.gates, True)
        if self.args.optim.ema is not None:
            with self.optimizer.averaged():
                losses["eval/loss_ema"] = self.measure(self.gates, False)["eval/loss"]
        return losses

    def evaluate(self) -> None:
        """Records the validation losses; keeps the best checkpoint, ends the stage or the run where they say so."""
        losses = self.evaluate_model()
        self.row(losses)
        if (found := losses.get("eval/loss")) is None:
            return
        (loss,) = self.device.processes.max(found if math.isfinite(found) else math.inf)  # all decide the same
        if self.replan and self.state.step % self.args.eval_every == 0:
            self.end_on_plateau(loss, self.replan)
        if self.is_whole:
            self.judge(loss)

    @property
    def is_whole(self) -> bool:
        """Whether the model has its last size, and no gate that an exported model would not have."""
        last = self.plan.schedule.stages[-1]
        return (self.layers, self.width) == (last.layers, last.width) and not self.gates

    def end_on_plateau(self, loss: float, replan: Callable[[Sequence[int]], Plan]) -> None:
        """Ends the current stage if this validation loss puts it on a plateau, and plans the steps that remain."""
        args, state, schedule = self.args, self.state, self.plan.schedule
        index, first = schedule.index(state.step), schedule.at(state.step).first_step
        evaluations = state.step // args.eval_every - first // args.eval_every  # in this stage
        if not evaluations or index == len(schedule.stages) - 1:
            return
        state.stage_losses = [*state.stage_losses, finite(loss)][-evaluations:]
        losses = [math.inf if each is None else each for each in state.stage_losses]
        if is_on_plateau(losses, args.window, args.threshold):
            self.plan = replan((*schedule.ended(state.step), state.step))
            state.planned_steps = self.plan.steps
            self.tracker.say(
                f"step {state.step}: stage {index + 1} ends, for eval/loss fell by no more than "
                f"{args.threshold:.2%} in {files.counted(args.window, 'evaluation')}; "
                f"{self.plan.steps:,} steps are planned"
            )

    def judge(self, loss: float) -> None:
        """Compares a validation loss of the whole model with the best one, and with what ends the run."""
        args, state = self.args, self.state
        if loss < state.best.get("eval/loss", math.inf):
            state.best, state.stale_evaluations = {"step": state.step, "eval/loss": loss}, 0
        elif state.step > self.plan.schedule.stages[-1].first_step:
            state.stale_evaluations += 1
        if args.target_loss is not None and loss <= args.target_loss:
            state.ended_by = "target_loss"
            self.tracker.say(f"step {state.step}: eval/loss has reached budget.target_loss={args.target_loss:g}")
        elif args.patience is not None and state.stale_evaluations >= args.patience:
            state.ended_by = "patience"
            self.tracker.say(
                f"step {state.step}: {args.patience} evaluations without a lower eval/loss than "
                f"{state.best.get('eval/loss', math.inf):.4f}, as many as budget.patience"
            )
        if state.ended_by and state.logged_step != state.step:  # the last row of training
            self.log()
        if args.keeps_best and state.best.get("step") == state.step:
            self.save(is_best=True)

    def save(self, *, is_best: bool = False) -> None:
        """Writes a checkpoint, unless this step has one."""
        if self.saved_step == self.state.step:
            return
        self.check_weights()
        self.state.total_seconds = perf_counter() - self.started
        self.state.metrics_bytes = self.tracker.metrics_bytes()
        self.state.stage_ends = list(self.plan.schedule.ended(self.state.step))
        self.state.gated = bool(self.gates)
        self.checkpoints.save(
            Checkpoint(
                layers=self.layers,
                width=self.width,
                tensors=self.strategy.tensors(self.optimizer),
                rng=rng_state(self.device.device),
                state=self.state,
            ),
            is_best=is_best,
        )
        self.saved_step = self.state.step

    def check_weights(self) -> None:
        """Raises a TrainingError if an update made a weight infinite, though loss and gradient were finite."""
        sums = torch.stack([self.strategy.local(p).sum() for p in self.model.parameters()])  # NaN if a weight is
        (is_nonfinite,) = self.device.processes.max(not sums.isfinite().all())
        if is_nonfinite:
            raise TrainingError(
                f"step {self.state.step}: there are weights that are not finite, for an update was too large. "
                "They are not saved, and a resume from an earlier checkpoint would end the same way. In a new run "
                "a lower optim.lr or a longer optim.warmup may help",
                resumable=False,
            )

    def row(self, values: dict[str, Any]) -> None:
        """Records a row; a value that is not finite becomes null."""
        values = {k: finite(v) if isinstance(v, float) else v for k, v in values.items()}
        self.state.losses |= {k: v for k, v in values.items() if k == "train/loss" or k.startswith("eval/")}
        self.tracker.row(self.common_columns() | values)

    def common_columns(self) -> dict[str, Any]:
        state = self.state
        state.total_seconds = perf_counter() - self.started
        by_optimizer = {"optimizer_flops": state.optimizer_flops} if self.plan.step_cost.optimizer_flops else {}
        return (
            {
                "step": state.step,
                "micro_step": state.step * self.plan.step_cost.accumulation,
                "tokens": self.tokens(state.step),
                "flops": state.flops,
                "train_seconds": state.train_seconds,
                "total_seconds": state.total_seconds,
                "stage": self.plan.schedule.number(state.step, self.layers, self.width),
                "layers": self.layers,
            }
            | by_optimizer
            | ({"width": self.width} if self.plan.schedule.grows_in_width else {})
            | ({"gated": True} if self.gates else {})
        )
