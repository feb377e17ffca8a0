"""The state of a run: counters, weights, moments and random number generators. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class TrainerState:
    """The counters of a run, all of which are in every checkpoint."""

    step: int = 0  # optimizer updates done
    flops: int = 0  # model FLOPs done, exact
    optimizer_flops: int = 0  # FLOPs of the optimizer's own matrix products, see `Plan.optimizer_flops`
    train_seconds: float = 0.0  # spent in steps, without start-up, evaluations and checkpoints
    total_seconds: float = 0.0  # since the first start, without the time between an interruption and its resume
    loss_sum: float = 0.0  # sum of the losses of the micro-steps since the last training row
    loss_count: int = 0  # number of those micro-steps
    loss_max: float = 0.0  # highest loss of a step since the last training row
    norm_max: float = 0.0  # highest gradient norm before clipping since the last training row
    skipped_steps: int = 0  # steps that were not applied because a value was not finite
    skipped_in_a_row: int = 0  # those since the last update
    # step, layers and validation loss before and after each growth
    growths: list[dict[str, Any]] = field(default_factory=list)
    logged_train_seconds: float = 0.0  # `train_seconds` at the last training row
    logged_flops: int = 0  # `flops` at the last training row
    logged_step: int = 0  # `step` at the last training row
    losses: dict[str, float] = field(default_factory=dict)  # the newest `train/loss` and `eval/...` values
    # `step` and `eval/loss` of the lowest validation loss of the whole model, at step 0, the evaluations of
    # `eval.every` and the end; the one just after a growth is not judged. Empty before one
    best: dict[str, float] = field(default_factory=dict)
    stale_evaluations: int = 0  # evaluations in the last stage since then
    ended_by: str = ""  # why the run ended before its length was reached, `target_loss` or `patience`; empty if not
    first_sample: int = 0  # rows of the corpus that were read before the run, by the run that it begins from
    metrics_bytes: int = 0  # length of metrics.jsonl
    data: str = ""  # fingerprint of the corpus
    run_id: str = ""  # of the run in W&B
    stage_ends: list[int] = field(default_factory=list)  # the steps at which the stages before this one ended
    # `eval/loss` at each evaluation of this stage, where it may end on a plateau; None for one that was not finite
    stage_losses: list[float | None] = field(default_factory=list)
    planned_steps: int = 0  # length of the run, which a budget in seconds cannot reproduce
    devices: int = 1  # number of devices that share a micro-step
    gated: bool = False  # whether new layers still run through gates, without which the weights are another model


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    layers: int  # stored blocks
    width: float  # of the model, as a share of the target's
    # weights by name and the optimizer's state as `parameter/key`; to be saved, what this process has of them
    tensors: Mapping[str, Tensor]
    rng: dict[str, Tensor]  # states of torch's random number generators
    state: TrainerState  # counters of the run

    @property
    def num_bytes(self) -> int:
        """About what it takes on disk."""
        return sum(t.nbytes for t in self.tensors.values()) + 1_000 * len(self.tensors)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators of the CPU and of `device`; after the start of a run only dropout uses them."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(*_index(device))
    return state


def restore_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type], *_index(device))


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """CUDA has a generator for each device, mps has one."""
    return (device,) if device.type == "cuda" else ()
