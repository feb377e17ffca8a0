"""A pretrained model with a head that predicts a label or a number instead of tokens."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from apollo_cli.glue.sentences import SentenceBatch
from apollo_cli.growth.samplers import NO_GATES
from apollo_cli.models.dropout import Dropout
from apollo_cli.models.flops import FORWARD_AND_BACKWARD, layer_flops
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch, LanguageModel


class Classifier(nn.Module):
    """The layers of a language model and a new head, as in transformers' `...ForSequenceClassification`.

    BERT: dense and tanh at [CLS] (its pooler, new where pretraining had none), dropout, linear. Others: the final
    norm at the last token, linear without bias. New weights are drawn from torch's global generator with the
    deviation of the model's own initialization.
    """

    def __init__(self, body: LanguageModel, outputs: int, pooler: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.body, self.model_config = body, body.model_config
        hidden, is_bert = body.model_config.hidden, body.model_config.kind == "bert"
        self.pooler = nn.Linear(hidden, hidden) if is_bert else None
        self.dropout = Dropout(body.model_config.dropout)
        self.answer = nn.Linear(hidden, outputs, bias=is_bert)
        for layer in filter(None, (self.pooler, self.answer)):
            nn.init.normal_(layer.weight, std=body.model_config.init.std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.pooler and pooler:
            self.pooler.load_state_dict(pooler)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.body.blocks

    def forward(self, batch: SentenceBatch, layer_map: Sequence[int]) -> Tensor:
        """(rows, outputs): logits of the labels, or one number per row."""
        mask = batch.attention_mask if self.pooler else None  # a causal model never attends to padding at the end
        hidden = self.body.trunk(batch.tokens, layer_map, mask, batch.segments, token_indices=batch.token_indices)
        hidden = self.body.last_norm(hidden.flatten(0, 1)[batch.positions])
        if self.pooler is None:
            return self.answer(hidden)
        pooled = self.pooler(hidden).tanh()
        return self.answer(self.dropout(pooled))

    def loss(
        self, batch: Batch, layer_map: Sequence[int], frozen: int = 0, gates: Mapping[int, float] = NO_GATES
    ) -> Tensor:
        """Mean cross-entropy in nats, or mean squared error where the labels are numbers.

        Every layer is trained and none has a gate, so the last two arguments say nothing.
        """
        assert isinstance(batch, SentenceBatch)
        return task_loss(self(batch, layer_map), batch.targets)


def task_loss(answers: Tensor, labels: Tensor) -> Tensor:
    """The mean over the rows of cross-entropy, or of the squared error of float labels; in fp32."""
    if labels.is_floating_point():
        return F.mse_loss(answers.float().squeeze(-1), labels)
    return F.cross_entropy(answers.float(), labels)


def fine_tuning_flops(model_config: ModelConfig, outputs: int, rows: int, seq_len: int, tokens: int) -> int:
    """FLOPs of a step: `layer_flops` of each layer, and per row the head's.

    Per row, with width h: BERT's pooler 2 h^2, the linear head 2 h outputs. The batch has `rows` rows, the longest
    of `seq_len` tokens, and `tokens` tokens in all, without padding.
    """
    head = 2 * model_config.hidden * outputs + (2 * model_config.hidden**2 if model_config.kind == "bert" else 0)
    layers = model_config.layers * layer_flops(model_config, rows, seq_len, tokens)
    return FORWARD_AND_BACKWARD * (layers + rows * head)
