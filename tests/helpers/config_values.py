"""Changes of composed values, and checks of the errors that they cause."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest

from apollo_cli.config.config import parse
from apollo_cli.errors import ConfigError


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values at dotted keys."""
    result = deepcopy(values)
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = result
        for name in path:
            inner = inner[name]
        inner[last] = value
    return result


def problems_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(values)
    assert all(problem in str(error.value) for problem in error.value.problems)
    return error.value.problems


def refuses(values: dict[str, Any], changes: dict[str, Any], says: Sequence[str]) -> None:
    """Asserts that these changes cause one problem, which has all these words."""
    (problem,) = problems_of(changed(values, changes))
    assert all(words in problem for words in says), problem
