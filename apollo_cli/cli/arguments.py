"""The words after `apollo-train`, before anybody knows what they mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from hydra.core.override_parser.overrides_parser import OverridesParser

from apollo_cli.config.config import RunArgs
from apollo_cli.config.schema import closest
from apollo_cli.errors import ConfigError

_FLAGS_WITH_A_VALUE = ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--info", "-i")
_RUN, _MULTIRUN = ("--run", "-r"), ("--multirun", "-m")
_COMPLETE = ("--shell-completion", "-sc")
_CFG = ("--cfg", "-c")
_ASKING = (*_CFG, *_COMPLETE, "--info", "-i", "--package", "-p", "--resolve", "--hydra-help")
_COMMANDS = (_RUN, _MULTIRUN, _COMPLETE, _CFG, ("--info", "-i"))  # of which there may be one
_COMPLETION = re.compile("(install|uninstall|query)=(bash|fish|zsh)")
_FLAGS = (
    *("--help", "-h", "--version", "--hydra-help", "--resolve"),
    *(*_RUN, *_MULTIRUN, *_COMPLETE, *_FLAGS_WITH_A_VALUE),
)


@dataclass
class CommandLine:
    """The words after `apollo-train`, sorted.

    Attributes:
        flags: Hydra's, such as --cfg job.
        overrides: all others.
        before: those of each sweep that runs before this one.
    """

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    before: list[list[str]] = field(default_factory=list)

    @property
    def multirun(self) -> bool:
        """Whether this is a sweep."""
        return not set(_MULTIRUN).isdisjoint(self.flags)

    @property
    def config_dir(self) -> str | None:
        """The folder with configs of the user's own, if one is named."""
        places = [i for i, flag in enumerate(self.flags[:-1]) if flag in ("--config-dir", "-cd")]
        return self.flags[places[-1] + 1] if places else None

    @property
    def has_user_configs(self) -> bool:
        """Whether Hydra is to read configs that are not ours."""
        return self.config_dir is not None or any("hydra.searchpath" in word for word in self.overrides)

    @property
    def launcher(self) -> str | None:
        """What runs the cells of a sweep beside each other; None where one comes after the other."""
        typed = [word.partition("=")[2] for word in self.overrides if word.startswith("hydra/launcher=")]
        return typed[-1] if typed and typed[-1] != "basic" else None

    @property
    def swept(self) -> list[str]:
        """The keys that have several values."""
        parsed = OverridesParser.create().parse_overrides(self.overrides)
        return [o.key_or_group for o in parsed if o.is_sweep_override()]

    @property
    def commands(self) -> list[list[str]]:
        """The overrides that Hydra is to be told, one list after the other."""
        return [*self.before, self.overrides]

    @property
    def completes(self) -> bool:
        """Whether a shell asks how a word may go on."""
        return not set(_COMPLETE).isdisjoint(self.flags)

    @property
    def runs(self) -> bool:
        """Whether Hydra is asked for a run, not for information."""
        return set(_ASKING).isdisjoint(self.flags)

    @classmethod
    def parse(cls, words: Sequence[str]) -> "CommandLine":
        """Flags with a value of their own keep it, also when an equals sign joins them.

        Raises:
            ConfigError: a flag is not known. Hydra would guess from its first letters, and some unpickle files.
        """
        line, rest = cls(), iter(words)
        for word in rest:
            flag, equals, value = word.partition("=")
            if not word.startswith("-"):
                line.overrides.append(word)
            elif flag not in _FLAGS:
                raise ConfigError([_unknown_flag(flag)])
            else:
                line.flags.append(flag)
                if flag in _FLAGS_WITH_A_VALUE:
                    line.flags += [value] if equals else islice(rest, 1)
        return line

    def refuse_contradictions(self) -> None:
        """Refuses flags that Hydra would answer with a traceback.

        Raises:
            ConfigError: they contradict each other, or one lacks what it needs.
        """
        commands = [names[0] for names in _COMMANDS if not set(names).isdisjoint(self.flags)]
        if len(commands) > 1:
            raise ConfigError([f"{' and '.join(commands)}: each asks for something else; type one of them"])
        if "--resolve" in self.flags and "--cfg" not in commands:
            raise ConfigError(["--resolve: it is for what --cfg shows; type --cfg job --resolve"])
        if self.completes and not (len(self.overrides) == 1 and _COMPLETION.fullmatch(self.overrides[0])):
            words = "install=SHELL, uninstall=SHELL, query=SHELL"
            raise ConfigError([f"--shell-completion: type one of {words}; SHELL is bash, fish or zsh"])


def _unknown_flag(flag: str) -> str:
    key = flag.lstrip("-")
    if key in RunArgs.model_fields:
        return f"{flag}: no such flag; keys have no dashes: type {key}=VALUE"
    return f"{flag}: no such flag{closest(flag, list(_FLAGS))}; apollo-train --help lists what there is"
