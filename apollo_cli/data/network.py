"""The hub without a network: its libraries would try for a minute before they looked into their cache."""

import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

_PATIENCE = 10  # seconds


def look_into_the_cache_alone() -> None:
    """Has the libraries of the hub do so for the rest of this process, if nobody answers there."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):
        from datasets import config

        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True


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


def what_to_do() -> str:
    """About something that is not in the cache, as the beginning of a sentence."""
    if any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")):
        return "HF_HUB_OFFLINE allows what is in the cache alone: unset it, or name a cache that has it in HF_HOME"
    return "Without a network, name a cache that has it in HF_HOME"
