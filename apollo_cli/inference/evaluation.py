"""What a trained model is worth on a text: loss, perplexity, bits per byte, accuracy, and each layer's share."""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from apollo_cli.data.batches import EvaluationBatches
from apollo_cli.growth.layer_maps import layers_to_run
from apollo_cli.models.transformer import Batch, LanguageModel
from apollo_cli.training.device import Device
from apollo_cli.training.evaluate import evaluate, perplexity


@torch.no_grad()
def measure(
    model: LanguageModel, batches: Iterable[tuple[Batch, int]], device: Device, depth: int
) -> dict[str, float]:
    """The results with `depth` layers, over the last predictions of each batch, as many as its number says.

    `loss`: mean over the predictions, in nats; `accuracy`: share of them whose likeliest token is right.
    """
    logical = layers_to_run(len(model.blocks), depth)
    total, right, count = 0.0, 0, 0
    for batch, counted in batches:
        moved = batch.to(device.device)
        with device.autocast():
            hidden = model.trunk(moved.tokens, logical, depth=max(depth, len(model.blocks)))
            logits = model.head(hidden.flatten(0, 1)[moved.positions])[-counted:].float()
        targets = moved.targets[-counted:]
        total += F.cross_entropy(logits, targets, reduction="sum").item()
        right += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    loss = total / count
    return {
        "depth": depth,
        "loss": loss,
        "accuracy": right / count,
        "predictions": count,
        "perplexity": perplexity(loss),
    }


def bits_per_byte(loss: float, rows: np.ndarray, tokenizer: Tokenizer) -> float:
    """The loss of rows, in nats a token, as bits a byte of their text in UTF-8: comparable between tokenizers.

    Tokens between documents count as tokens and have no bytes.
    """
    text = tokenizer.decode(rows.flatten().tolist(), skip_special_tokens=True)
    # of a letter that the end of a row cuts each part decodes to U+FFFD
    return loss / math.log(2) * rows.size / max(1, len(text.replace("\ufffd", "?").encode()))


def sliding_windows(rows: np.ndarray, stride: int) -> Iterator[tuple[Batch, int]]:
    """Windows of one row each that begin `stride` tokens apart, less than a row, for a causal model.

    Each token is predicted once, but for those of the first window from at least seq_len - stride tokens before it.

    Yields:
        A window, and how many of its last predictions count.
    """
    tokens, seq_len = torch.from_numpy(rows.astype(np.int64)).flatten(), rows.shape[1]
    done = 1  # tokens that are predicted; the first one has none before it
    for start in range(0, len(tokens) - 1, stride):
        window = tokens[start : start + seq_len]
        last = start + len(window)
        yield Batch(window[None], torch.arange(len(window) - 1), window[1:]), last - done
        done = last
        if last == len(tokens):
            break


@torch.no_grad()
def pseudo_perplexity(model: LanguageModel, rows: np.ndarray, mask_id: int, device: Device, micro: int) -> float:
    """e to the mean loss of every token of the rows, each masked alone (Salazar 2020, arXiv 1910.14659, eq. 2)."""
    logical, total, count = layers_to_run(len(model.blocks), len(model.blocks)), 0.0, 0
    for row in torch.from_numpy(rows.astype(np.int64)).to(device.device):
        for positions in torch.arange(1, len(row) - 1, device=device.device).split(micro):
            tokens = row.repeat(len(positions), 1)
            at = torch.arange(len(positions), device=device.device)
            tokens[at, positions] = mask_id
            with device.autocast():
                logits = model.head(model.trunk(tokens, logical)[at, positions])
            total += F.cross_entropy(logits.float(), row[positions], reduction="sum").item()
            count += len(positions)
    return perplexity(total / count)


@torch.no_grad()
def layer_worths(model: LanguageModel, batches: EvaluationBatches, device: Device) -> list[dict[str, float | None]]:
    """What each stored layer is worth, from the lowest one.

    `loss_without`: the loss of the stored layers without it; `more`: by how much that is above their loss with it;
    `update`: norm of what it adds to the residual stream over the norm of its input, mean over the tokens
    of the first batch;
    `similarity`: cosine of its weights and the next layer's, None for the last one.
    """
    stored = len(model.blocks)
    weights = [torch.cat([p.flatten() for p in block.parameters() if p.dim() > 1]) for block in model.blocks]
    similarities = [F.cosine_similarity(a, b, dim=0).item() for a, b in pairwise(weights)]
    tokens = next(iter(batches))[0].tokens.to(device.device)
    with device.autocast():
        hidden = [model.trunk(tokens, range(depth), depth=stored) for depth in range(stored + 1)]
    updates = [((b - a).norm(dim=-1) / a.norm(dim=-1)).mean().item() for a, b in pairwise(hidden)]
    gates = [{}, *({i: 0.0} for i in range(stored))]
    whole, *without = (evaluate(model, batches, device, each, full_depth=False)["eval/loss"] for each in gates)
    return [
        {"loss_without": loss, "more": loss - whole, "update": update, "similarity": similarity}
        for loss, update, similarity in zip(without, updates, [*similarities, None], strict=True)
    ]
