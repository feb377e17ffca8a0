"""The commands that make a run again, from its untrusted config: nothing of it is executed or resolved."""

import shlex
from typing import Any

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import command_words
from apollo_cli.config.training import LENGTHS
from apollo_cli.errors import ConfigError
from apollo_cli.report.runs import Run


def commands(run: Run) -> list[str]:
    """Lines for a shell: one, and one more for each time that the run was made longer.

    A ConfigError, with the first problem, for a run that this version does not have.
    """
    try:
        values = dict(parse({**_nested(run.config), "resume": None}).raw)
    except (ConfigError, TypeError) as error:
        raise ConfigError(str(error).partition("\n")[0]) from None
    values.pop("experiment", None)  # its keys are all there, and it may be a sweep
    budget = dict(values["budget"])
    earlier: list[int] = list(budget.pop("extended_from", ()))
    longer = []
    if earlier:  # which are known in steps, whatever was typed
        last = next(f"{unit}={budget[unit]}" for unit in LENGTHS if budget[unit] is not None)
        longer = [*(f"steps={steps}" for steps in earlier[1:]), last]
        budget |= dict.fromkeys(LENGTHS) | {"steps": earlier[0]}
    values["budget"] = budget
    lines = [shlex.join(["apollo-train", *command_words(values)])]
    lines += [f"apollo-train resume=RUN_DIR budget.{length}" for length in longer]
    if not all(line.isprintable() for line in lines):
        raise ConfigError("its config has characters that no terminal shows")
    return lines


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (found.setdefault(section, {}) if section else found)[name] = value
    return found
