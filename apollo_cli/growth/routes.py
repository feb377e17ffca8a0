"""What one forward pass runs."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from apollo_cli.growth.layer_maps import LayerMap

OPEN: Mapping[int, float] = MappingProxyType({})  # no layer enters slowly


class Route(NamedTuple):
    """The way of a micro-step through the stored layers.

    Attributes:
        layers: the stored layer that each logical layer is.
        frozen: so many of the lowest logical layers, and the embeddings, run forward only.
        gates: weight c of a stored layer that enters slowly, c layer(h) + (1 - c) h; 1 for those not named.
    """

    layers: LayerMap
    frozen: int = 0
    gates: Mapping[int, float] = OPEN
