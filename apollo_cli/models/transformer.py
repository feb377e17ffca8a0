"""The Transformer block, and a language model whose forward pass runs its blocks through a layer map."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import zip_longest
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apollo_cli.growth.samplers import NO_GATES
from apollo_cli.models.cross_entropy import decoder_loss
from apollo_cli.models.dropout import Dropout, attention
from apollo_cli.models.key_value_cache import KeyValueCache
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.rms_norm import RmsNorm
from apollo_cli.models.rows import take_rows
from apollo_cli.models.unpadding import Unpadding

LONGEST_WAVE = 10_000  # wavelength of the slowest sinusoid / 2 pi, in positions (Vaswani 2017); RoPE's theta
_GELU_FORMS = {"gelu": "none", "gelu_tanh": "tanh"}


@dataclass(frozen=True)
class Batch:
    """The input of a micro-step."""

    tokens: Tensor  # (rows, seq_len) int64, the model's input
    # (predictions,) int64, indices into the flattened rows where a token is predicted, all different
    positions: Tensor
    targets: Tensor  # (predictions,) int64, the correct tokens there

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> Self:
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in self.tensors.items()})

    def pin_memory(self) -> Self:
        return replace(self, **{name: t.pin_memory() for name, t in self.tensors.items()})

    def chunks(self, count: int) -> Sequence["Batch"]:
        """`count` batches of equally many rows and predictions; `count` must divide the number of rows."""
        rows, seq_len = self.tokens.shape
        firsts = torch.arange(0, rows, rows // count, device=self.positions.device)
        positions = self.positions.view(count, -1) - seq_len * firsts[:, None]
        parts = (self.tokens.chunk(count), positions, self.targets.view(count, -1))
        return [Batch(*part) for part in zip(*parts, strict=True)]


def apply_linear(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """`layer(hidden)`; in fp32 on a CPU the bias is added in place, as torch would first copy it to every row."""
    is_short = torch.is_autocast_enabled(hidden.device.type)
    if layer.bias is None or hidden.device.type != "cpu" or is_short or torch.compiler.is_compiling():
        return layer(hidden)
    return F.linear(hidden, layer.weight).add_(layer.bias)


def new_norm(model_config: ModelConfig) -> RmsNorm | nn.LayerNorm:
    """The norm of the residual stream."""
    norm = RmsNorm if model_config.architecture.rms_norm else nn.LayerNorm
    return norm(model_config.hidden, eps=model_config.architecture.eps)


def rotations(length: int, width: int, device: torch.device) -> Tensor:
    """(2, length, width): by what `rotated` multiplies a vector, and the one with its halves exchanged.

    Components i and i + width / 2 are the plane that turns by position x LONGEST_WAVE^(-2 i / width) (Su 2021,
    section 3.4.2, in the order of transformers): its cosine twice; minus its sine, and its sine.
    """
    frequencies = LONGEST_WAVE ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequencies
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)))


def rotated(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys (..., seq_len, width) turned by their position; computed in fp32, returned in their type."""
    exchanged = vectors.roll(vectors.shape[-1] // 2, -1)
    return (vectors * rotation[0] + exchanged * rotation[1]).to(vectors.dtype)


def add_branch(hidden: Tensor, branch: Tensor, multiplier: Tensor | None) -> Tensor:
    """hidden + multiplier branch, in one pass over the numbers."""
    return hidden + branch if multiplier is None else torch.addcmul(hidden, branch, multiplier)


class Block(nn.Module):
    """One layer: self-attention and a feed-forward part, each with a residual connection and a norm."""

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__()
        self.architecture, self.head_width = model_config.architecture, model_config.hidden // model_config.heads
        self.pre_norm = self.architecture.pre_norm
        scores = model_config.multipliers(1).scores
        self.score_scale = None if scores == 1 else scores * self.head_width**-0.5
        self.qkv_widths = model_config.qkv_widths
        hidden, ffn, linear = (
            model_config.hidden,
            model_config.ffn,
            partial(nn.Linear, bias=self.architecture.biases),
        )
        self.dropout = Dropout(model_config.dropout)
        self.qkv = linear(hidden, sum(self.qkv_widths))
        self.attention_out = linear(hidden, hidden)
        self.attention_norm = new_norm(model_config)
        if self.architecture.activation == "swiglu":
            self.gate_up = linear(hidden, 2 * ffn)
        else:
            self.ffn_in = linear(hidden, ffn)
        self.ffn_out = linear(ffn, hidden)
        self.ffn_norm = new_norm(model_config)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        unpadding: Unpadding | None = None,
        rotation: Tensor | None = None,
        cache: KeyValueCache | None = None,
        multiplier: Tensor | None = None,
    ) -> Tensor:
        """(rows, seq_len, hidden) -> the same; with `unpadding` (tokens, hidden).

        `mask` broadcasts to (rows, heads, seq, seq), True where attention is allowed. `rotation` has the numbers of
        `rotations`. `cache` has the tokens before these. `multiplier`, (), is the factor of what a pre-norm layer
        adds.
        """
        if self.pre_norm:
            attended = self._attention(self.attention_norm(hidden), mask, unpadding, rotation, cache)
            hidden = add_branch(hidden, attended, multiplier)
            return add_branch(hidden, self._feed_forward(self.ffn_norm(hidden)), multiplier)
        hidden = self.attention_norm(hidden + self._attention(hidden, mask, unpadding, rotation, cache))
        return self.ffn_norm(hidden + self._feed_forward(hidden))

    def _attention(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        unpadding: Unpadding | None,
        rotation: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        qkv = apply_linear(self.qkv, hidden)
        if unpadding:
            qkv = unpadding.pad(qkv)
        # split before it is transposed, so that the three gradients are joined by one copy
        parts = (part.unflatten(-1, (-1, self.head_width)) for part in qkv.split(self.qkv_widths, -1))
        query, key, value = (part.transpose(1, 2) for part in parts)
        if rotation is not None:
            query, key = rotated(query, rotation), rotated(key, rotation)
        causal = self.architecture.causal and mask is None
        if cache is not None:
            causal = causal and not cache.length  # else it is one token, which attends to all
            key, value = cache.extended(key, value)
        mixed = attention(
            query,
            key,
            value,
            mask,
            causal=causal,
            probability=self.dropout.active_probability,
            scale=self.score_scale,
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        if unpadding:
            mixed = unpadding.unpad(mixed)
        return self.dropout(apply_linear(self.attention_out, mixed))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        if self.architecture.activation == "swiglu":
            gate, up = apply_linear(self.gate_up, hidden).chunk(2, -1)
            inner = F.silu(gate) * up
        else:
            inner = F.gelu(apply_linear(self.ffn_in, hidden), approximate=_GELU_FORMS[self.architecture.activation])
        return self.dropout(apply_linear(self.ffn_out, inner))


class LanguageModel(nn.Module, ABC):
    """Embeddings, N stored blocks and a decoder. Subclasses define the embeddings and the head."""

    head_bias: nn.Parameter | None  # of the decoder

    def __init__(self, model_config: ModelConfig, layers: int) -> None:
        super().__init__()
        self.model_config = model_config
        self.dropout = Dropout(model_config.dropout)
        self.tokens = nn.Embedding(model_config.vocabulary, model_config.hidden)
        if not model_config.architecture.rotary:
            self.positions = nn.Embedding(model_config.positions, model_config.hidden)
        self.blocks = nn.ModuleList(self.new_block() for _ in range(layers))
        if not model_config.tied:
            self.decoder = nn.Linear(model_config.hidden, model_config.vocabulary, bias=False)
        self.register_parameter("head_bias", None)

    def new_block(self) -> Block:
        """A block with torch's initialization, to be overwritten, on the device of the embeddings."""
        with self.device:
            return Block(self.model_config)

    @abstractmethod
    def embed(self, tokens: Tensor, segments: Tensor | None = None, first: int = 0) -> Tensor:
        """(rows, seq_len) -> (rows, seq_len, hidden).

        `segments` is (rows, seq_len), None for all 0; `first` is the position of the first token.
        """

    @abstractmethod
    def last_norm(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden), the trunk's result normalised, which any head reads."""

    def before_decoder(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden), the decoder's input in the standard parametrization."""
        return self.last_norm(hidden)

    def trunk(
        self,
        tokens: Tensor,
        layer_map: Sequence[int],
        attention_mask: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        token_indices: Tensor | None = None,
        frozen: int = 0,
        gates: Mapping[int, float] = NO_GATES,
        caches: Sequence[KeyValueCache] = (),
        depth: int | None = None,
    ) -> Tensor:
        """Hidden states (rows, seq_len, hidden) after `len(layer_map)` logical layers.

        Args:
            tokens: (rows, seq_len).
            layer_map: logical layer i runs block layer_map[i].
            attention_mask: (rows, seq_len) bool, False at padding; None without padding.
            segments: (rows, seq_len).
            token_indices: (tokens,), positions in the flattened rows that are no padding. With them no layer but
                attention computes on padding, and the result is zero there.
            frozen: the embedding and so many layers run forward only, if not 0.
            gates: block i contributes with weight gates[i], its input with 1 - gates[i].
            caches: one for each logical layer, or none; `tokens` are then those after the ones in them, of which
                there may be one alone unless they are empty.
            depth: number of layers of the whole pass, where these are only a part of it.
        """
        branch = self.model_config.multipliers(depth or len(layer_map)).branch
        # a tensor, as a compiled block is compiled again for each value of a number
        multiplier = None if branch == 1 else self.tokens.weight.new_full((), branch)
        mask = None if attention_mask is None else self._block_mask(attention_mask)
        unpadding = None if token_indices is None else Unpadding(tokens.shape, token_indices)

        def run(hidden: Tensor, layers: Sequence[int], caches: Sequence[KeyValueCache] = ()) -> Tensor:
            for i, cache in zip_longest(layers, caches):
                result = self.blocks[i](hidden, mask, unpadding, rotation, cache, multiplier)
                hidden = hidden.lerp(result, gates[i]) if i in gates else result
            return hidden

        with torch.no_grad() if frozen else nullcontext():
            first = caches[0].length if caches else 0
            hidden = self.embed(tokens, segments, first)
            if unpadding:
                hidden = unpadding.unpad(hidden)
            rotation = self._rotation(first, first + tokens.shape[1])
            hidden = run(hidden, layer_map[:frozen])
        hidden = run(hidden, layer_map[frozen:], caches)
        return unpadding.pad(hidden) if unpadding else hidden

    def _block_mask(self, attention_mask: Tensor) -> Tensor:
        """The mask of a block, from (rows, seq_len) bool that is False at padding."""
        mask = attention_mask[:, None, None, :]
        if not self.model_config.architecture.causal:
            return mask
        length = attention_mask.shape[1]
        return mask & torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()

    def _rotation(self, first: int, end: int) -> Tensor | None:
        """`rotations` at these positions, where the model has rotations."""
        if not self.model_config.architecture.rotary:
            return None
        return rotations(end, self.model_config.hidden // self.model_config.heads, self.device)[:, first:]

    def logits(self, tokens: Tensor, layer_map: Sequence[int], attention_mask: Tensor | None = None) -> Tensor:
        """(rows, seq_len) -> (rows, seq_len, vocabulary); arguments as of `trunk`."""
        return self.head(self.trunk(tokens, layer_map, attention_mask))

    def head(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocabulary)."""
        return F.linear(self.decoder_input(hidden), self.decoder_weight, self.head_bias)

    def decoder_input(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden): `before_decoder`, times the multiplier of the logits."""
        hidden, multiplier = self.before_decoder(hidden), self.model_config.multipliers(1).logits
        return hidden if multiplier == 1 else hidden * multiplier

    @property
    def decoder_weight(self) -> Tensor:
        """(vocabulary, hidden)."""
        return self.tokens.weight if self.model_config.tied else self.decoder.weight

    def loss(
        self, batch: Batch, layer_map: Sequence[int], frozen: int = 0, gates: Mapping[int, float] = NO_GATES
    ) -> Tensor:
        """Mean cross-entropy in nats over the batch's predictions; the head runs at those positions only.

        With frozen layers the token embedding is frozen too, and so is a decoder that shares its weight.
        """
        hidden = self.trunk(batch.tokens, layer_map, frozen=frozen, gates=gates).flatten(0, 1)
        hidden = take_rows(hidden, batch.positions)
        decoder = self.decoder_weight
        if frozen and self.model_config.tied:
            decoder = decoder.detach()
        return decoder_loss(self.decoder_input(hidden), decoder, self.head_bias, batch.targets)

    forward = loss  # the name that torch's wrappers call

    @property
    def device(self) -> torch.device:
        return self.tokens.weight.device

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def initialize(self) -> None:
        """Draws all weights from torch's global generator as `model_config.init` says; none on the meta device."""
        if self.device.type == "meta":
            return
        self.draw(self)
        init = self.model_config.init
        if init.positions == "sinusoidal" and not self.model_config.architecture.rotary:
            positions = self.positions.weight
            with torch.no_grad():
                positions.copy_(sinusoids(*positions.shape) * (2**0.5 * init.positions_std))

    def draw(self, part: nn.Module, random: torch.Generator | None = None) -> None:
        """Draws the weights of the model or of a block of it, from torch's global generator if none is given.

        With CompleteP hidden matrices have a deviation smaller by 1 / sqrt(m_N); embeddings and decoder that of the
        base model.
        """
        init, complete_p = self.model_config.init, self.model_config.complete_p
        hidden_std = init.std / self.model_config.width_ratio**0.5
        residual_std = hidden_std
        if init.residual == "by_depth":
            residual_std /= (2 * (complete_p.layers if complete_p else self.model_config.layers)) ** 0.5
        stds = {"positions": init.positions_std, "attention_out": residual_std, "ffn_out": residual_std}
        stds |= dict.fromkeys(("tokens", "segments", "decoder"), init.std)
        for name, module in part.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=stds.get(name.rpartition(".")[2], hidden_std), generator=random)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) sinusoidal positions with root mean square 1 / sqrt(2) (Vaswani 2017, section 3.5).

    Sine and cosine alternate; frequencies fall by a constant factor from one pair to the next.
    """
    frequencies = LONGEST_WAVE ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
