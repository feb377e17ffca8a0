"""BERT (Devlin 2019): post-norm, bidirectional, masked-language-model head tied to the embedding."""

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
        self.embedding_norm = new_norm(model_config)
        self.transform = nn.Linear(model_config.hidden, model_config.hidden)
        self.transform_norm = new_norm(model_config)
        self.head_bias = nn.Parameter(torch.zeros(model_config.vocabulary))
        self.initialize()

    def embed(self, tokens: Tensor, segments: Tensor | None = None, first: int = 0) -> Tensor:
        """The normalised sum of token, position and segment embeddings."""
        segment = self.segments.weight[0] if segments is None else self.segments(segments)
        hidden = self.tokens(tokens) + self.positions.weight[first : first + tokens.shape[1]] + segment
        return self.dropout(self.embedding_norm(hidden))

    def before_decoder(self, hidden: Tensor) -> Tensor:
        """The MLM head's transform: dense, GELU, norm."""
        return self.transform_norm(F.gelu(self.transform(hidden)))
