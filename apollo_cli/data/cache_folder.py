"""The folder of all packed corpora: where it is, and how it is told from any other folder.

A folder that a user types is ours from then on and carries a CACHEDIR.TAG (https://bford.info/cachedir/). One that
only a config names, perhaps a stranger's, must carry it already: nobody else's folder is written to.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from apollo_cli import files
from apollo_cli.errors import ApolloError, ConfigError
from apollo_cli.files import remove_if_empty

_TAG = "CACHEDIR.TAG"
_CONTENT = "Signature: 8a477f597d28d172789f06886806bc55\n# Packed corpora of apollo-train; they are built again.\n"


def path(named: str | None) -> Path:
    """The folder of `data.cache_dir`; None is the user's cache folder.

    Raises:
        ConfigError: it names the home of a user who is not known here.
    """
    if not named:
        return Path(platformdirs.user_cache_dir("apollo-train"))
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise ConfigError([f"data.cache_dir={named}: no such user; ./~ begins a name with ~"]) from error


def problems(named: str) -> list[str]:
    """What is wrong with a `data.cache_dir` that only a config names; nothing if it is one of ours."""
    with suppress(OSError, ValueError, ConfigError):
        tag = path(named) / _TAG
        if tag.is_file() and tag.read_bytes() == _CONTENT.encode():
            return []
    return [
        f"data.cache_dir={named}: a config names this folder, and no {_TAG} says that it is a cache of "
        f"apollo-train; if it is meant to become one, type 'data.cache_dir={named}' yourself"
    ]


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Makes the folder and tags it as ours; both are taken back if the corpus is refused before anything is in it.

    A folder that cannot be written to stays without a tag: whoever writes into it says why.
    """
    tag = folder / _TAG
    with remove_if_empty(folder):
        new = not tag.exists()
        if new:
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                files.write_text(tag, _CONTENT)
        try:
            yield
        except ApolloError:
            with suppress(OSError):  # it may be no folder
                if new and os.listdir(folder) == [_TAG]:  # noqa: PTH208
                    tag.unlink()
            raise
