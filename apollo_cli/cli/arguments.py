"""The words after `apollo-train`: Hydra's flags, and overrides."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hydra._internal.utils import get_args_parser

from apollo_cli.config.conf_folder import conf_folder, group_names
from apollo_cli.config.config import RunArgs, text_keys
from apollo_cli.config.hydra_syntax import in_quotes, parse_overrides
from apollo_cli.config.schema import closest
from apollo_cli.errors import ConfigError

_TAKES_A_VALUE = {
    name: action.nargs != 0 for action in get_args_parser()._actions for name in action.option_strings
}
_FLAGS = (*_TAKES_A_VALUE, "--version", "--schema", "-h")
_INFORMATION = {"--cfg", "-c", "--shell-completion", "-sc", "--info", "-i", "--hydra-help", "--package", "-p"}
_SIMPLE = r"(\[?)([\w.+~/*-]+(?:,[\w.+~/*-]+)*)(\]?)"  # texts without quotes and interpolations, or their list
_UNPARSED = r"(?!')[^\[\]{}\"$,\\]+"  # texts that quotes around them make one value
_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_CONFIG_DIR = {"--config-dir", "-cd"}
_PRIMARY_CONFIG = {"--config-path", "-cp", "--config-name", "-cn"}  # in place of the shipped one


@dataclass(frozen=True)
class CommandLine:
    """The words after `apollo-train`, parsed."""

    flags: Sequence[str]  # Hydra's, such as --cfg job
    overrides: Sequence[str]  # all other words, in their order; of a group of ours without a plus

    @property
    def multirun(self) -> bool:
        """Whether -m is typed; a config may choose a sweep as well (`hydra.mode`)."""
        return not {"--multirun", "-m"}.isdisjoint(self.flags)

    @property
    def runs(self) -> bool:
        """Whether Hydra is asked for a run or a sweep, not for information."""
        return _INFORMATION.isdisjoint(self.flags)

    def typed(self, key: str) -> str | None:
        """The value of the last KEY=VALUE for this key."""
        return dict(word.lstrip("+").partition("=")[::2] for word in self.overrides).get(key)

    @property
    def user_folders(self) -> list[Path] | None:
        """The folders that Hydra reads beside the shipped configs; None if one is none, or they replace these."""
        if not _PRIMARY_CONFIG.isdisjoint(self.flags):
            return None
        pairs = zip(self.flags, self.flags[1:], strict=False)
        folders = [Path(value) for flag, value in pairs if flag in _CONFIG_DIR]
        for word in (o for o in self.overrides if "hydra.searchpath" in o):
            places = next((o.value() for o in parse_overrides([word], [])), None)
            if not isinstance(places, list):
                return None
            folders += [Path(str(place).removeprefix("file://")) for place in places]
        return folders if all(folder.is_dir() for folder in folders) else None

    @classmethod
    def parse(cls, words: Sequence[str]) -> "CommandLine":
        """Parts flags, with their values, from overrides, in whichever order they are typed.

        A ConfigError for an unknown flag; argparse would guess one from its first letters.
        """
        flags: list[str] = []
        overrides: list[str] = []
        rest = iter(words)
        for word in rest:
            flag, equals, value = word.partition("=")
            if word == "experiment=null":  # the default; Hydra refuses null for a group
                continue
            if not word.startswith("-"):
                # every group of ours is in the defaults list, where Hydra takes no plus
                word = re.sub(rf"^\++({'|'.join(group_names())})=", r"\1=", word)
                overrides.append(_with_quotes(word))
            elif flag not in _FLAGS:
                following = next(rest, "=")
                given = value if equals else following if "=" not in following else "VALUE"
                raise ConfigError(_unknown_flag(flag, given))
            else:
                flags.append(flag)
                if _TAKES_A_VALUE.get(flag):
                    flags += [value] if equals else islice(rest, 1)
        line = cls(flags, overrides)
        may_choose_data = not _PRIMARY_CONFIG.isdisjoint(flags) or (
            line.user_folders != [] and _own_experiment(line)
        )
        return line if may_choose_data else cls(flags, [*_implied_data(overrides), *overrides])


def _with_quotes(word: str) -> str:
    """The word with quotes around texts that are a number for Hydra (2026_11_29) or no value (it's.txt)."""
    key, _, value = word.partition("=")
    if key not in text_keys().union(_FOLDERS, group_names()):
        return word
    if not (simple := re.fullmatch(_SIMPLE, value)):
        may_be_text = re.fullmatch(_UNPARSED, value) and key not in ("resume", *group_names())
        is_text = may_be_text and not list(parse_overrides([word], []))
        return f"{key}={in_quotes(value)}" if is_text else word
    begins, texts, ends = simple.groups()
    if key in _FOLDERS:
        texts = os.path.expanduser(texts)  # noqa: PTH111 - of an unknown user it stays as it is
    return f"{key}={begins}{','.join(map(_as_text, texts.split(',')))}{ends}"


def _as_text(value: str) -> str:
    is_text = any(o.value() is None or isinstance(o.value(), str) for o in parse_overrides([f"key={value}"], []))
    return value if is_text else in_quotes(value)


def _own_experiment(line: CommandLine) -> bool:
    """Whether an experiment is typed that is not shipped; it may choose a corpus itself."""
    names = re.findall(r"[^\[\],'\" ]+", line.typed("experiment") or "")
    return any(not (conf_folder() / "experiment" / f"{name}.yaml").is_file() for name in names)


def _implied_data(overrides: Sequence[str]) -> list[str]:
    """data=text if its files are typed, data=hub if its path is, and nothing else chooses a corpus."""
    keys = {word.partition("=")[0] for word in overrides}
    if not keys.isdisjoint({"data", "resume"}):
        return []
    return [f"data={kind}" for key, kind in (("data.files", "text"), ("data.path", "hub")) if key in keys][:1]


def _unknown_flag(flag: str, value: str) -> str:
    key = flag.lstrip("-")
    if "." in key or key in RunArgs.model_fields or key in group_names():
        return f"{flag}: no such flag; keys have no dashes: type {key}={value}"
    return f"{flag}: no such flag{closest(flag, list(_FLAGS))}; apollo-train --help lists what there is"
