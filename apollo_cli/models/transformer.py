"""The Transformer block, and a language model whose forward pass runs its blocks through a layer map."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apollo_cli.growth.samplers import NO_GATES
from apollo_cli.models.cross_entropy import decoder_loss
from apollo_cli.models.dropout import Dropout, attention
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.unpadding import Unpadding

LONGEST_WAVE = 10_000  # of the sinusoids, in positions over 2 pi (Vaswani 2017)


@dataclass(frozen=True)
class Batch:
    """What a micro-step reads.

    Attributes:
        tokens: (rows, seq_len) int64, as the model sees them.
        positions: (predictions,) int64, indices into the flattened rows where a prediction is asked.
        targets: (predictions,) int64, the right tokens there.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> Self:
        """The batch on another device."""
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in self.tensors.items()})

    def pin_memory(self) -> Self:
        """The batch in memory that a GPU can fetch from by itself."""
        return replace(self, **{name: t.pin_memory() for name, t in self.tensors.items()})

    def pieces(self, count: int) -> Sequence["Batch"]:
        """The batch as `count` batches of as many rows and predictions each; `count` divides its rows."""
        rows, seq_len = self.tokens.shape
        firsts = torch.arange(0, rows, rows // count, device=self.positions.device)
        positions = self.positions.view(count, -1) - seq_len * firsts[:, None]
        parts = (self.tokens.chunk(count), positions, self.targets.view(count, -1))
        return [Batch(*part) for part in zip(*parts, strict=True)]


def linear(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """`layer(hidden)`; on a CPU the bias is added in place, for torch begins by copying it to every row."""
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return layer(hidden)
    return F.linear(hidden, layer.weight).add_(layer.bias)


class Block(nn.Module):
    """One layer: self-attention and a feed-forward part, each with a residual connection and a norm."""

    def __init__(self, model_config: ModelConfig, *, pre_norm: bool, causal: bool, gelu: str, eps: float) -> None:
        super().__init__()
        self.heads, self.pre_norm, self.causal, self.gelu = model_config.heads, pre_norm, causal, gelu
        self.dropout = Dropout(model_config.dropout)
        self.qkv = nn.Linear(model_config.hidden, 3 * model_config.hidden)
        self.attention_out = nn.Linear(model_config.hidden, model_config.hidden)
        self.attention_norm = nn.LayerNorm(model_config.hidden, eps=eps)
        self.ffn_in = nn.Linear(model_config.hidden, model_config.ffn)
        self.ffn_out = nn.Linear(model_config.ffn, model_config.hidden)
        self.ffn_norm = nn.LayerNorm(model_config.hidden, eps=eps)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, unpadding: Unpadding | None = None) -> Tensor:
        """(rows, seq_len, hidden) -> the same; with `unpadding` (tokens, hidden).

        `mask` broadcasts to (rows, heads, seq, seq), True = seen.
        """
        if self.pre_norm:
            hidden = hidden + self._attention(self.attention_norm(hidden), mask, unpadding)
            return hidden + self._feed_forward(self.ffn_norm(hidden))
        hidden = self.attention_norm(hidden + self._attention(hidden, mask, unpadding))
        return self.ffn_norm(hidden + self._feed_forward(hidden))

    def _attention(self, hidden: Tensor, mask: Tensor | None, unpadding: Unpadding | None) -> Tensor:
        qkv = linear(self.qkv, hidden)
        if unpadding:
            qkv = unpadding.apart(qkv)
        # parted first and turned then: so the three gradients are joined by one copy
        parted = (part.unflatten(-1, (self.heads, -1)) for part in qkv.chunk(3, -1))
        query, key, value = (part.transpose(1, 2) for part in parted)
        causal = self.causal and mask is None
        mixed = attention(query, key, value, mask, causal=causal, probability=self.dropout.now)
        mixed = mixed.transpose(1, 2).flatten(2)
        if unpadding:
            mixed = unpadding.together(mixed)
        return self.dropout(linear(self.attention_out, mixed))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        return self.dropout(linear(self.ffn_out, F.gelu(linear(self.ffn_in, hidden), approximate=self.gelu)))


class LanguageModel(nn.Module, ABC):
    """Embeddings, N stored blocks, and a tied decoder. Subclasses say what a block is and what stands around."""

    head_bias: nn.Parameter | None  # of the decoder, which is the token embedding

    def __init__(self, model_config: ModelConfig, layers: int) -> None:
        super().__init__()
        self.model_config = model_config
        self.dropout = Dropout(model_config.dropout)
        self.tokens = nn.Embedding(model_config.vocabulary, model_config.hidden)
        self.positions = nn.Embedding(model_config.positions, model_config.hidden)
        self.blocks = nn.ModuleList(self.new_block() for _ in range(layers))
        self.register_parameter("head_bias", None)

    @abstractmethod
    def new_block(self) -> Block:
        """An empty block of this model, on the device of its embeddings."""

    @abstractmethod
    def embed(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """(rows, seq_len) -> (rows, seq_len, hidden); `segments` (rows, seq_len) are 0 where there are none."""

    @abstractmethod
    def attention_mask(self, seen: Tensor) -> Tensor:
        """From (rows, seq_len) bool, False at padding, to the mask of a block."""

    @abstractmethod
    def before_decoder(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> the same, what the decoder takes."""

    def trunk(
        self,
        tokens: Tensor,
        layer_map: Sequence[int],
        seen: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        places: Tensor | None = None,
        frozen: int = 0,
        gates: Mapping[int, float] = NO_GATES,
    ) -> Tensor:
        """Embeds and runs `len(layer_map)` logical layers, logical layer i being block layer_map[i].

        What is no padding is marked by `seen` (rows, seq_len). `places` (tokens,) say where it is in the flattened
        rows: then no layer works on padding, and the result is zero there.
        The embedding and the first `frozen` of them run forward only; block i weighs gates[i] beside the way past
        it.
        """
        mask = None if seen is None else self.attention_mask(seen)
        unpadding = None if places is None else Unpadding(tokens.shape, places)
        with torch.no_grad() if frozen else nullcontext():
            hidden = self.embed(tokens, segments)
            if unpadding:
                hidden = unpadding.together(hidden)
            hidden = self._run(hidden, mask, unpadding, layer_map[:frozen], gates)
        hidden = self._run(hidden, mask, unpadding, layer_map[frozen:], gates)
        return unpadding.apart(hidden) if unpadding else hidden

    def _run(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        unpadding: Unpadding | None,
        layer_map: Sequence[int],
        gates: Mapping[int, float],
    ) -> Tensor:
        for i in layer_map:
            result = self.blocks[i](hidden, mask, unpadding)
            hidden = hidden.lerp(result, gates[i]) if i in gates else result
        return hidden

    def logits(self, tokens: Tensor, layer_map: Sequence[int], seen: Tensor | None = None) -> Tensor:
        """(rows, seq_len) -> (rows, seq_len, vocabulary); `seen` (rows, seq_len) is False at padding."""
        return self.head(self.trunk(tokens, layer_map, seen))

    def head(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocabulary); the decoder is the token embedding."""
        return F.linear(self.before_decoder(hidden), self.tokens.weight, self.head_bias)

    def loss(
        self, batch: Batch, layer_map: Sequence[int], frozen: int = 0, gates: Mapping[int, float] = NO_GATES
    ) -> Tensor:
        """Mean cross-entropy in nats over the batch's predictions; the head runs on those rows only.

        With frozen layers the token embedding stands still, and so does the decoder, which it is.
        """
        hidden = self.trunk(batch.tokens, layer_map, frozen=frozen, gates=gates).flatten(0, 1)[batch.positions]
        decoder = self.tokens.weight.detach() if frozen else self.tokens.weight
        return decoder_loss(self.before_decoder(hidden), decoder, self.head_bias, batch.targets)

    def forward(
        self, batch: Batch, layer_map: Sequence[int], frozen: int = 0, gates: Mapping[int, float] = NO_GATES
    ) -> Tensor:
        """The loss: what is trained, and what torch's wrappers call."""
        return self.loss(batch, layer_map, frozen, gates)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokens.weight.device

    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def initialize(self) -> None:
        """Draws all weights from torch's global generator, as `shape.init` says."""
        init = self.model_config.init
        into_residual = (
            init.std / (2 * self.model_config.layers) ** 0.5 if init.residual == "by_depth" else init.std
        )
        stds = {"positions": init.positions_std, "attention_out": into_residual, "ffn_out": into_residual}
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=stds.get(name.rpartition(".")[2], init.std))
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if init.positions == "sinusoidal":
            positions = self.positions.weight
            with torch.no_grad():
                positions.copy_(sinusoids(*positions.shape) * (2**0.5 * init.positions_std))


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width): sine and cosine side by side, from one wave to the next slower by a constant factor.

    Vaswani 2017, section 3.5. A root mean square of 1 / sqrt(2).
    """
    frequencies = LONGEST_WAVE ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
