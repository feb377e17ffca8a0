"""Folders that are made for something that may not come."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def leaving_none_empty(place: Path) -> Iterator[None]:
    """Removes `place` and its parents at the end as far as they were not there at the beginning and are empty."""
    made = [folder for folder in (place, *place.parents) if not os.path.lexists(folder)]
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError, ValueError):  # not empty, or never made
                folder.rmdir()
