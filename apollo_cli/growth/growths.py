"""What a growth does to the layers, before any tensor is there: the map, and which layers begin silent."""

from dataclasses import dataclass

import numpy as np

from apollo_cli.growth.layer_maps import mixing_matrix, repeated


@dataclass(frozen=True)
class Growth:
    """How N stored layers become the next N.

    Attributes:
        matrix: (next N, N), rows sum to 1.
        silent: the new layers whose projections into the residual stream begin at zero.
    """

    matrix: np.ndarray
    silent: tuple[int, ...] = ()


@dataclass(frozen=True)
class Expander:
    """An expander of the depth.

    Attributes:
        layer_map: its name in `layer_maps`.
        silent: a layer that comes again begins with zero projections into the residual stream, so that it adds
            nothing (identity insertion; Net2DeeperNet, Chen 2016, arXiv 1511.05641, section 2.4). In a pre-norm
            model the function stays exactly what it was; a post-norm layer still normalises.
    """

    layer_map: str
    silent: bool = False

    def growth(self, source: int, target: int) -> Growth:
        """From `source` to `target` layers."""
        matrix = mixing_matrix(self.layer_map, source, target)
        return Growth(matrix, repeated(matrix) if self.silent else ())
