"""What a finished run has learned, for a reader: the loss of answering by frequency, and answers to new text."""

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch
from tokenizers import Tokenizer

from apollo_cli.data.batches import EvaluationBatches
from apollo_cli.data.tokenizer import inside_words, special_ids
from apollo_cli.models.sampling import SamplingRule, continuation
from apollo_cli.models.transformer import LanguageModel

_COUNTED = 1 << 22  # training tokens, evenly spread, that frequencies are counted on
_EXAMPLES = 5
_CONTEXT = 24  # letters on each side of a masked word
_LETTERS = (4, 12)  # in a masked word
_PROMPT = 12  # tokens that GPT continues, or as many more as make a line with words
_RULE = SamplingRule(temperature=0.7, top_k=50)


def frequency_loss(kind: str, training: np.ndarray, validation: EvaluationBatches, vocabulary: int) -> float:
    """The loss of a model that always answers with the frequencies of the training text, in nats.

    Frequencies are those of the tokens that can be predicted in the rows (rows, seq_len), each counted once more
    than it occurs, so that none is impossible.
    """
    rows = training[:: max(1, training.size // _COUNTED)]
    predicted = rows[:, 1:-1] if kind == "bert" else rows[:, 1:]
    counts = np.bincount(predicted.ravel(), minlength=vocabulary) + 1
    targets = np.concatenate([batch.targets.numpy() for batch, _ in validation])
    return float(np.log(counts.sum()) - np.log(counts[targets]).mean())


@dataclass(frozen=True)
class Example:
    """A piece of held-out text and what the model made of it."""

    before: str  # the text before the answer
    answer: str  # the model's
    after: str = ""  # the text after it; empty for a continuation
    original: str | None = None  # the word that was masked; None for a continuation


@torch.no_grad()
def examples(model: LanguageModel, tokenizer: Tokenizer, rows: np.ndarray) -> list[Example]:
    """Up to five words of validation rows (rows, seq_len) masked and answered; of GPT and LLaMA a continuation."""
    was_training = model.training
    model.eval()
    # compiled blocks run as they are, as each of these few shapes would be compiled by itself; the compiler takes
    # seconds to import, so it is not asked where it was not used
    is_compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        if model.model_config.kind == "bert":
            inside, spread = inside_words(tokenizer), rows[:: max(1, len(rows) // (4 * _EXAMPLES))]
            filled = (_filled(model, tokenizer, row, inside[row]) for row in spread)
            found = list(islice(filter(None, filled), _EXAMPLES))
        else:
            found = [_continued(model, tokenizer, rows[0])]
    model.train(was_training)
    return found


def _filled(model: LanguageModel, tokenizer: Tokenizer, row: np.ndarray, inside: np.ndarray) -> Example | None:
    """A word in the middle of the row, masked and answered; None if none there is of letters and of some length.

    `inside` tells which tokens of the row continue the word before them.
    """
    tokens = row.astype(np.int64)
    begins = [i for i in range(len(row) // 3, len(row) - len(row) // 4) if not inside[i]]
    for start, end in pairwise(begins):
        original = tokenizer.decode(tokens[start:end].tolist())
        if original.strip().isalpha() and _LETTERS[0] <= len(original.strip()) <= _LETTERS[1]:
            break
    else:
        return None
    masked = torch.from_numpy(tokens.copy())[None].to(model.device)
    masked[0, start:end] = special_ids("bert", tokenizer)["mask"]
    answer = fill(model, masked, range(start, end))
    before, after = (tokenizer.decode(part.tolist()).strip() for part in (tokens[:start], tokens[end:]))
    answered = tokenizer.decode(answer, skip_special_tokens=False).strip()
    return Example(f"{before[-_CONTEXT:]} ", answered, f" {after[:_CONTEXT]}", original.strip())


def fill(model: LanguageModel, row: torch.Tensor, masked: range) -> list[int]:
    """The tokens of a row (1, seq_len) at its masked positions, the surest first (Ghazvininejad 2019, 1904.09324).

    Each one is written into the row before the next is chosen, so that the letters of a word suit each other.
    """
    logical, left = range(len(model.blocks)), list(masked)
    while left:
        hidden = model.trunk(row, logical)[0, left]
        best = model.head(hidden).float().softmax(-1).max(-1)
        surest = int(best.values.argmax())
        row[0, left.pop(surest)] = best.indices[surest]
    return row[0, masked.start : masked.stop].tolist()


def _continued(model: LanguageModel, tokenizer: Tokenizer, row: np.ndarray) -> Example:
    """The beginning of a row and its continuation to the length of the row."""
    prompt = row[: max(_PROMPT, len(row) // 3)].tolist()
    end = special_ids(model.model_config.kind, tokenizer)["eos"]
    more = list(continuation(model, prompt, len(row) - len(prompt), _RULE, end, seed=0))
    before = tokenizer.decode(prompt)
    return Example(before, tokenizer.decode(prompt + more)[len(before) :])


def example_lines(found: list[Example]) -> list[str]:
    """The examples as lines to print; [ ] enclose what the model wrote."""
    if not found:
        return []
    if found[0].original is None:
        return ["a held-out text and the model's continuation in [ ]:", *(f"  {_line(each)}" for each in found)]
    width = max(len(each.original or "") for each in found)
    return [
        "words of held-out texts that were masked, and the model's answers in [ ]:",
        *(f"  {each.original:{width}}  {_line(each)}" for each in found),
    ]


def _line(example: Example) -> str:
    """In one line, spaces as single ones."""
    return " ".join(f"{example.before}[{example.answer}]{example.after}".split())
