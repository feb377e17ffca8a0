"""Config and plan of a run from the words of its command."""

from collections.abc import Sequence

from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.growth.plan import Plan
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan


def config_of(words: Sequence[str]) -> Config:
    """The config that `apollo-train` would run with these words."""
    return parse(compose_values(list(words)))


def plan_of(words: Sequence[str]) -> Plan:
    """The plan of that config on this machine."""
    config = config_of(words)
    return make_plan(config, choose(config.run))
