"""Where the YAML groups are installed. Imports nothing heavy, for `--help` is to be fast."""

from functools import cache
from importlib import import_module
from pathlib import Path

from apollo_cli.errors import ConfigError

CONF = "apollo_cli.conf"


def conf_folder() -> Path:
    """Where the YAML groups are installed; a ConfigError if only the sources of the package are there."""
    try:
        return Path(next(iter(import_module(CONF).__path__)))
    except ModuleNotFoundError as error:
        raise ConfigError("apollo-train is not installed here; in its checkout, type: make install") from error


@cache
def group_names() -> list[str]:
    """The groups of the defaults list: the folders of `conf/` but for Hydra's own."""
    names = [path.name for path in conf_folder().iterdir() if path.is_dir()]
    return sorted(name for name in names if name[0] not in "_." and name != "hydra")
