"""The command line before Hydra sees it: every wrong name and value in one message, nothing written."""

import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from apollo_cli.cli import config_safety, experiment_grid
from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.help import groups
from apollo_cli.cli.launchers import LAUNCHERS
from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values, parse_overrides
from apollo_cli.config.schema import closest
from apollo_cli.data.recipe import BYTES
from apollo_cli.errors import ConfigError

_AS_IT_IS = set("'\\$")  # what Hydra would not leave as it is between quotes


def prepare(line: CommandLine) -> Path | None:
    """Refuses overrides that cannot mean anything, and writes into `line` what a user leaves unsaid.

    That is: a budget that is typed replaces the default one, and +GROUP=OPTION means GROUP=OPTION. A swept value
    is not checked here but for what is unsafe: a cell with a bad one fails alone, the others run.

    Returns:
        The folder that Hydra will make; None where it makes none.

    Raises:
        ConfigError: with every problem.
    """
    line.refuse_contradictions()
    if line.completes:
        return None
    problems: list[str] = []
    if line.launcher in LAUNCHERS and line.runs and not line.multirun:
        problems.append(f"hydra/launcher={line.launcher}: it runs the cells of a sweep; add -m")
    parsed, fixed = (_check_user_configs if line.has_user_configs else _check_shipped)(line, problems)
    place = None
    typed = [o.key_or_group for o in parsed]
    try:
        config = config_safety.composed(fixed)
        unsafe = config_safety.problems(config, fixed, typed)
        problems += unsafe
        if not unsafe:
            place = config_safety.run_directory(config, line.multirun)
            if not line.has_user_configs:
                _check_values(config, fixed, parsed, problems)
        if not problems:
            for words in _cells(line, parsed, fixed, problems):
                problems += [
                    p
                    for p in config_safety.problems(config_safety.composed(words), words, typed)
                    if p not in problems
                ]
    except (HydraException, OmegaConfBaseException) as error:
        problems.append(str(error).strip().splitlines()[0])
    if problems:
        raise ConfigError(problems)
    return place if line.runs else None


def _check_shipped(line: CommandLine, problems: list[str]) -> tuple[list[Override], list[str]]:
    """What is typed, and the words of it that are not swept and whose names are known, completed."""
    known_groups = groups()
    line.overrides = [_plainly(word, known_groups) for word in line.overrides if word != "experiment=null"]
    typed = list(parse_overrides(line.overrides, problems))
    swept = [o for o in typed if o.is_sweep_override()]
    if swept and not line.multirun:
        problems.append(f"{swept[0].input_line}: several values are a sweep; add -m, or quote a value with a comma")
    shipped = _shipped_grid(line, typed, problems)
    parsed = _with_grid(typed, shipped)
    chosen = [o for o in parsed if _is_group(o, known_groups)]
    valid = [o for o in chosen if o in (shipped or []) or not _group_problems(o, known_groups, problems)]
    values = [o for o in parsed if o not in chosen]
    keys = _known_keys(valid)
    valid += [o for o in values if not _key_problems(o, keys, known_groups, problems)]
    budget = _budget_overrides(values)
    line.overrides += _words(budget)
    if shipped is not None:
        _apply_grid(line, typed, [*parsed, *budget])
    return parsed, _words(o for o in [*valid, *budget] if not o.is_sweep_override())


def _shipped_grid(line: CommandLine, typed: list[Override], problems: list[str]) -> list[Override] | None:
    """What a shipped experiment is swept over beside what is typed; None if it is no sweep, or not to be run."""
    chosen = [o for o in typed if o.key_or_group == "experiment"]
    if not chosen or not line.runs:
        return None
    shipped = list(groups()["experiment"])
    grids = {name: experiment_grid.grid(name, typed) for name in _picked(chosen[-1], shipped) if name in shipped}
    name, values = next(((name, values) for name, values in grids.items() if values is not None), ("", None))
    if values is not None and chosen[-1].is_sweep_override():
        problems.append(f"experiment={name}: it is a sweep itself; type no other experiment beside it")
        return None
    if values is not None and not line.multirun:
        problems.append(f"experiment={name}: it is a sweep; add -m")
    problems += experiment_grid.problems(name, typed, values or [])
    return values


def _with_grid(typed: list[Override], shipped: list[Override] | None) -> list[Override]:
    """What is typed and what is shipped; a grid over other experiments stands in for the one that is typed."""
    swept = {o.key_or_group for o in shipped or []}
    return [*(o for o in typed if o.key_or_group not in swept), *(shipped or [])]


def _apply_grid(line: CommandLine, typed: list[Override], parsed: list[Override]) -> None:
    """Writes a shipped sweep into the line, and what runs before it."""
    experiment = next(_plain(o.value()) for o in reversed(typed) if o.key_or_group == "experiment")
    line.before = experiment_grid.before(experiment, parsed)
    line.overrides = [*_words(parsed), experiment_grid.NO_OTHER]


def _check_values(config: DictConfig, fixed: list[str], parsed: list[Override], problems: list[str]) -> None:
    """Adds what is wrong with the values; beside a sweep only with those that are typed: a cell may mend others."""
    swept = any(o.is_sweep_override() for o in parsed)
    typed = tuple(f"{word.partition('=')[0].lstrip('+')}=" for word in fixed)
    try:
        ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        values: dict[str, Any] = OmegaConf.to_container(ours, resolve=True)  # type: ignore[assignment]
        problems += _vocabulary_problems(parse(values), parsed)
    except ConfigError as error:
        problems += [p for p in error.problems if not swept or p.startswith(typed)]


def _vocabulary_problems(config: Config, parsed: list[Override]) -> list[str]:
    """What is wrong with a size that is typed beside data.tokenizer=bytes, which has its own."""
    if config.data.tokenizer != BYTES or any(
        o.key_or_group == "data.tokenizer" for o in parsed if o.is_sweep_override()
    ):
        return []
    return [
        f"{o.input_line}: data.tokenizer=bytes has {config.data.vocab_size} entries for model={config.model.kind}; "
        "leave data.vocab_size out"
        for o in parsed
        if o.key_or_group == "data.vocab_size" and o.value() != config.data.vocab_size
    ]


def _check_user_configs(line: CommandLine, problems: list[str]) -> tuple[list[Override], list[str]]:
    """As `_named` where Hydra reads configs that are not ours: it knows what is in them, we do not."""
    typed = list(parse_overrides(line.overrides, problems))
    problems += [p for o in typed for p in config_safety.problems_of_typed(o)]
    shipped = _shipped_grid(line, typed, problems)
    parsed = _with_grid(typed, shipped)
    if shipped is not None:
        _apply_grid(line, typed, parsed)
    known = [o for o in parsed if not config_safety.problems_of_typed(o)]
    fixed = [*_searchpath(line, typed, problems), *_words(o for o in known if not o.is_sweep_override())]
    return parsed, fixed


def _searchpath(line: CommandLine, parsed: list[Override], problems: list[str]) -> list[str]:
    """The folder of --config-dir as an override, for a composition of our own."""
    if line.config_dir is None:
        return []
    if any(o.key_or_group == "hydra.searchpath" for o in parsed):
        problems.append("hydra.searchpath beside --config-dir: name all folders in hydra.searchpath=[...]")
    folder = os.path.abspath(line.config_dir)  # noqa: PTH100 - as Hydra does, which drops `..` by the letters alone
    if not _AS_IT_IS.isdisjoint(folder):
        raise ConfigError(
            [f"--config-dir {folder}: {' '.join(sorted(_AS_IT_IS))} may not be in its path: rename it"]
        )
    return [f"hydra.searchpath=['file://{folder}']"]


def _cells(line: CommandLine, parsed: list[Override], fixed: list[str], problems: list[str]) -> Iterator[list[str]]:
    """The words of every config that a sweep composes, as far as it may be unsafe.

    Of our own configs each option is safe beside every other: each value is looked at once. What a brought config
    holds may depend on the others.
    """
    if not line.has_user_configs:
        yield from ([*fixed, word] for words in _values(parsed) for word in words)
        return
    globs = [o for o in parsed if isinstance(o.value(), Glob)]
    if globs:
        problems.append(f"{globs[0].input_line}: beside configs of your own, name the options instead")
        return
    yield from ([*fixed, *cell] for cell in product(*_values(parsed)))
    for words in line.before:
        others = list(parse_overrides(words, problems))
        folder = [word for word in fixed if "hydra.searchpath" in word]
        common = [*folder, *_words(o for o in others if not o.is_sweep_override() and o.input_line not in folder)]
        yield from ([*common, *cell] for cell in product(*_values(others)))


def _values(parsed: list[Override]) -> list[list[str]]:
    """The words that each swept one stands for; a range has numbers, a glob() our options: those are safe."""
    listed = [o for o in parsed if isinstance(o.value(), ChoiceSweep)]
    return [[f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for o in listed]


def _words(overrides: Iterable[Override]) -> list[str]:
    return [o.input_line or "" for o in overrides]


def _plainly(word: str, known: dict[str, dict[str, str]]) -> str:
    """Without the plus of +experiment=NAME: the groups are all in the defaults."""
    return word.lstrip("+") if word.lstrip("+").partition("=")[0] in known else word


def _is_group(override: Override, known: dict[str, dict[str, str]]) -> bool:
    return override.key_or_group in known


def _group_problems(override: Override, known: dict[str, dict[str, str]], problems: list[str]) -> bool:
    """Adds what is wrong with GROUP=OPTION; whether anything is."""
    group, value = override.key_or_group, override.value()
    options = list(known[group])
    if isinstance(value, Glob):
        return False
    found = [
        f"{group}={option}: no such option{closest(str(option), options)}; {group} is one of {', '.join(options)}"
        for option in _picked(override, options)
        if option not in options
    ]
    problems += found
    return bool(found)


def _picked(override: Override, options: list[str]) -> list[Any]:
    """The options that GROUP=... chooses, one or several."""
    value = override.value()
    if isinstance(value, Glob):
        return value.filter(options)
    return [_plain(option) for option in (value.list if isinstance(value, ChoiceSweep) else [value])]


def _plain(value: Any) -> Any:
    """The text of a word, quoted or not."""
    return getattr(value, "text", value)


def _known_keys(chosen: list[Override]) -> set[str]:
    """The keys of every cell: those of the chosen options; of a swept group, those that its options share."""
    single = [o.input_line or "" for o in chosen if not o.is_sweep_override()]
    swept = [o for o in chosen if isinstance(o.value(), ChoiceSweep)]
    of_each = [_keys_of((*single, variant)) for variants in _values(swept) for variant in variants]
    return set(frozenset.intersection(*of_each) if of_each else _keys_of(tuple(single)))


@cache
def _keys_of(options: tuple[str, ...]) -> frozenset[str]:
    """The keys of our configs with these options chosen and no value typed."""
    return frozenset(_leaves("", compose_values(options)))


def _leaves(prefix: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix


def _key_problems(
    override: Override, keys: set[str], known: dict[str, dict[str, str]], problems: list[str]
) -> bool:
    """Adds what is wrong with the key of KEY=VALUE; whether anything is."""
    key = override.key_or_group
    of_hydra = config_safety.problems_of_typed(override)
    problems += of_hydra
    if key in keys or of_hydra or re.match("hydra[./]", key):
        return bool(of_hydra)
    group = key.partition(".")[0]
    homes = [
        f"{group}={option}"
        for option in known.get(group, {})
        if group != "experiment" and key in _keys_of((f"{group}={option}",))
    ]
    if homes:
        problems.append(f"{key}: a chosen {group} has no such key; it belongs to {', '.join(homes)}")
    else:
        problems.append(f"{key}: no such key or group{closest(key, [*keys, *known])}")
    return True


def _budget_overrides(values: list[Override]) -> list[Override]:
    """A budget that is typed replaces the one in the config: null for those not typed."""
    typed = {o.key_or_group for o in values if o.key_or_group.startswith("budget.") and o.value() is not None}
    others = [f"budget.{key}" for key in ("steps", "tokens", "flops", "seconds")]
    if not typed & set(others):
        return []
    named = {o.key_or_group for o in values}
    parser = OverridesParser.create()
    return [parser.parse_override(f"{key}=null") for key in others if key not in named]
