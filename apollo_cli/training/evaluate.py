"""Validation loss at the depth of the stored layers and at full depth."""

from collections.abc import Callable, Mapping
from itertools import count
from math import exp

import torch

from apollo_cli.data.batches import EvaluationBatches
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.growth.samplers import NO_GATES
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.training.device import Device


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    batches: EvaluationBatches,
    device: Device,
    gates: Mapping[int, float] = NO_GATES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    full_depth: bool = True,
) -> dict[str, float]:
    """`eval/loss` at depth N, as exported, `eval/loss_full_depth` at depth L, `eval/perplexity` of the first.

    Where no layer is stored there is none to share, and no `eval/loss_full_depth`; nor without `full_depth`.
    `progress` takes the number of batches that are done and of all.
    """
    stored, target = len(model.blocks), model.model_config.layers
    depths = {stored, target} if stored and full_depth else {stored}
    done = count(1)

    def mean_loss(depth: int) -> float:
        """Mean over the predictions of all processes, in nats."""
        total, predictions = 0.0, 0
        logical = layer_map("nearest", stored, depth)
        for batch, counted in batches:
            with device.autocast():
                loss = model.loss(batch.to(device.device), logical, gates=gates)
            total += loss.item() * counted
            predictions += counted
            progress(next(done), len(depths) * len(batches))
        total, all_predictions = map(sum, zip(*device.processes.gather((total, predictions)), strict=True))
        return total / all_predictions

    was_training = model.training
    model.eval()
    losses = {depth: mean_loss(depth) for depth in depths}
    model.train(was_training)
    full = {"eval/loss_full_depth": losses[target]} if stored and full_depth else {}
    return {
        "eval/loss": losses[stored],
        **full,
        "eval/perplexity": perplexity(losses[stored]),
    }


def perplexity(loss: float) -> float:
    return exp(min(loss, 700.0))  # beyond it a float overflows
