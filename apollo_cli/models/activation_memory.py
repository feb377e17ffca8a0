"""The memory of a training step, in closed form."""

from dataclasses import dataclass

from apollo_cli.models.cross_entropy import chunk_bytes
from apollo_cli.models.dropout import MAX_POSITIONS
from apollo_cli.models.model_config import ModelConfig

_INPUT = 48  # bytes a token of a batch: as read, as int64, and its targets


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of the activations that a device keeps for the backward pass."""

    model_config: ModelConfig  # sizes of the model
    device: str  # device type, for example `cpu`
    bf16: bool  # matrix products run under autocast

    @property
    def bytes_per_layer(self) -> int:
        """Bytes that a layer keeps for the backward pass, per token.

        In numbers of width h and inner width f: the layer's input, the attention's output, the sums and norms
        around (5 h in all), q k v (3 h), input and output of GELU (2 f); one per head, and two for each LayerNorm.
        Autocast keeps all but two norms in 2 bytes. SwiGLU has two inputs, and keeps SiLU's output too (4 f);
        rotated q and k are kept beside q k v, whose storage v needs; an RMSNorm keeps one number.
        """
        config, architecture = self.model_config, self.model_config.architecture
        h, qkv = config.hidden, 3 * config.hidden
        if architecture.rotary and not self._multiplies:  # there, all three are copied, for every head
            qkv = 2 * h + 3 * config.kv_hidden
        inner = (4 if architecture.activation == "swiglu" else 2) * config.ffn
        small = 4 * config.heads + (8 if architecture.rms_norm else 16)
        if self.bf16:
            return 2 * (3 * h + qkv + inner) + 4 * 2 * h + small + self._products_bytes
        return 4 * (5 * h + qkv + inner) + small + self._products_bytes

    @property
    def _multiplies(self) -> bool:
        """Whether attention is two products and a softmax, as `dropout.attention` decides in training."""
        short = self.bf16 and self.model_config.positions <= MAX_POSITIONS
        return self.device == "cpu" and (short or bool(self.model_config.dropout))

    @property
    def _products_bytes(self) -> int:
        """Bytes that such attention and dropout add to a layer, per token, on a CPU; on a GPU they are few.

        Attention keeps the weights, with dropout their mask and their product too, each heads x seq_len instead of
        one per head; with dropout both halves keep their mask (2 h).
        """
        if not self._multiplies:
            return 0
        h, weights = self.model_config.hidden, self.model_config.heads * self.model_config.positions
        per_weight, per_mask = (4 + 4 + 2, 2) if self.bf16 else (4 + 4 + 4, 4)
        if not self.model_config.dropout:
            per_weight, per_mask = 2, 0
        return per_weight * weights + per_mask * 2 * h - 4 * self.model_config.heads

    def working_bytes(self, tokens: int, depth: int, predictions: int, chunks: int) -> int:
        """Peak beside the training state of a micro-step through `depth` layers, run in `chunks` equal parts.

        The batch, and of one chunk: the kept activations, a block of logits and their exponentials, and the
        temporaries around the last layer (6 h numbers per token and per prediction).
        """
        batch = _INPUT * tokens
        tokens, predictions = tokens // chunks, predictions // chunks
        temporaries = 4 * self.model_config.hidden * (6 * tokens + 6 * predictions)
        logits = 2 * min(chunk_bytes(self.device, bf16=self.bf16), 4 * predictions * self.model_config.vocabulary)
        return batch + tokens * depth * self.bytes_per_layer + logits + temporaries
