"""What configs may not do: run code, read the environment into a run, or write where nobody asked for it.

Hydra acts on its own part of a config before a job begins: it calls what a `_target_`, a callback or a logging
factory names, and makes folders. Of that part only a few settings may be typed, and a config may make none; ours
are as they are. What configs hold beside it is values.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer

from apollo_cli.cli import launchers
from apollo_cli.config.conf_folder import CONF, conf_folder
from apollo_cli.config.config import name_problems
from apollo_cli.data import cache_folder

_PLACES = ("run.dir", "sweep.dir", "sweep.subdir")
_TYPABLE = (*_PLACES, "searchpath", "sweeper.max_batch_size", "launcher", "job.name", "job.config")
_KEYS = [f"hydra.{key}" for key in _TYPABLE]
_NOTED = ("overrides", "runtime", "job.override_dirname", "searchpath")  # what Hydra writes down, or read already
_GRID = "sweeper.params"  # of our ablations; nobody else's
# An interpolation that knows nothing but the config, the command and the time; what is in it is no interpolation.
_PLAIN = re.compile(r"\$\{\s*(?:[\w.\[\]-]+\s*|(?:hydra|now)\s*:[^${}]*)\}")


def composed(words: Sequence[str]) -> DictConfig:
    """The config of these overrides, none of them swept, with Hydra's own part; nothing is resolved or run.

    Raises:
        HydraException: they mean nothing together.
    """
    with initialize_config_module(CONF, version_base="1.3"), _no_resolvers():
        try:
            config = compose("config", list(words), return_hydra_config=True)
        except (ValueError, TypeError, AttributeError) as error:  # what Hydra does not expect of its users
            raise HydraException(f"the config cannot be composed: {error}") from error
    with open_dict(config.hydra.job):
        config.hydra.job.num, config.hydra.job.id = 0, "0"  # a sweep numbers its jobs
    return config


@contextmanager
def _no_resolvers() -> Iterator[None]:
    """While it composes, Hydra fills in what chooses an option: the clock may choose another one a moment later.

    So there no resolver is known, and a list of defaults with one is refused.
    """
    resolvers = BaseContainer._resolvers
    kept = dict(resolvers)
    resolvers.clear()
    try:
        yield
    finally:
        resolvers.update(kept)


def problems_of_typed(override: Override) -> list[str]:
    """What is wrong with an override as far as it is for Hydra: only few settings of its may be typed."""
    key = override.key_or_group
    if not re.match(r"hydra([./]|$)", key) or _is_of(key, _KEYS):
        return []
    if key != "hydra/launcher":
        return [_not_settable(key)]
    return launchers.problems(override.value())


def problems(config: DictConfig, words: Sequence[str], typed: Collection[str]) -> list[str]:
    """What is refused in the config that `words` compose.

    Args:
        config: as `composed` gives it.
        words: the overrides.
        typed: the keys among them that the user wrote.

    Raises:
        HydraException: what is typed of Hydra cannot be composed.
        OmegaConfBaseException: a value that must be known now cannot be resolved.
    """
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    hydra = values.pop("hydra")
    changed = _changed(hydra)
    noted = [(key, value) for key, value in changed if _is_of(key.removeprefix("hydra."), _NOTED)]
    found = _problems_of_hydra(hydra, words)
    found += _problems_of_values([*(pair for pair in changed if pair not in noted), *_leaves("", values)])
    found = found or _problems_of_values(noted)  # a word that is noted is a value, too: it is named once
    return found or _problems_of_places(config, dict(changed), typed)


def run_directory(config: DictConfig, multirun: bool) -> Path:
    """The folder that Hydra will make for this config.

    Raises:
        OmegaConfBaseException: its name cannot be resolved.
    """
    return Path(_resolved(config, "hydra.sweep.dir" if multirun else "hydra.run.dir"))


def _problems_of_hydra(hydra: dict[str, Any], words: Sequence[str]) -> list[str]:
    """What is set in Hydra's own part that may not be, or not by a config."""
    of_hydra = [word for word in words if word.lstrip("+~ ").startswith(("hydra.", "hydra/"))]
    noted = {"hydra": of_hydra, "task": [word for word in words if word not in of_hydra]}
    found = [] if hydra["overrides"] == noted else ["hydra.overrides: a config may not add words to the command"]
    typed = _hydras_part(tuple(word for word in of_hydra if "searchpath" not in word.partition("=")[0]))
    shipped = _hydras_part(tuple(word for word in words if _is_shipped_experiment(word)))
    for key, value in _changed(hydra):
        key = key.removeprefix("hydra.")
        if _is_of(key, _NOTED) or (_is_of(key, [_GRID]) and shipped.get(key) == value):
            continue
        if not _is_of(key, _TYPABLE):
            found.append(_not_settable(f"hydra.{'.'.join(key.split('.')[:2])}"))
        elif typed.get(key) != value:
            found.append(f"hydra.{key}: a config may not choose it; type hydra.{key}=... yourself")
        elif key.endswith("_target_") and value not in launchers.LAUNCHERS.values():
            found.append(f"hydra.{key}={value}: only our launchers may be named: type hydra/launcher=NAME")
        elif key == "launcher.n_jobs" and not (type(value) is int and value):
            found.append(f"hydra.{key}={value}: should be a whole number, how many cells run at once; -1 = as CPUs")
        elif key == "sweeper.max_batch_size" and not (type(value) is int and value > 0):
            found.append(f"hydra.{key}={value}: should be a whole number greater than 0")
    return list(dict.fromkeys(found))


def _not_settable(key: str) -> str:
    return (
        f"{key}: it may not be set, for Hydra would act on it before this program checks anything; what may be "
        f"typed is {', '.join(_KEYS)}"
    )


def _problems_of_values(leaves: Iterable[tuple[str, Any]]) -> list[str]:
    """What in the values would be more than a value."""
    found = []
    for key, value in leaves:
        if "_target_" in key.split(".") and not key.startswith("hydra."):
            found.append(f"{key}: a config holds values; it may not name code")
        if "${" in _PLAIN.sub("", str(value)):
            found.append(
                f"{key}={value}: only ${{KEY}}, ${{hydra:KEY}} and ${{now:FORMAT}} are filled in; every other "
                "resolver is not allowed in a run: write the value itself"
            )
    return found


def _problems_of_places(config: DictConfig, changed: Mapping[str, Any], typed: Collection[str]) -> list[str]:
    """What would be written where nobody asked for it; all values are known to be harmless."""
    found = name_problems(_resolved(config, "name"))
    for key in (f"hydra.{place}" for place in _PLACES):
        raw = str(changed.get(key, ""))
        if "${" in raw and _is_elsewhere(raw, place := str(_resolved(config, key))):
            found.append(f"{key}={raw}: this is {place}, elsewhere than it looks; write the path itself")
    cache_dir = _resolved(config, "data.cache_dir")
    if cache_dir and "data.cache_dir" not in typed:
        found += cache_folder.problems(str(cache_dir))
    return found


def _is_elsewhere(raw: str, path: str) -> bool:
    """Whether values that are filled in lead out of the folder that was typed; those of Hydra are the user's."""
    begins = raw.startswith("${") and not raw.startswith("${hydra")
    return (begins and Path(path).is_absolute()) or (".." in Path(path).parts and ".." not in Path(raw).parts)


def _resolved(config: DictConfig, key: str) -> Any:
    HydraConfig.instance().set_config(config)  # ${hydra:...} looks there
    return OmegaConf.select(config, key)


def _changed(hydra: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings of Hydra that are not as ours; None for one that is gone."""
    ours, theirs = _hydras_part(()), list(_leaves("", hydra))
    changed = [(key, value) for key, value in theirs if key not in ours or ours[key] != value]
    changed += [(key, None) for key in ours.keys() - {key for key, _ in theirs}]
    return [(f"hydra.{key}", value) for key, value in sorted(changed, key=lambda pair: pair[0])]


@cache
def _hydras_part(words: tuple[str, ...]) -> dict[str, Any]:
    """What Hydra's own part of the config is with our files and these words alone."""
    return dict(_leaves("", OmegaConf.to_container(composed(words).hydra, resolve=False)))


def _is_shipped_experiment(word: str) -> bool:
    group, _, options = word.partition("=")
    return group == "experiment" and set(options.strip("[]").split(",")) <= _shipped_experiments()


@cache
def _shipped_experiments() -> set[str]:
    """With those that only others are made of."""
    return {path.stem for path in (conf_folder() / "experiment").glob("*.yaml")}


def _is_of(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if inner is None or not value:
        yield prefix, value
        return
    for key, part in inner:
        yield from _leaves(f"{prefix}.{key}" if prefix else str(key), part)
