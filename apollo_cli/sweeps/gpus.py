"""A GPU for each process that runs jobs on this machine at the same time."""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_HELD: list[FileLock] = []  # until this process ends, however it does


def visible() -> list[str]:
    """Those that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    found = torch.cuda.device_count()
    named = os.environ.get(_VARIABLE)
    return (named.split(",") if named else [str(i) for i in range(found)])[:found]


def take_one(gpus: Sequence[str], numbers: Path, device: str) -> None:
    """Leaves this process one of `gpus`, unless the user chose a device; before anything asks CUDA.

    `numbers` is a folder that all processes of the sweep know; each has a number there as long as it lives.
    """
    if gpus and device in ("auto", "cuda"):
        os.environ[_VARIABLE] = gpus[_number(numbers) % len(gpus)]


@cache
def _number(numbers: Path) -> int:
    for number in count():
        lock = FileLock(numbers / str(number), timeout=0)
        with suppress(Timeout):
            lock.acquire()
            _HELD.append(lock)
            return number
    raise AssertionError
