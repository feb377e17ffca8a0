"""Decoder and cross-entropy fused, a chunk of rows at a time: the whole logits never exist."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Of fp32 logits: 8 MiB fit into a CPU's cache; products in bf16, and those of a GPU, need larger matrices.
_CPU_BYTES, _CPU_BF16_BYTES, _GPU_BYTES = 1 << 23, 1 << 24, 1 << 29


def decoder_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of `hidden @ weight.T + bias` against `targets`.

    Equals `F.cross_entropy(F.linear(hidden, weight, bias), targets)` in a fraction of the memory: the gradient of
    a row's logits, softmax minus one-hot, needs that row alone, so each chunk of rows runs forward and backward at
    once. The matrix products are the same three. Under autocast they run in its precision; softmax and sums in
    that of the weights, fp32.

    Args:
        hidden: (predictions, width).
        weight: (vocabulary, width).
        bias: (vocabulary,), or None.
        targets: (predictions,) int64.
    """
    return _DecoderLoss.apply(hidden, weight, bias, targets, torch.is_grad_enabled())


class _DecoderLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, trains: bool
    ) -> Tensor:
        device, total = weight.device.type, weight.new_zeros(())
        is_short = torch.is_autocast_enabled(device)
        of_hidden = torch.empty_like(hidden) if trains else None  # gradients of the summed loss
        of_weight = torch.zeros_like(weight) if trains and ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if trains and bias is not None else None
        short = torch.get_autocast_dtype(device) if is_short else weight.dtype
        source, decoder = hidden.to(short), weight.to(short)  # once, and not for each chunk
        chunk_rows = max(1, chunk_bytes(device, bf16=is_short) // (4 * len(weight)))
        for first in range(0, len(targets), chunk_rows):
            chunk = slice(first, first + chunk_rows)
            target = targets[chunk, None]
            logits = F.linear(source[chunk], decoder, bias).to(weight.dtype)
            of_targets = logits.gather(1, target)
            highest = logits.amax(1, keepdim=True)
            sums = logits.sub_(highest).exp_().sum(1, keepdim=True)
            total += (sums.log() + highest - of_targets).sum()
            if of_hidden is None:
                continue
            logits /= sums
            logits.scatter_add_(1, target, logits.new_full((1, 1), -1.0).expand_as(target))
            if short == weight.dtype:  # written in place, without a temporary
                torch.mm(logits, decoder, out=of_hidden[chunk])
                if of_weight is not None:
                    torch.addmm(of_weight, logits.t(), source[chunk], out=of_weight)
            else:
                short_logits = logits.to(short)
                of_hidden[chunk] = short_logits @ decoder
                if of_weight is not None:
                    of_weight += short_logits.t() @ source[chunk]
            if of_bias is not None:
                of_bias += logits.sum(0)
        ctx.gradients = of_hidden, of_weight, of_bias
        ctx.predictions = len(targets)
        return total / len(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # a second backward pass would scale them twice
        scale = upstream / ctx.predictions
        scaled = (g if g is None else g.mul_(scale) for g in gradients)
        return *scaled, None, None


def chunk_bytes(device: str, *, bf16: bool) -> int:
    """Most bytes of fp32 logits that are held at once on this device type, where products run in this precision."""
    if device != "cpu":
        return _GPU_BYTES
    return _CPU_BF16_BYTES if bf16 else _CPU_BYTES
