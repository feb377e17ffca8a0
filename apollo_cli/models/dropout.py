"""Dropout (Srivastava et al. 2014), and attention that drops some of its weights (Vaswani 2017, section 5.4).

On a CPU torch draws the numbers of a mask one by one, which takes longer than the matrix products beside it, and
has no fast attention with dropout. Here a random 64-bit word decides on four elements. In bf16 torch's attention
takes three times as long backward as plain products do, so these train there; their scores and weights are rounded
to bf16, the softmax computes in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16  # probabilities are rounded to multiples of 1 / _LEVELS
_LOWEST = torch.iinfo(torch.int64).min
# With more, the weights, seq_len^2 numbers a head, take longer than torch's attention in bf16.
MAX_POSITIONS = 512


class Dropout(nn.Module):
    """Dropout in training mode, the identity in evaluation mode."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    @property
    def active_probability(self) -> float:
        """The probability in training mode, else 0."""
        return self.probability if self.training else 0.0

    def forward(self, values: Tensor) -> Tensor:
        return dropout(values, self.active_probability)


def dropout(values: Tensor, probability: float) -> Tensor:
    """Sets each value to zero with this probability (in [0, 1)) and scales the others so that the mean is kept."""
    if not probability:
        return values
    return values * _mask(values, probability) if _uses_words(values) else F.dropout(values, probability)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    probability: float,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale query key^T) value, each weight dropped with this probability.

    Args:
        query: (rows, heads, seq_len, width).
        key: (rows, key heads, seq_len, width); each is read by heads / key heads queries in a row.
        value: (rows, key heads, seq_len, width).
        mask: bool, broadcasts to (rows, heads, seq_len, seq_len), True where attention is allowed.
        causal: attention to later positions is not allowed; instead of `mask`.
        probability: in [0, 1).
        scale: of the scores; None for 1 / sqrt(width).
    """
    grouped, drops = key.shape[1] != query.shape[1], probability and _uses_words(query)
    if not (drops or _uses_products(query, key)):
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=probability, is_causal=causal, scale=scale, enable_gqa=grouped
        )
    if grouped:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-2, -1)
    if drops:  # the factor that keeps the mean has too few digits in bf16
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:  # added, so that autograd keeps nothing; finite, as padding may attend to nothing
        scores += torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return dropout(scores.softmax(-1), probability).to(value.dtype) @ value


def _uses_products(query: Tensor, key: Tensor) -> bool:
    """Whether attention without dropout is two products and a softmax, and keeps the weights for its gradient."""
    in_bf16 = query.dtype == torch.bfloat16 and _uses_words(query)
    return in_bf16 and torch.is_grad_enabled() and key.shape[-2] <= MAX_POSITIONS


def _uses_words(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _mask(values: Tensor, probability: float) -> Tensor:
    """Zeros and the factor that keeps the mean, in the shape of `values`; from torch's global generator."""
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(_LOWEST, None)
    parts = words.view(torch.int16)[: values.numel()].view(values.shape)
    return parts.ge_(dropped - _LEVELS // 2).to(values.dtype).mul_(_LEVELS / (_LEVELS - dropped))
