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
        entering: the new layers that enter slowly.
    """

    matrix: np.ndarray
    silent: tuple[int, ...] = ()
    entering: tuple[int, ...] = ()


@dataclass(frozen=True)
class Learning:
    """How a map is learned.

    Attributes:
        steps: updates of the map.
        lr: their constant learning rate.
    """

    steps: int
    lr: float


@dataclass(frozen=True)
class Expander:
    """An expander of the depth.

    Attributes:
        layer_map: its name in `layer_maps`.
        silent: a layer that comes again begins with zero projections into the residual stream, so that it adds
            nothing (identity insertion; Net2DeeperNet, Chen 2016, arXiv 1511.05641, section 2.4). In a pre-norm
            model the function stays exactly what it was; a post-norm layer still normalises.
        entry: a layer that comes again enters as c layer(h) + (1 - c) h, with c from 0 to 1 over this share of all
            steps (MSG, Yao 2024), so that no model's function changes at growth; 0: at once.
        width: the rule in `widths` by which a narrower model becomes as wide.
        learning: of a map, in width and in depth, that begins at this one; None where this one is the map.
    """

    layer_map: str
    silent: bool = False
    entry: float = 0.0
    width: str = "fpi"
    learning: Learning | None = None

    def growth(self, source: int, target: int) -> Growth:
        """From `source` to `target` layers."""
        matrix = mixing_matrix(self.layer_map, source, target)
        new = repeated(matrix) if self.silent or self.entry else ()
        return Growth(matrix, new if self.silent else (), new if self.entry else ())
