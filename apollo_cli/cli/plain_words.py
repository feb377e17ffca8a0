"""KEY=VALUE words of commands that have no configs: each value is taken as it is typed, whatever is in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from apollo_cli.cli.program import unknown_flag
from apollo_cli.config.schema import Section, closest, validate
from apollo_cli.errors import ConfigError

A = TypeVar("A", bound=Section)


def parse_words(cls: type[A], words: Sequence[str], program: str) -> A:
    """The typed keys of these words; a ConfigError has every problem.

    `cls` has the keys with their defaults and is not strict: a value is converted from its text. A key whose
    type is a tuple may be typed several times.
    """
    problems: list[str] = []
    values: dict[str, str | list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            problems.append(unknown_flag(word, program))
        elif not equals:
            is_run = "run" in cls.model_fields and Path(word).is_dir()
            problems.append(f"{word}: not understood; type {f'run={word}' if is_run else 'KEY=VALUE'}")
        elif key not in cls.model_fields:
            problems.append(f"{key}: no such key{closest(key, list(cls.model_fields))}")
        else:
            is_list = str(cls.model_fields[key].annotation).startswith("tuple")
            values[key] = [*values.get(key, []), value] if is_list else value
    found = validate(cls, "", values, problems)
    if problems or found is None:
        raise ConfigError(*problems)
    return found
