"""RMSNorm (Zhang 2019, arXiv 1910.07467), on a CPU in few passes over the numbers, forward and backward.

There torch composes it of elementwise steps: it takes three to five times as long as LayerNorm, and keeps the
normalised numbers. Here it takes half of that and keeps one number per vector, as torch's kernel on a GPU does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RmsNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) times a gain, over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return _RmsNorm.apply(x, self.weight, self.eps)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x inverse and u = upstream gain: inverse (u - n mean(u n)), and the sum of upstream n."""
        x, gain, inverse = ctx.saved_tensors
        normed = x * inverse
        products = upstream * normed
        means = (products * gain).mean(-1, keepdim=True)
        gradient = (upstream * gain).addcmul_(normed, means, value=-1).mul_(inverse)
        return gradient, products.flatten(0, -2).sum(0), None
