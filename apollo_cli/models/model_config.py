"""The sizes of a model and the initialization of its weights."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal, NamedTuple

Kind = Literal["bert", "gpt", "llama"]
TITLES = {"bert": "BERT", "gpt": "GPT", "llama": "LLaMA"}
PositionInit = Literal["random", "sinusoidal"]
ResidualInit = Literal["plain", "by_depth"]
Parametrization = Literal["standard", "completep"]
Norm = Literal["post", "pre"]


def std_of_width(hidden: int) -> float:
    """The deviation of weights where it follows the width: 0.02 sqrt(768 / hidden), so that sums are as large.

    0.02 is that of a width of 768 (Devlin 2019, Radford 2019).
    """
    return round(0.02 * sqrt(768 / hidden), 4)


@dataclass(frozen=True)
class Initialization:
    """Initialization of the weights; biases are 0 and norms 1."""

    # standard deviation of the normal distribution that weights are drawn from
    std: float = 0.02  # BERT (Devlin 2019) and GPT-2 (Radford 2019) alike
    # initialization of the position embeddings, which are trained: random, or sinusoidal (Vaswani 2017, section
    # 3.5), where a step along the row is the same rotation everywhere
    positions: PositionInit = "random"
    # standard deviation of the position embeddings, or root mean square of the sinusoids
    positions_std: float = 0.02
    # projections into the residual stream have the same deviation (plain), or one smaller by 1 / sqrt(2 L), L the
    # target depth, or the base depth of CompleteP (by_depth; GPT-2, Radford 2019, section 2.3)
    residual: ResidualInit = "plain"

    def of_width(self, before: int, hidden: int) -> "Initialization":
        """The same at another width, where deviations follow it."""
        if self.std != std_of_width(before):
            return self
        std = std_of_width(hidden)
        return replace(self, std=std, positions_std=std * self.positions_std / self.std)


@dataclass(frozen=True)
class Architecture:
    """What a layer computes, and around the layers what follows from it."""

    # norms stand before attention and feed-forward part and after the last layer, else after each sum
    pre_norm: bool
    causal: bool  # a position attends to itself and those before it
    # of the feed-forward part: GELU, its tanh form, or SwiGLU (Shazeer 2020, arXiv 2002.05202), which has a third
    # matrix
    activation: Literal["gelu", "gelu_tanh", "swiglu"]
    eps: float  # of the norms
    biases: bool = True  # linear layers have biases
    rms_norm: bool = False  # RMSNorm (Zhang 2019, arXiv 1910.07467), which has a gain and no bias, else LayerNorm
    # queries and keys are rotated by their position (Su 2021, arXiv 2104.09864), else positions have an embedding
    rotary: bool = False


ARCHITECTURES: dict[Kind, Architecture] = {
    "bert": Architecture(pre_norm=False, causal=False, activation="gelu", eps=1e-12),
    "gpt": Architecture(pre_norm=True, causal=True, activation="gelu_tanh", eps=1e-5),
    "llama": Architecture(
        pre_norm=True, causal=True, activation="swiglu", eps=1e-5, biases=False, rms_norm=True, rotary=True
    ),
}


@dataclass(frozen=True)
class CompleteP:
    """The base model of CompleteP (Dey 2025, arXiv 2505.01618): what suits it suits every width and depth."""

    hidden: int  # width of the residual stream
    layers: int  # depth
    head_width: int  # width of an attention head


class Multipliers(NamedTuple):
    """Constant factors in a forward pass; all 1 in the standard parametrization."""

    branch: float = 1.0  # of what attention and feed-forward part add to the residual stream
    scores: float = 1.0  # of the attention scores query key^T / sqrt(head width)
    logits: float = 1.0  # of the decoder's input, so of the logits before a bias


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model."""

    kind: Kind  # bert (bidirectional, MLM head), gpt (GPT-2: pre-norm, causal) or llama (pre-norm, causal)
    vocabulary: int  # entries of the token embedding
    positions: int  # longest row, in tokens
    hidden: int  # width of the residual stream
    heads: int  # attention heads, each of width hidden / heads
    ffn: int  # inner width of the feed-forward part
    layers: int  # the target depth L
    dropout: float = 0.0  # probability, in every place where BERT and GPT-2 have dropout
    init: Initialization = Initialization()  # initialization of the weights
    # heads of keys and values, each read by equally many query heads (grouped-query attention, Ainslie 2023, arXiv
    # 2305.13245); None for as many as `heads`
    kv_heads: int | None = None
    tied: bool = True  # the decoder's weight is the token embedding
    complete_p: CompleteP | None = None  # the base model of CompleteP; None for the standard parametrization
    # of BERT: post (Devlin 2019), or pre as in Megatron (Shoeybi 2019, arXiv 1909.08053, section 5.3); the others
    # are pre-norm whatever it is
    norm: Norm = "post"

    @property
    def width_ratio(self) -> float:
        """m_N of CompleteP, the width over that of the base model; 1 in the standard parametrization."""
        return self.hidden / self.complete_p.hidden if self.complete_p else 1.0

    def depth_ratio(self, layers: int) -> float:
        """m_L of CompleteP, `layers` (none counts as one) over those of the base model; else 1."""
        return max(1, layers) / self.complete_p.layers if self.complete_p else 1.0

    def branch_ratio(self, before: int, after: int) -> float:
        """The multiplier of the branches at one depth over that at another; 1 from no layers."""
        return self.depth_ratio(before) / self.depth_ratio(after) if before else 1.0

    def multipliers(self, depth: int) -> Multipliers:
        """The factors in a forward pass that runs `depth` layers.

        With CompleteP (table 1): branches 1 / m_L, logits 1 / m_N, and scores with 1 / head width in place of
        1 / sqrt(head width), times the root of the base's head width.
        """
        if not self.complete_p:
            return Multipliers()
        scores = sqrt(self.complete_p.head_width / (self.hidden // self.heads))
        return Multipliers(1 / self.depth_ratio(depth), scores, 1 / self.width_ratio)

    @property
    def architecture(self) -> Architecture:
        found = ARCHITECTURES[self.kind]
        return replace(found, pre_norm=True) if self.norm == "pre" else found

    @property
    def kv_hidden(self) -> int:
        """The width of the keys of all heads together, and of the values."""
        return self.hidden // self.heads * (self.kv_heads or self.heads)

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of a layer: attention's, 2 h^2 + 2 h kv_hidden, and the feed-forward part's."""
        h, matrices = self.hidden, 3 if self.architecture.activation == "swiglu" else 2
        return 2 * h * h + 2 * h * self.kv_hidden + matrices * h * self.ffn

    @property
    def qkv_widths(self) -> tuple[int, int, int]:
        """The width of all queries, keys and values of a token."""
        return self.hidden, self.kv_hidden, self.kv_hidden

    def joined_rows(self, name: str, rows: int) -> tuple[int, ...]:
        """The rows of the matrices that a layer's parameter of so many rows holds, one below the other."""
        match name.split(".")[-2]:
            case "qkv":
                return self.qkv_widths
            case "gate_up":
                return rows // 2, rows // 2
        return (rows,)

    def narrowed(self, share: float) -> "ModelConfig":
        """A copy with this share of hidden, heads, kv_heads and ffn, each rounded to a whole number."""
        hidden, heads, ffn = (round(share * width) for width in (self.hidden, self.heads, self.ffn))
        kv_heads = None if self.kv_heads is None else round(share * self.kv_heads)
        init = self.init if self.complete_p else self.init.of_width(self.hidden, hidden)
        return replace(self, hidden=hidden, heads=heads, ffn=ffn, kv_heads=kv_heads, init=init)
