"""What configs may not do: run code, read the environment into a run, or write where nobody asked for it.

Hydra calls whatever `_target_`, a callback or a logging factory names, before a job begins. Our own configs name
none; a stranger's, brought by --config-dir or hydra.searchpath or pasted into a command, may.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from apollo_cli.help import CONF

_HYDRAS_OWN = ("hydra._internal.core_plugins.", "hydra_plugins.")  # launchers and sweepers, as installed
_FIXED = ("callbacks", "job_logging", "hydra_logging", "output_subdir", "env", "job.env_set", "job.env_copy")
_PLACES = ("run.dir", "sweep.dir", "sweep.subdir")  # may be typed, not brought
_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:")
_HARMLESS = {"hydra", "now"}  # resolvers that know nothing but the command and the time


def problems(overrides: Sequence[str], typed: Sequence[str]) -> list[str]:
    """What is refused in the config that these overrides compose; nothing of it is resolved or run.

    Args:
        overrides: none of them swept.
        typed: the keys among them, as the user wrote them.
    """
    ours = _ours()
    values = _composed(overrides)
    theirs = _flat("", values.pop("hydra"))
    found = [
        f"hydra.{key}: it may not be set, for Hydra would act on it before this program checks anything"
        for key in sorted({*ours, *theirs})
        if _is_of(key, _FIXED) and ours.get(key) != theirs.get(key)
    ]
    found += [
        f"hydra.{key}: a config may not choose where a run is written; type hydra.{key}=... yourself"
        for key in _PLACES
        if ours[key] != theirs[key] and f"hydra.{key}" not in typed
    ]
    found += [
        f"hydra.{key}={value}: only launchers and sweepers of Hydra and its plugins may be named"
        for key, value in theirs.items()
        if key.endswith("_target_") and not str(value).startswith(_HYDRAS_OWN)
    ]
    for key, value in _flat("", values).items():
        if "_target_" in key.split("."):
            found.append(f"{key}: a config holds values; it may not name code")
        for resolver in set(_RESOLVER.findall(str(value))) - _HARMLESS:
            found.append(f"{key}={value}: the resolver {resolver} is not allowed in a run; write the value itself")
    return found


@cache
def _ours() -> dict[str, Any]:
    """What Hydra's own part of the config is with our files alone."""
    return _flat("", _composed([])["hydra"])


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    with initialize_config_module(CONF, version_base="1.3"):
        composed = compose("config", list(overrides), return_hydra_config=True)
    return OmegaConf.to_container(composed, resolve=False)  # type: ignore[return-value]


def _is_of(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    return dict(_leaves(prefix, value))


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if inner is None or not value:
        yield prefix, value
        return
    for key, part in inner:
        yield from _leaves(f"{prefix}.{key}" if prefix else str(key), part)
