"""What a model is, in numbers."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["bert", "gpt"]


@dataclass(frozen=True)
class Shape:
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
    """

    kind: Kind
    vocabulary: int
    positions: int
    hidden: int
    heads: int
    ffn: int
    layers: int
    dropout: float = 0.0
