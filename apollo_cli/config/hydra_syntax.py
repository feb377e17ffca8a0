"""Hydra's grammar and configs: quoting, parsing of words, composition without a run."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from apollo_cli.config.conf_folder import CONF
from apollo_cli.config.config import Config, parse
from apollo_cli.config.schema import as_typed, flat
from apollo_cli.config.training import LENGTHS
from apollo_cli.data.recipe import BYTES
from apollo_cli.errors import ConfigError

_FORMS = (
    "overrides are KEY=VALUE, lists are 'KEY=[1,2]' in quotes, "
    "texts with special characters 'KEY=\"VALUE\"' in both quotes"
)
_WORDS = ("true", "false", "null", "inf", "nan")  # that are no texts


def in_quotes(text: str) -> str:
    """A text in Hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()


def compose_values(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed config as plain values, interpolations resolved."""
    with initialize_config_module(CONF, version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)  # type: ignore[return-value]


def job_config(values: DictConfig, overrides: Sequence[str]) -> Config:
    """The typed config of a job, from what Hydra composed and the words of the job.

    A budget among the words replaces the one that the configs set. A ConfigError has every problem; an
    OmegaConfBaseException says that an interpolation cannot be resolved.
    """
    plain: dict[str, Any] = OmegaConf.to_container(values, resolve=True)  # type: ignore[assignment]
    typed = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in overrides)}
    keys, experiment = typed.keys(), typed.get("experiment")
    if isinstance(inside := plain.get("experiment"), Mapping) and inside:
        raise ConfigError(
            f"experiment{f'={experiment}' if experiment else ''}: {', '.join(map(str, inside))} would be set for "
            "the experiment alone; its file must begin with `# @package _global_`"
        )
    if experiment:
        plain["experiment"] = experiment  # a group that leaves no key behind
    budget = plain.get("budget")
    if isinstance(budget, dict) and any(f"budget.{key}" in keys and budget.get(key) is not None for key in LENGTHS):
        plain["budget"] = {
            key: None if key in LENGTHS and f"budget.{key}" not in keys else value for key, value in budget.items()
        }
    typed_size = plain.get("data", {}).get("vocab_size") if "data.vocab_size" in keys else None
    config = parse(plain)
    if config.budget.extended_from:
        raise ConfigError("budget.extended_from: written by resume=RUN_DIR budget.steps=N; leave it out")
    if config.data.tokenizer == BYTES and typed_size not in (None, config.data.vocab_size):
        raise ConfigError(
            f"data.vocab_size={typed_size}: data.tokenizer=bytes has {config.data.vocab_size} entries for "
            f"model={config.model.kind}; leave data.vocab_size out"
        )
    return config


def parse_overrides(words: Sequence[str], problems: list[str]) -> Iterator[Override]:
    """The overrides that these words are; adds the words that are none to the problems."""
    parser = OverridesParser.create()
    for word in words:
        try:
            yield parser.parse_override(word)
        except HydraException:
            problems.append(f"{word}: not understood; {_FORMS}")


def resume_words(folder: Path, sections: dict[str, Any]) -> list[str]:
    """The inverse of `resume_overrides`: what is to be typed for it."""
    return [f"resume={folder}", *(f"{key}={_literal(value)}" for key, value in flat(sections).items())]


def command_words(values: Mapping[str, Any]) -> list[str]:
    """The words for a run with these plain values, which `parse` has taken; they are data and resolve nothing.

    They are options of the groups, the keys that differ from the defaults, and all keys of options that are not
    default ones.
    """
    standard, options = _defaults(), []
    typed: dict[str, Any] = {}
    for name, section in values.items():
        if not isinstance(section, Mapping):
            typed |= {} if _same(section, standard.get(name)) else {name: section}
            continue
        usual = standard[name]
        if (kind := section.get("kind")) not in (None, usual.get("kind")):
            options.append(f"{name}={kind}")
            usual = {"kind": kind}
        typed |= {f"{name}.{key}": value for key, value in section.items() if not _same(value, usual.get(key))}
    return [*options, *(f"{key}={typed_value(value)}" for key, value in typed.items())]


@cache
def _defaults() -> dict[str, Any]:
    return compose_values([])


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def typed_value(value: Any) -> str:
    """A plain value as one would type it: a text in quotes only where it needs them."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{typed_value(item)}' for key, item in value.items())}}}"
    if not isinstance(value, str):
        return as_typed(value)
    is_plain = re.fullmatch(r"[A-Za-z_/][\w./+-]*( [\w./+-]+)*", value, re.ASCII) and value.lower() not in _WORDS
    no_interpolation = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value if is_plain else in_quotes(no_interpolation)


def pasted(key: str, value: Any) -> str:
    """KEY=VALUE of a plain value as it is to be pasted into a shell."""
    return shlex.quote(f"{key}={typed_value(value)}")


def _literal(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    return in_quotes(value) if isinstance(value, str) else as_typed(value)
