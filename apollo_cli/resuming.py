"""What may be typed beside `resume=`, and what is typed to go on with a run."""

import re
from pathlib import Path
from typing import Any

from apollo_cli.command_line import CommandLine
from apollo_cli.errors import ConfigError
from apollo_cli.overrides import in_quotes, understood

RESUMABLE = ("tracking", "checkpoint", "distributed")  # sections that cannot change a run's result
PLACE = "data.cache_dir"  # where what can be built again is kept
DECIDABLE = ("on_nonfinite", "devices")  # keys for a run that cannot go on as it is, or where it was
_RESUME = re.compile(r"\+*resume=(?!null\Z)")  # not the default


def resume_overrides(line: CommandLine) -> tuple[str, dict[str, Any]] | None:
    """The run directory of `resume=`, and the sections typed beside it; None without `resume=`.

    Raises:
        ConfigError: something beside it could change the result.
    """
    typed = [word for word in line.overrides if _RESUME.match(word)]
    if not typed:
        return None
    folder = _as_typed(typed[-1].partition("=")[2])
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for override in understood([word for word in line.overrides if word not in typed], problems):
        section, _, key = override.key_or_group.partition(".")
        if (section in RESUMABLE or override.key_or_group == PLACE) and key and not override.is_sweep_override():
            sections.setdefault(section, {})[key] = override.value()
        elif override.key_or_group in DECIDABLE and not override.is_sweep_override():
            sections[override.key_or_group] = override.value()
        else:
            problems.append(
                f"{override.input_line}: a resumed run keeps its own config; only keys of "
                f"{', '.join(RESUMABLE)}, {PLACE}, {' and '.join(DECIDABLE)} may be typed beside resume="
            )
    if line.multirun:
        problems.append("resume= goes on with one run; leave -m out")
    if problems:
        raise ConfigError(problems)
    return folder, sections


def resume_words(folder: Path, sections: dict[str, Any]) -> list[str]:
    """The inverse of `resume_overrides`: what is to be typed for it."""
    typed = []
    for name, values in sections.items():
        of_section = {f"{name}.{key}": value for key, value in values.items()} if isinstance(values, dict) else None
        typed += [f"{key}={_literal(value)}" for key, value in (of_section or {name: values}).items()]
    return [f"resume={folder}", *typed]


def _literal(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if isinstance(value, str):
        return in_quotes(value)
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _as_typed(path: str) -> str:
    """The path as it is, for it may hold what Hydra cannot read; without quotes that only Hydra would need."""
    quoted = len(path) > 2 and path[0] == path[-1] and path[0] in "'\""
    return path[1:-1] if quoted and not Path(path).exists() else path
