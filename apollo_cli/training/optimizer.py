"""The learning rate as a pure function of the step; the optimizer of a model and its state by name."""

from collections.abc import Sequence
from math import cos, pi
from typing import Any

import numpy as np
import torch
from torch import nn

from apollo_cli.config.training import OptimArgs
from apollo_cli.training.adamw import AdamW


def learning_rate(optim: OptimArgs, step: int, steps: int, growth_steps: Sequence[int] = ()) -> float:
    """The learning rate of update `step`, counted from 0, in a run of `steps`.

    Warmup rises linearly and reaches the peak at its last step. Then `cosine` and `linear` fall to
    `final_lr` x peak at the end, `wsd` stays and falls linearly over the last `decay` share (Hu 2024,
    arXiv 2404.06395), `constant` stays, and `piecewise` goes in straight lines through its `knots`, each at a
    share of all steps and of the peak (StackBERT, Gong 2019). With `at_growth=rewarm` every growth begins a new
    warmup to the value that the schedule has there; with `restart` warmup and schedule begin anew, over the steps
    that are left (G_stack); with `rewind` they do so without a warmup, at the peak (MSG). With `continue` nothing
    happens.
    """
    growth = max((g for g in growth_steps if g <= step), default=0)
    begin = growth if optim.at_growth in ("restart", "rewind") else 0  # of the schedule
    warmup = 0 if growth and optim.at_growth == "rewind" else round(optim.warmup * steps)
    last_start = 0 if optim.at_growth == "continue" else growth
    ramp = min(1.0, (step - last_start + 1) / warmup) if warmup else 1.0
    progress = max(0.0, (step - begin - warmup) / max(1, steps - begin - warmup))
    match optim.schedule:
        case "cosine":
            height = (1 + cos(pi * progress)) / 2
        case "linear":
            height = 1 - progress
        case "wsd":
            height = min(1.0, (steps - step) / max(1, round(optim.decay * steps)))
        case "constant":
            return optim.lr * ramp
        case "piecewise":
            reached, heights = zip((optim.warmup, 1.0), *(optim.knots or ()), strict=True)
            height = float(np.interp(step / steps, reached, heights))
    return optim.lr * ramp * (optim.final_lr + (1 - optim.final_lr) * height)


def build_optimizer(model: nn.Module, optim: OptimArgs) -> AdamW:
    """AdamW over all parameters; matrices and embeddings decay, norms and biases do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def state_by_name(model: nn.Module, optimizer: AdamW) -> dict[str, Any]:
    """The optimizer's state under the names of its parameters: order and growth cannot confuse it."""
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


def restore_state(model: nn.Module, optimizer: AdamW, state: dict[str, Any]) -> None:
    """The inverse of `state_by_name`, onto the devices of the parameters.

    Raises:
        ValueError: it is the state of another model.
    """
    for name, parameter in model.named_parameters():
        if name in state:
            expected = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            if {key: value.shape for key, value in state[name].items()} != expected:
                raise ValueError(f"the state of {name} has other parts or shapes")
            if any(value.dtype != torch.float32 for value in state[name].values()):
                raise ValueError(f"the state of {name} is not in fp32")
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state[name].items()}
