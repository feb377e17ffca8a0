"""Keys and values of the tokens so far, so that a causal model computes each token of a continuation once."""

from torch import Tensor


class KeyValueCache:
    """Keys and values in one logical layer, which the tokens after them attend to.

    Attributes:
        capacity: the most tokens that it has room for.
        length: tokens that it has.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds those of the next tokens, (rows, key heads, new, width); returns those of all, in the same order."""
        end = self.length + key.shape[2]
        if self._kept is None:
            size = (*key.shape[:2], self.capacity, key.shape[3])
            self._kept = key.new_empty(size), value.new_empty(size)
        for kept, new in zip(self._kept, (key, value), strict=True):
            kept[:, :, self.length : end] = new
        self.length = end
        keys, values = self._kept
        return keys[:, :, :end], values[:, :, :end]
