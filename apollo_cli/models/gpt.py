"""Causal, pre-norm models with a norm before the decoder: GPT-2 (Radford 2019) and LLaMA (Touvron 2023)."""

from torch import Tensor

from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import LanguageModel, new_norm


class Gpt(LanguageModel):
    """GPT-2 with N stored layers."""

    def __init__(self, model_config: ModelConfig, layers: int) -> None:
        super().__init__(model_config, layers)
        self.final_norm = new_norm(model_config)
        self.initialize()

    def embed(self, tokens: Tensor, segments: Tensor | None = None, first: int = 0) -> Tensor:
        """The sum of token and position embeddings; GPT-2 has no segments."""
        hidden = self.tokens(tokens) + self.positions.weight[first : first + tokens.shape[1]]
        return self.dropout(hidden)

    def last_norm(self, hidden: Tensor) -> Tensor:
        return self.final_norm(hidden)


class Llama(Gpt):
    """LLaMA (arXiv 2302.13971) with N stored layers: RMSNorm, rotations for positions, SwiGLU, no biases."""

    def embed(self, tokens: Tensor, segments: Tensor | None = None, first: int = 0) -> Tensor:
        """The token embeddings; positions are in the layers, and there are no segments."""
        return self.dropout(self.tokens(tokens))
