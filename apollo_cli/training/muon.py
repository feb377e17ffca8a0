"""Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for matrices, beside AdamW for all other parameters."""

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from apollo_cli.training.adamw import AdamW

AdjustLr = Literal["original", "match_rms_adamw"]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the iteration: the largest slope at zero (Jordan 2024)
EPS = 1e-7  # least norm of an update


class Muon(AdamW):
    """The arithmetic of `torch.optim.Muon` for the groups that have `parts`, AdamW for the other ones.

    torch's class is not used, as it always computes in bf16, waits where the rate is a tensor, cannot be blocked,
    and takes what several matrices share, as queries, keys and values do, for one. A parameter has the state
    `momentum_buffer`.

    Args:
        groups: as AdamW's. `parts`: the rows of the matrices, below each other, in each parameter.
        momentum: decay of the mean of gradients.
        nesterov: whether the newest gradient is added to that mean once more.
        ns_steps: number of Newton-Schulz iterations.
        adjust_lr_fn: see `lr_factor`.
        adamw: lr, betas, eps and ema of AdamW; lr and ema are Muon's, too.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adjust_lr_fn: AdjustLr,
        **adamw: Any,
    ) -> None:
        super().__init__(groups, **adamw)
        self.momentum, self.nesterov = momentum, nesterov
        self.ns_steps, self.adjust_lr_fn = ns_steps, adjust_lr_fn

    def begin(self, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        if "parts" not in group:
            return super().begin(group, parameter)
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def update(
        self, group: Mapping[str, Any], parameters: Sequence[Tensor], lr: float | Tensor, blocked: Tensor | None
    ) -> None:
        if "parts" not in group:
            super().update(group, parameters, lr, blocked)
            return
        for parameter in parameters:
            gradient, buffer = parameter.grad, self.state[parameter]["momentum_buffer"]
            assert gradient is not None
            mean = buffer.lerp(gradient, 1 - self.momentum)
            direction = gradient.lerp(mean, self.momentum) if self.nesterov else mean
            updated = parameter * (1 - lr * group["weight_decay"])
            matrices = zip(*(each.split(group["parts"]) for each in (updated, direction)), strict=True)
            for part, matrix in matrices:
                update = orthogonalized(matrix, self.ns_steps)
                rate = lr * lr_factor(self.adjust_lr_fn, *matrix.shape)
                if isinstance(rate, Tensor):  # as `alpha` the device would be waited for
                    part.addcmul_(update.float(), -rate)
                else:
                    part.add_(update, alpha=-rate)
            for old, new in ((buffer, mean), (parameter, updated)):
                old.copy_(new if blocked is None else torch.where(blocked.bool(), old, new))


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """U S V^T of a matrix U D V^T, with the entries of S between 0.7 and 1.2, by Newton-Schulz iterations.

    X = a X + (b X X^T + c (X X^T)^2) X, from X = matrix / its norm, or from the transposed one if it has more rows
    than columns (Jordan 2024).
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(products_dtype(matrix.device))
    x = x / x.norm().clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def products_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies in it, else fp32: a CPU that has to emulate it is 25 times slower."""
    on_cpu = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if on_cpu or device.type == "cuda" else torch.float32


def lr_factor(adjust_lr_fn: AdjustLr, rows: int, columns: int) -> float:
    """The factor of the rate for a matrix of this shape.

    original: sqrt(max(1, rows / columns)) (Jordan 2024). match_rms_adamw: 0.2 sqrt(max(rows, columns)), with which
    the root mean square of an update is 0.2, about AdamW's, so that AdamW's rate transfers (Liu 2025,
    arXiv 2502.16982, section 2.2).
    """
    if adjust_lr_fn == "original":
        return sqrt(max(1, rows / columns))
    return 0.2 * sqrt(max(rows, columns))


def newton_schulz_flops(rows: int, columns: int, steps: int) -> int:
    """FLOPs of orthogonalizing a matrix: a step has products of 2 m^2 n, 2 m^3 and 2 m^2 n, m the shorter side."""
    m, n = sorted((rows, columns))
    return steps * (4 * m * m * n + 2 * m**3)
