"""`resume=RUN_DIR`: the run that continues, and what may be typed beside it."""

import os
import re
from pathlib import Path
from typing import Any

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.config.config import FAMILIES, fields_of_keys
from apollo_cli.config.hydra_syntax import parse_overrides
from apollo_cli.config.schema import closest
from apollo_cli.config.training import LENGTHS
from apollo_cli.errors import ConfigError

OVERRIDABLE_SECTIONS = ("tracking", "checkpoint", "distributed")  # sections that cannot change a run's result
CACHE_KEY = "data.cache_dir"  # where what can be built again is kept
# Keys for a run that cannot continue as it is, or where it was.
OVERRIDABLE_KEYS = ("on_nonfinite", "devices", "compile")
_RESUME = re.compile(r"\+*resume=(?!null\Z)")  # not the default


def resume_overrides(line: CommandLine) -> tuple[str, dict[str, Any]] | None:
    """The run directory of `resume=` and the sections beside it, or None; a ConfigError if these change the run."""
    typed = [word for word in line.overrides if _RESUME.match(word)]
    if not typed:
        return None
    folder = _as_typed(typed[-1].partition("=")[2])
    problems: list[str] = []
    sections: dict[str, Any] = {}
    for override in parse_overrides([word for word in line.overrides if word not in typed], problems):
        section, _, key = override.key_or_group.partition(".")
        is_length = section == "budget" and key in LENGTHS
        is_known = section in OVERRIDABLE_SECTIONS or override.key_or_group == CACHE_KEY or is_length
        if is_known and key and not override.is_sweep_override():
            sections.setdefault(section, {})[key] = override.value()
        elif override.key_or_group in OVERRIDABLE_KEYS and not override.is_sweep_override():
            sections[override.key_or_group] = override.value()
        elif key and section in FAMILIES and override.key_or_group not in (known_keys := dict(fields_of_keys())):
            near = closest(override.key_or_group, list(known_keys))
            problems.append(f"{override.input_line}: no such key{near}")
        else:
            *known, last = (*OVERRIDABLE_SECTIONS, CACHE_KEY, *OVERRIDABLE_KEYS)
            problems.append(
                f"{override.input_line}: a resumed run keeps its own config; only keys of {', '.join(known)} and "
                f"{last} may be typed beside resume=, and a longer budget"
            )
    if len(longer := sections.get("budget", {})) > 1 or None in longer.values():
        problems.append(
            f"budget.{', budget.'.join(longer)}: type one length of the run beside resume=, and no null"
        )
    if line.multirun:
        problems.append("resume= continues one run; leave -m out")
    if problems:
        raise ConfigError(*problems)
    return folder, sections


def _as_typed(path: str) -> str:
    """The path as it is, for it may hold what Hydra cannot read; without quotes that only Hydra would need."""
    path = os.path.expanduser(path)  # noqa: PTH111 - of an unknown user it stays as it is
    quoted = len(path) > 2 and path[0] == path[-1] and path[0] in "'\""
    return path[1:-1] if quoted and not Path(path).exists() else path
