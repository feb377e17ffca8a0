"""BERT: bidirectional, masked-language-model head tied to the embedding.

Post-norm (Devlin 2019), or pre-norm as Megatron's (Shoeybi 2019, arXiv 1909.08053): no norm after the embeddings,
one after the last layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel, new_norm

SEGMENTS = 2  # pretraining uses segment 0 alone; fine-tuning on pairs of sentences both


class Bert(LanguageModel):
    """BERT with N stored layers."""

    def __init__(self, model_config: ModelConfig, layers: int) -> None:
        super().__init__(model_config, layers)
        self.segments = nn.Embedding(SEGMENTS, model_config.hidden)
        pre_norm = model_config.architecture.pre_norm
        self.embedding_norm = nn.Identity() if pre_norm else new_norm(model_config)
        self.encoder_norm = new_norm(model_config) if pre_norm else nn.Identity()
        self.transform = nn.Linear(model_config.hidden, model_config.hidden)
        self.transform_norm = new_norm(model_config)
        self.head_bias = nn.Parameter(torch.zeros(model_config.vocabulary))
        self.initialize()

    def embed(self, tokens: Tensor, segments: Tensor | None = None, first: int = 0) -> Tensor:
        """The sum of token, position and segment embeddings; normalised in a post-norm model."""
        segment = self.segments.weight[0] if segments is None else self.segments(segments)
        hidden = self.tokens(tokens) + self.positions.weight[first : first + tokens.shape[1]] + segment
        return self.dropout(self.embedding_norm(hidden))

    def last_norm(self, hidden: Tensor) -> Tensor:
        """The encoder's norm in a pre-norm model; the last layer has normalised in a post-norm one."""
        return self.encoder_norm(hidden)

    def before_decoder(self, hidden: Tensor) -> Tensor:
        """The MLM head's transform: dense, GELU, norm."""
        return self.transform_norm(F.gelu(self.transform(self.last_norm(hidden))))
