"""The folder of all packed corpora: its path, and the tag that distinguishes it from other folders.

A folder that the user types is made a cache and tagged by a CACHEDIR.TAG (https://bford.info/cachedir/). A folder
that only a config names, which may be someone else's, must have the tag already: else nothing is written there.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from apollo_cli import files
from apollo_cli.errors import ApolloError, ConfigError

_TAG = "CACHEDIR.TAG"
_CONTENT = "Signature: 8a477f597d28d172789f06886806bc55\n# Packed corpora of apollo-train; they are built again.\n"


def path(named: str | None) -> Path:
    """The folder of `data.cache_dir`, or the user's cache folder; a ConfigError for an unknown user's home."""
    if not named:
        return Path(platformdirs.user_cache_dir("apollo-train"))
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"data.cache_dir={named}: no such user; ./~ begins a name with ~") from error


def cache_folder_problems(named: str) -> list[str]:
    """The problem with a `data.cache_dir` that only a config names; none if it has our tag."""
    with suppress(OSError, ValueError, ConfigError):
        tag = path(named) / _TAG
        if tag.is_file() and tag.read_bytes() == _CONTENT.encode():
            return []
    return [
        f"data.cache_dir={named}: a config names this folder, and no {_TAG} says that it is a cache of "
        f"apollo-train; if it is meant to become one, type 'data.cache_dir={named}' yourself"
    ]


@contextmanager
def made_for_run(named: str | None) -> Iterator[None]:
    """Makes the typed folder of a run before its run directory names it; what is new goes with a refusal.

    A run that is killed in between would find no cache of ours when it is resumed, and a folder that only a config
    names is not made.
    """
    if not named:
        yield
        return
    folder = path(named)
    new, is_tagged = files.missing(folder), (folder / _TAG).exists()
    with suppress(OSError):  # building the corpus has the same error, with what to do
        make(folder)
    try:
        yield
    except ApolloError:
        if not is_tagged and [each.name for each in folder.glob("*")] == [_TAG]:
            (folder / _TAG).unlink()
        files.remove_empty(new)
        raise


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _TAG).exists():
        with suppress(OSError):  # another process writes it, too, or the next write has the same error
            files.write_text(folder / _TAG, _CONTENT)
