"""Padded rows without their padding, so that no layer but attention computes on it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apollo_cli.models.rows import take_rows


@dataclass(frozen=True)
class Unpadding:
    """Positions of the tokens in padded rows."""

    shape: torch.Size  # (rows, seq_len)
    indices: Tensor  # (tokens,) int64, positions in the flattened rows that are no padding

    def unpad(self, padded: Tensor) -> Tensor:
        """(rows, seq_len, width) -> (tokens, width)."""
        return take_rows(padded.flatten(0, 1), self.indices)

    def pad(self, tokens: Tensor) -> Tensor:
        """(tokens, width) -> (rows, seq_len, width), zero at padding."""
        zeros = tokens.new_zeros(self.shape.numel(), tokens.shape[-1])
        return zeros.index_copy(0, self.indices, tokens).view(*self.shape, -1)
