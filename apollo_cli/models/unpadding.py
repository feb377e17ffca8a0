"""Rows of several lengths one behind the other, so that no layer works on padding."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unpadding:
    """Where the tokens of padded rows are; attention alone needs the rows apart.

    Attributes:
        shape: rows, tokens of the longest.
        places: (tokens,) int64, of what is no padding in the flattened rows.
    """

    shape: torch.Size
    places: Tensor

    def together(self, padded: Tensor) -> Tensor:
        """(rows, seq_len, width) -> (tokens, width)."""
        return padded.flatten(0, 1).index_select(0, self.places)

    def apart(self, tokens: Tensor) -> Tensor:
        """(tokens, width) -> (rows, seq_len, width), zero at padding."""
        zeros = tokens.new_zeros(self.shape.numel(), tokens.shape[-1])
        return zeros.index_copy(0, self.places, tokens).view(*self.shape, -1)
