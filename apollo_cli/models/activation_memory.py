"""The memory of a training step, in closed form."""

from dataclasses import dataclass

from apollo_cli.models.communication import STATE
from apollo_cli.models.cross_entropy import bytes_at_once
from apollo_cli.models.model_config import ModelConfig

_INPUT = 48  # bytes a token of a batch: as it is read, as int64, and what is asked of it


@dataclass(frozen=True)
class ActivationMemory:
    """How a device keeps the activations of a model.

    Attributes:
        shape: of the model.
        device: its type, for example `cpu`.
        bf16: matrix products run under autocast.
    """

    model_config: ModelConfig
    device: str
    bf16: bool

    @property
    def of_layer(self) -> int:
        """Bytes that a layer keeps for the backward pass, a token.

        In numbers of width h and inner width f: the layer's input, q k v, the attention's output, the sums and
        norms around (8 h in all), what goes into GELU and comes out of it (2 f); one for each head, and four of the
        norms. Autocast keeps all but two norms in 2 bytes.
        """
        h, f, small = self.model_config.hidden, self.model_config.ffn, 4 * self.model_config.heads + 16
        if self.bf16:
            return 2 * (6 * h + 2 * f) + 4 * 2 * h + small + self._of_dropout
        return 4 * (8 * h + 2 * f) + small + self._of_dropout

    @property
    def _of_dropout(self) -> int:
        """What dropout adds to a layer, a token, on a CPU; on a GPU it is little.

        Of attention the weights, their mask, and those that stay, one for each head and token of the row, in place
        of one for each head; the masks of both halves (2 h).
        """
        if self.device != "cpu" or not self.model_config.dropout:
            return 0
        h, weights = self.model_config.hidden, self.model_config.heads * self.model_config.positions
        if self.bf16:
            return (4 + 4 + 2) * weights + 2 * 2 * h - 4 * self.model_config.heads
        return 4 * (3 * weights + 2 * h - self.model_config.heads)

    def training_bytes(self, parameters: int, tokens: int, depth: int, predictions: int, pieces: int) -> int:
        """Peak of a micro-step of one device on its own: the whole state, and what it works on."""
        return STATE * parameters + self.working_bytes(tokens, depth, predictions, pieces)

    def working_bytes(self, tokens: int, depth: int, predictions: int, pieces: int) -> int:
        """Of a micro-step that takes `tokens` and `predictions` through `depth` layers in so many `pieces`.

        The batch, and of one piece: what the layers keep, the logits of a chunk and their exponentials, and what is
        at work around the last layer: some more numbers a token and a prediction.
        """
        batch = _INPUT * tokens
        tokens, predictions = tokens // pieces, predictions // pieces
        at_work = 4 * self.model_config.hidden * (6 * tokens + 6 * predictions)
        logits = 2 * min(bytes_at_once(self.device), 4 * predictions * self.model_config.vocabulary)
        return batch + tokens * depth * self.of_layer + logits + at_work
