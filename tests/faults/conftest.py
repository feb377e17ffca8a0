"""What the long form counted, printed at its end."""

from collections.abc import Callable

import pytest

_COUNTS = pytest.StashKey[list[str]]()


@pytest.fixture
def record_count(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line for the end of the report."""
    return request.config.stash.setdefault(_COUNTS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_COUNTS, []):
        terminalreporter.write_line(line)
