"""The hub without a network: its libraries would try for a minute before they looked into their cache."""

import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

_PATIENCE = 10  # seconds
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_YES = ("1", "ON", "YES", "TRUE")  # as the libraries read them


def look_into_the_cache_alone() -> None:
    """Has the libraries of the hub do so for the rest of this process, if that is asked for or nobody answers.

    Each of them reads some of the variables that ask for it, and only when it is imported.
    """
    from huggingface_hub import constants

    if _asked_to_stay_offline() or constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
        from datasets import config

        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True


def _asked_to_stay_offline() -> list[str]:
    """The variables that ask for it."""
    return [name for name in _OFFLINE if os.environ.get(name, "").upper() in _YES]


@cache
def _answers(address: str) -> bool:
    """Whether the hub can be reached; behind a proxy nobody knows before asking."""
    if getproxies():
        return True
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


def what_to_do(what: str) -> str:
    """About something of the hub that cannot be had, as words that go on a sentence."""
    from huggingface_hub import constants

    if asked := _asked_to_stay_offline():
        return f"unset {' and '.join(asked)}, or name a cache that has it in HF_HOME"
    if constants.HF_HUB_OFFLINE:
        return "there is no way to the hub from here: find one, or name a cache that has it in HF_HOME"
    return f"check that {what} is its name there, and type hf auth login where it is not for everybody"
