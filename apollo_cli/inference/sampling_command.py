"""The words of `apollo-sample`, the prompt, and what is printed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from apollo_cli.cli.plain_words import parse_words
from apollo_cli.config.schema import Section, Seed, Size
from apollo_cli.data.tokenizer import special_ids
from apollo_cli.errors import ConfigError, DataError, printable
from apollo_cli.inference.trained import TrainedModel, load_trained
from apollo_cli.models.sampling import SamplingRule, continuation, mask_candidates
from apollo_cli.tracking.console import Console

MASK = "[MASK]"


class SamplingArgs(Section, strict=False):
    """What may be typed."""

    run: str
    checkpoint: str | None = None
    depth: Size | None = None
    prompt: str | None = None
    prompt_file: str | None = None
    tokens: Size = 100
    number: Size = 1
    seed: Seed = 0
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Size | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    candidates: Annotated[Size, Field(le=100)] = 5


def sample(words: Sequence[str]) -> None:
    """Prints what the model makes of the prompt: continuations as they grow, or candidates for each mask."""
    args = parse_words(SamplingArgs, words, "apollo-sample")
    prompt = _prompt(args)
    trained = load_trained(Path(args.run), Console(quiet=True), args.checkpoint)
    trained.check_depth(args.depth)
    if trained.kind == "bert":
        _fill(trained, prompt, args)
    else:
        _continue(trained, prompt, args)


def _prompt(args: SamplingArgs) -> str:
    """The prompt as it is typed, from a file, or from standard input."""
    if args.prompt is not None and args.prompt_file is not None:
        raise ConfigError("prompt and prompt_file are both typed: give one of them")
    source = "prompt" if args.prompt is not None else f"prompt_file={args.prompt_file}"
    if args.prompt is None and args.prompt_file is None:
        source = "standard input"
    try:
        if args.prompt_file is not None:
            return Path(args.prompt_file).read_bytes().decode("utf-8-sig")
        prompt = sys.stdin.read() if args.prompt is None else args.prompt
        prompt.encode()  # what is no UTF-8 is there as surrogates
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise DataError(f"{source}: cannot be read as UTF-8: {error}") from error
    return prompt


def _continue(trained: TrainedModel, prompt: str, args: SamplingArgs) -> None:
    tokenizer, end = trained.tokenizer, special_ids(trained.kind, trained.tokenizer)["eos"]
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a prompt is text
    typed = tokenizer.encode(prompt, add_special_tokens=False).ids
    start = typed or [end]
    rule = SamplingRule(args.temperature, args.top_k, args.top_p)
    for number in range(args.number):
        if number:
            print("---")
        ids = list(typed)
        shown = text = tokenizer.decode(ids, skip_special_tokens=False)
        print(for_screen(shown), end="", flush=True)
        for token in continuation(trained.model, start, args.tokens, rule, end, args.seed + number, args.depth):
            ids.append(token)
            text = tokenizer.decode(ids, skip_special_tokens=False)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else the bytes of a letter are not complete
                print(for_screen(text[len(shown) :]), end="", flush=True)
                shown = text
        print(for_screen(text[len(shown) :]))


def _fill(trained: TrainedModel, prompt: str, args: SamplingArgs) -> None:
    special = special_ids("bert", trained.tokenizer)
    trained.tokenizer.encode_special_tokens = False
    ids = trained.tokenizer.encode(prompt, add_special_tokens=False).ids
    if special["mask"] not in ids:
        raise ConfigError(f"prompt: BERT fills {MASK}; write it where a word is missing")
    framed = [special["cls"], *ids, special["sep"]]
    if len(framed) > (most := trained.model.model_config.positions):
        raise ConfigError(f"prompt: {len(framed)} tokens, and the model reads {most}; shorten it")
    found = mask_candidates(trained.model, framed, special["mask"], args.candidates, args.depth)
    for number, candidates in enumerate(found, 1):
        words = (f"{trained.tokenizer.decode([token])!r} {probability:.1%}" for token, probability in candidates)
        print(for_screen(f"{MASK} {number}: {', '.join(words)}"))


def for_screen(text: str) -> str:
    """What a model wrote: in a file as it is, on a terminal without what that would obey."""
    return printable(text) if sys.stdout.isatty() else text
