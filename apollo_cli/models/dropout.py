"""Dropout (Srivastava et al. 2014), and attention that drops some of its weights (Vaswani 2017, section 5.4).

On a CPU torch draws the numbers of a mask one by one, which takes longer than the matrix products beside it, and
has no fast attention with dropout. Here a random word of 64 bits decides on four elements.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16  # a probability is rounded to one of so many
_LOWEST = torch.iinfo(torch.int64).min


class Dropout(nn.Module):
    """Drops while the model trains, and nothing while it is measured."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    @property
    def now(self) -> float:
        """The probability in the mode of the model."""
        return self.probability if self.training else 0.0

    def forward(self, values: Tensor) -> Tensor:
        """Of any shape."""
        return dropout(values, self.now)


def dropout(values: Tensor, probability: float) -> Tensor:
    """Each value becomes zero with this probability (in [0, 1)), or grows so that the mean stays."""
    if not probability:
        return values
    return values * _mask(values, probability) if _by_words(values) else F.dropout(values, probability)


def attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, *, causal: bool, probability: float
) -> Tensor:
    """softmax(query key^T / sqrt(width)) value, each weight dropped with this probability.

    Args:
        query: (rows, heads, seq_len, width), as `key` and `value`.
        key: what is compared with it.
        value: what is mixed.
        seen: bool, broadcasts to (rows, heads, seq_len, seq_len).
        causal: nothing is seen that comes later; instead of `seen`.
        probability: in [0, 1).
    """
    if not (probability and _by_words(query)):
        return F.scaled_dot_product_attention(query, key, value, seen, dropout_p=probability, is_causal=causal)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # as torch does for bf16
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if seen is not None:  # added, for so nothing is kept for the gradient; finite, for padding may see nothing
        scores += torch.zeros(seen.shape, dtype=scores.dtype).masked_fill_(~seen, torch.finfo(scores.dtype).min)
    return dropout(scores.softmax(-1), probability).to(value.dtype) @ value


def _by_words(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _mask(values: Tensor, probability: float) -> Tensor:
    """Zeros, and what keeps the mean, in the shape of `values`; from torch's global generator."""
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(_LOWEST, None)
    parts = words.view(torch.int16)[: values.numel()].view(values.shape)
    return parts.ge_(dropped - _LEVELS // 2).to(values.dtype).mul_(_LEVELS / (_LEVELS - dropped))
