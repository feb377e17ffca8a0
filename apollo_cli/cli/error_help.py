"""Why Hydra could not compose what was typed: every wrong name and value in one message, with the closest name.

Nothing here runs while all is well. It may compose as often as it needs to.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import accumulate, product
from pathlib import Path

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.help import groups
from apollo_cli.config.hydra_syntax import compose_values, job_config, parse_overrides, typed_value
from apollo_cli.config.renamed import RENAMED
from apollo_cli.config.schema import closest, flat
from apollo_cli.errors import ConfigError

_PLUGINS = {"optuna": ("hydra/sweeper", "optuna"), "submitit": ("hydra/launcher", "slurm")}  # its extra of ours


def explained(line: CommandLine, error: Exception, to_sweep: str = "add -m, or ") -> ConfigError:
    """Every problem of what was typed that this program can name itself; without one, Hydra's first line.

    `to_sweep` is what to do for a sweep, where that is possible.
    """
    if {"--shell-completion", "-sc"} & set(line.flags):  # a shell asks how a word continues
        return ConfigError(_first_line(error))
    problems = list(_missing_plugins(line.overrides))
    typed = list(parse_overrides(line.overrides, problems))
    swept = [] if line.multirun else [o.input_line for o in typed if o.is_sweep_override()]
    remedy = f"{to_sweep}type a list as [a,b], a text with a comma in quotes"
    problems += [f"{word}: several values are a sweep; {remedy}" for word in swept[:1]]
    if (folders := line.user_folders) is not None:
        with suppress(HydraException, OmegaConfBaseException):  # of a file of the user's own, which Hydra names
            problems += _problems_of_words(typed, folders)
    if not problems and isinstance(error, OSError) and error.filename:
        key = "hydra.sweep.dir" if line.multirun else "hydra.run.dir"
        problems = [f"{key}: {error.filename} cannot be made ({error.strerror}); type another folder"]
    if not problems and "@experiment." in str(error):
        advice = "An experiment sets keys of other groups only if its file begins with `# @package _global_`"
        problems = [f"experiment={line.typed('experiment')}: {_first_line(error)} {advice}"]
    return ConfigError(*problems or [f"{_refused_by_hydra(typed)}{_first_line(error)}"])


def _refused_by_hydra(typed: Sequence[Override]) -> str:
    """`WORD: ` for the first word of Hydra's own keys that it cannot compose even alone; else empty."""
    for word in (o.input_line or "" for o in typed if re.match(r"hydra[./]", o.key_or_group or "")):
        try:
            compose_values([word])
        except Exception:  # Hydra raises all sorts for words that it does not expect
            return f"{word}: "
    return ""


def _first_line(error: Exception) -> str:
    """The first sentence, with Hydra's advice if the second line is one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[1:] and lines[1].startswith("To append") else 1])


def _missing_plugins(words: Sequence[str]) -> Iterator[str]:
    """Options that a plugin which is not installed would bring."""
    for plugin, (group, extra) in _PLUGINS.items():
        package = f"hydra-{plugin}-{group.partition('/')[2]}"
        for word in words:
            named = re.fullmatch(rf"{group}=({plugin}\w*|{extra}\w*)", word)
            if named and find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
                yield f"{word}: it needs {package}; type pip install 'apollo-train[{extra}]'"


def _problems_of_words(typed: list[Override], folders: Sequence[Path]) -> list[str]:
    """What is wrong with words that the shipped configs and those in these folders have to understand."""
    problems: list[str] = []
    known = groups()
    for folder in folders:
        for group, options in groups(folder).items():
            known[group] = known.get(group, {}) | options
    places = [f"file://{folder.absolute()}" for folder in folders]
    search = [f"hydra.searchpath={typed_value(places)}"] if places else []
    chosen = [o for o in typed if o.key_or_group in known and not o.is_delete()]
    wrong_options = {id(o): _problems_of_option(o, known) for o in chosen}
    problems += [problem for found in wrong_options.values() for problem in found]
    valid = [*parse_overrides(search, []), *(o for o in chosen if not wrong_options[id(o)])]
    keys = _known_keys(valid)
    for override in typed:
        if not override.key_or_group:
            problems.append(f"{override.input_line}: there is no key before the =; overrides are KEY=VALUE")
            continue
        if override in chosen or re.match(r"hydra([./]|$)", override.key_or_group):
            continue
        if not override.is_add() and override.key_or_group not in keys:
            problems.append(_problem_of_key(override, keys, known, search))
        else:
            valid.append(override)
    return problems + _problems_of_values(valid)


def _problems_of_option(override: Override, known: dict[str, dict[str, str]]) -> list[str]:
    group, value = override.key_or_group, override.value()
    options = list(known[group])
    if isinstance(value, Glob):
        return []
    picked = value.list if isinstance(value, ChoiceSweep) else [value]
    texts = [getattr(option, "text", option) for option in picked]
    known_options = ", ".join(options)
    flat = [option for text in texts for option in (text if isinstance(text, list) else [text])]
    return [
        f"{group}={option}: renamed to {new}"
        if (new := RENAMED.get(f"{group}={option}"))
        else f"{group}={option}: no such option{closest(str(option), options)}; {group} is one of {known_options}"
        for option in flat
        if option not in options and not (option is None and group == "experiment")
    ]


def _known_keys(chosen: list[Override]) -> set[str]:
    """The keys that exist with the chosen options; of a swept group, those that its options share."""
    single = tuple(o.input_line or "" for o in chosen if not o.is_sweep_override())
    swept = [o for o in chosen if isinstance(o.value(), ChoiceSweep)]
    choices = [[f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for o in swept]
    return set(frozenset.intersection(*(_keys_of((*single, *words)) for words in product(*choices))))


@cache
def _keys_of(options: tuple[str, ...]) -> frozenset[str]:
    leaves = flat(compose_values(options))
    return frozenset(key for leaf in leaves for key in accumulate(leaf.split("."), "{}.{}".format))


def _problem_of_key(override: Override, keys: set[str], known: dict[str, dict[str, str]], search: list[str]) -> str:
    key = override.key_or_group
    if new := RENAMED.get(key):
        return f"{override.input_line}: renamed to {new}={(override.input_line or '').partition('=')[2]}"
    group = key.partition(".")[0]
    homes = [
        f"{group}={option}"
        for option in known.get(group, {})
        if group != "experiment" and key in _keys_of((*search, f"{group}={option}"))
    ]
    if homes:
        return f"{key}: a chosen {group} has no such key; it belongs to {', '.join(homes)} alone"
    return f"{key}: no such key or group{closest(key, [*keys, *known])}"


def _problems_of_values(valid: list[Override]) -> list[str]:
    """What is wrong with the values of these overrides; beside a sweep, which may bring others, the typed ones."""
    words = [o.input_line or "" for o in valid if not o.is_sweep_override()]
    try:
        job_config(OmegaConf.create(compose_values(words)), words)
    except ConfigError as error:
        typed = tuple(f"{word.partition('=')[0].lstrip('+')}=" for word in words)
        return [p for p in error.problems if len(words) == len(valid) or p.startswith(typed)]
    except (HydraException, OmegaConfBaseException) as error:
        return [_first_line(error)]
    return []
