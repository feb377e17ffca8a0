"""The sizes of a model and the initialization of its weights."""

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["bert", "gpt"]
PositionInit = Literal["random", "sinusoidal"]
ResidualInit = Literal["plain", "by_depth"]


@dataclass(frozen=True)
class Initialization:
    """Initialization of the weights; biases are 0 and norms 1.

    Attributes:
        std: standard deviation of the normal distribution that weights are drawn from.
        positions: initialization of the position embeddings, which are trained: random, or sinusoidal
            (Vaswani 2017, section 3.5), where a step along the row is the same rotation everywhere.
        positions_std: standard deviation of the position embeddings, or root mean square of the sinusoids.
        residual: projections into the residual stream have the same deviation (plain), or one smaller by
            1 / sqrt(2 L), L the target depth (by_depth; GPT-2, Radford 2019, section 2.3).
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
        heads: attention heads, each of width hidden / heads.
        ffn: inner width of the feed-forward part.
        layers: the target depth L.
        dropout: probability, in every place where BERT and GPT-2 have dropout.
        init: initialization of the weights.
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
        """A copy with this share of hidden, heads and ffn, each rounded to a whole number."""
        hidden, heads, ffn = (round(share * width) for width in (self.hidden, self.heads, self.ffn))
        return replace(self, hidden=hidden, heads=heads, ffn=ffn)
