"""GPT-2 (Radford 2019): pre-norm, causal, head tied to the embedding."""

import torch
from torch import Tensor, nn

from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Block, LanguageModel

EPS = 1e-5


class Gpt(LanguageModel):
    """GPT-2 with N stored layers."""

    def __init__(self, model_config: ModelConfig, layers: int) -> None:
        super().__init__(model_config, layers)
        self.final_norm = nn.LayerNorm(model_config.hidden, eps=EPS)
        self.initialize()

    def new_block(self) -> Block:
        """A pre-norm, causal block with the tanh form of GELU."""
        with self.device:
            return Block(self.model_config, pre_norm=True, causal=True, gelu="tanh", eps=EPS)

    def embed(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """The sum of token and position embeddings; GPT-2 has no segments."""
        hidden = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.dropout(hidden)

    def block_mask(self, attention_mask: Tensor) -> Tensor:
        """Every position attends to itself and the tokens before it that are not padding."""
        length = attention_mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
        return causal & attention_mask[:, None, None, :]

    def before_decoder(self, hidden: Tensor) -> Tensor:
        """The final norm."""
        return self.final_norm(hidden)
