"""The hub without a network: its libraries would try for a minute before they look into their cache."""

import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

_TIMEOUT = 10  # seconds
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_YES = ("1", "ON", "YES", "TRUE")  # as the libraries read them


def go_offline_if_needed() -> None:
    """Makes the libraries of the hub use only their cache, if a variable asks for it or the hub does not answer.

    Each of them reads some of these variables, and only when it is imported.
    """
    from huggingface_hub import constants

    if offline_variables() or constants.HF_HUB_OFFLINE or not _is_reachable(constants.ENDPOINT):
        from datasets import config

        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True


def offline_variables() -> list[str]:
    """The variables that forbid the libraries of the hub to use the network."""
    return [name for name in _OFFLINE if os.environ.get(name, "").upper() in _YES]


@cache
def _is_reachable(address: str) -> bool:
    """Whether the hub can be reached; assumed behind a proxy."""
    if getproxies():
        return True
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=_TIMEOUT).close()
    except OSError:
        return False
    return True


def what_to_do(name: str) -> str:
    """What to do if `name` cannot be loaded from the hub, as the end of a sentence."""
    from huggingface_hub import constants

    if asked := offline_variables():
        return f"unset {' and '.join(asked)}, or name a cache that has it in HF_HOME"
    if constants.HF_HUB_OFFLINE:
        return "there is no way to the hub from here: find one, or name a cache that has it in HF_HOME"
    return f"check that {name} is its name there, and type hf auth login if it is not public"
