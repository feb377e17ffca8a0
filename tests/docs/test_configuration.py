"""The page of all keys is current, and says something about each."""

import runpy

from tests.helpers.pages import PAGES, REPOSITORY


def test_the_page_is_current_and_every_key_has_a_type_and_a_meaning() -> None:
    """Else: python docs/configuration.py; a key without a meaning needs a comment in conf/."""
    page = PAGES["docs/configuration.md"]
    assert page == runpy.run_path(str(REPOSITORY / "docs" / "configuration.py"))["page"]()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert all(cell.strip() for row in rows for cell in (row.split(" | ")[1], row.strip("| ").split(" | ")[-1]))
    assert "| `sampler.k` | number, ≥ 0 | `2` | density of" in page
    assert "| `expander.moments` | `keep`, `map`, `new`, `reset` | `keep` | " in page
    assert "| `schedule.layers` | list of integers or parts of L | " in page
