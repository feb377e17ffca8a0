"""What a model is, in numbers."""

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["bert", "gpt"]
PositionInit = Literal["random", "sinusoidal"]
ResidualInit = Literal["plain", "by_depth"]


@dataclass(frozen=True)
class Initialization:
    """How the weights begin; biases are 0 and norms 1 in any case.

    Attributes:
        std: standard deviation of the normal distribution that weights are drawn from.
        positions: what the position embeddings, which are trained, begin as: random, or sinusoidal
            (Vaswani 2017, section 3.5), where a step along the row is one rotation everywhere.
        positions_std: their standard deviation, or the root mean square of the sinusoids.
        residual: projections into the residual stream begin like all else, or smaller by 1 / sqrt(2 L), L the
            target depth (GPT-2, Radford 2019, section 2.3).
    """

    std: float = 0.02  # BERT (Devlin 2019) and GPT-2 (Radford 2019) alike
    positions: PositionInit = "random"
    positions_std: float = 0.02
    residual: ResidualInit = "plain"


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model.

    Attributes:
        kind: bert (post-norm, bidirectional, MLM head) or gpt (GPT-2: pre-norm, causal, tied head).
        vocabulary: entries of the token embedding.
        positions: longest row, in tokens.
        hidden: width of the residual stream.
        heads: attention heads of hidden / heads each.
        ffn: inner width of the feed-forward part.
        layers: the target depth L.
        dropout: probability, everywhere where BERT and GPT-2 have it.
        init: how the weights begin.
    """

    kind: Kind
    vocabulary: int
    positions: int
    hidden: int
    heads: int
    ffn: int
    layers: int
    dropout: float = 0.0
    init: Initialization = Initialization()

    def narrowed(self, share: float) -> "ModelConfig":
        """The same with this share of the width: of hidden, heads and ffn, each rounded to a whole number."""
        hidden, heads, ffn = (round(share * width) for width in (self.hidden, self.heads, self.ffn))
        return replace(self, hidden=hidden, heads=heads, ffn=ffn)
