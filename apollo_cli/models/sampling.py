"""Continuations of a causal model, and the likeliest words for BERT's masks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from apollo_cli.growth.layer_maps import layers_to_run
from apollo_cli.models.key_value_cache import KeyValueCache
from apollo_cli.models.transformer import LanguageModel

_COLDEST = 1e-6  # as cold as 0 in float32


@dataclass(frozen=True)
class SamplingRule:
    """How the next token is drawn from its distribution."""

    temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
    top_k: int | None = None  # only so many of the likeliest tokens; None for all
    # only the likeliest tokens that together have this probability (Holtzman 2020, arXiv 1904.09751)
    top_p: float = 1.0

    def draw(self, logits: Tensor, rng: torch.Generator) -> int:
        """A token from logits (vocabulary,)."""
        if self.temperature < _COLDEST:
            return int(logits.argmax())
        ordered, tokens = (logits.float() / self.temperature).sort(descending=True)
        probabilities = ordered[: self.top_k].softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities[before >= self.top_p] = 0.0  # the first token always stays
        return int(tokens[torch.multinomial(probabilities.cpu(), 1, generator=rng)])


@torch.no_grad()
def continuation(
    model: LanguageModel,
    prompt: list[int],
    count: int,
    rule: SamplingRule,
    end: int,
    seed: int,
    depth: int | None = None,
) -> Iterator[int]:
    """At most `count` tokens after the prompt, one by one, until `end`; `depth` layers run, by default the stored.

    The model sees the last tokens that fit. While all fit, keys and values of those before the newest are kept;
    after that every token has another position at each step, and all are computed anew.
    """
    rng = torch.Generator().manual_seed(seed)
    logical = layers_to_run(len(model.blocks), depth or len(model.blocks))
    whole = max(len(logical), len(model.blocks))
    tokens, most = list(prompt), model.model_config.positions
    caches = [KeyValueCache(min(most, len(tokens) + count)) for _ in logical]
    for _ in range(count):
        if caches and len(tokens) <= most:
            new = torch.tensor([tokens[caches[0].length :]], device=model.device)
            hidden = model.trunk(new, logical, caches=caches, depth=whole)[0, -1]
        else:
            new = torch.tensor([tokens[-most:]], device=model.device)
            hidden = model.trunk(new, logical, depth=whole)[0, -1]
        token = rule.draw(model.head(hidden), rng)
        if token == end:
            return
        tokens.append(token)
        yield token


@torch.no_grad()
def mask_candidates(
    model: LanguageModel, tokens: list[int], mask: int, count: int, depth: int | None = None
) -> list[list[tuple[int, float]]]:
    """For each mask in the tokens, framed as in training, the likeliest tokens and their probabilities."""
    logical = layers_to_run(len(model.blocks), depth or len(model.blocks))
    row = torch.tensor([tokens], device=model.device)
    hidden = model.trunk(row, logical, depth=max(len(logical), len(model.blocks)))[0, row[0] == mask]
    probabilities = model.head(hidden).float().softmax(-1)
    likeliest = probabilities.topk(min(count, probabilities.shape[-1]))
    found = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [list(zip(tokens_of_mask, values, strict=True)) for tokens_of_mask, values in found]
