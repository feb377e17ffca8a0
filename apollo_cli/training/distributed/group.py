"""The processes of one run, a device each, and what they tell each other, which goes through torch.distributed."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from time import monotonic, sleep
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from apollo_cli.errors import ConfigError, PeerError
from apollo_cli.signals import Interrupted
from apollo_cli.training.distributed.environment import ProcessEnv

T = TypeVar("T")

_MEETING = timedelta(minutes=10)  # until all are started
_PATIENCE = 3.0  # seconds in which the first may say the same
_LAST_WORDS = "last words"


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, and which of them this one is; what they compute together, all of them ask for.

    Attributes:
        place: of this one; None where it is alone.
        store: what all can read and write, with or without a group.
    """

    place: ProcessEnv | None = None
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def rank(self) -> int:
        """From 0."""
        return self.place.rank if self.place else 0

    @property
    def world_size(self) -> int:
        """How many there are."""
        return self.place.world_size if self.place else 1

    @property
    def local_rank(self) -> int:
        """Number among those of this machine."""
        return self.place.local_rank if self.place else 0

    @property
    def is_main(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    @contextmanager
    def group(self, timeout: float, device: torch.device) -> Iterator[None]:
        """While entered, they can compute together.

        Args:
            timeout: seconds that one may keep the others waiting.
            device: of this process.

        Raises:
            PeerError: another one is gone, or hangs.
        """
        if not self.place:
            yield
            return
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=timeout),
        )
        try:
            yield
        except RuntimeError as error:  # torch has no class of its own for it
            if "imed out" in str(error):
                raise PeerError(
                    f"another process has not answered for {timeout:g} s (distributed.timeout): it hangs, or is "
                    "much slower"
                ) from error
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise PeerError("another process of this run is gone") from error
            raise
        dist.destroy_process_group()  # in good order only after a good end: else others may be in the midst of it

    def mean(self, values: Tensor) -> Tensor:
        """Over all of them, in place."""
        if self.place:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def total(self, *values: float) -> list[float]:
        """The sum of each, in double precision."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, *values: float) -> list[float]:
        """The highest of each."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: tuple[float, ...], by: Any) -> list[float]:
        if not self.place:
            return list(values)
        reduced = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(reduced, by)
        return reduced.tolist()

    def broadcast(self, value: T) -> T:
        """What the first one has."""
        box = [value if self.is_main else None]
        if self.place:
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    @contextmanager
    def local_rank_zero_first(self, what: str) -> Iterator[None]:
        """Entered by one process of each machine, and by its others once that one is through."""
        if not self.place:
            yield
            return
        key = f"{what} {self.rank - self.local_rank}"
        if self.local_rank:
            self._wait_for(key)
        yield
        self.store.set(key, "done")

    def broadcast_via_store(self, key: str, value: Callable[[], str]) -> str:
        """The first one's value; no group is needed."""
        if not self.place:
            return value()
        if self.is_main:
            self.store.set(key, value())
        self._wait_for(key, _MEETING.total_seconds())
        return self.store.get(key).decode()

    def _wait_for(self, key: str, seconds: float = math.inf) -> None:
        """Until somebody has set it; the store's own wait would not hear a signal.

        Raises:
            PeerError: the first one ended instead, or let so many seconds pass.
        """
        began = monotonic()
        while not self.store.check([key]):
            if monotonic() - began > seconds:
                raise PeerError(f"the first process of this run has not answered for {seconds:g} s")
            if self.store.check([_LAST_WORDS]):
                raise PeerError("the first process of this run has ended")
            sleep(0.05)

    def speaks(self, message: str, error: Exception) -> bool:
        """Whether this process is to say why it ends: not what the first one has said, or what comes from that."""
        if not self.place:
            return True
        with suppress(RuntimeError):  # the store may be gone with the first one
            if self.is_main:
                self.store.set(_LAST_WORDS, message)
                return True
            began = monotonic()
            while monotonic() - began < _PATIENCE:
                if self.store.check([_LAST_WORDS]):
                    return self.store.get(_LAST_WORDS).decode() != message and not isinstance(
                        error, PeerError | Interrupted
                    )
                sleep(0.05)
        return True


ALONE = ProcessGroup()


@cache
def join() -> ProcessGroup:
    """Meets the other processes of this run, if there are any.

    Raises:
        ConfigError: they did not come, or the environment does not say where.
    """
    place = ProcessEnv.of(os.environ)
    if place is None:
        return ALONE
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun listens itself
    try:
        store = dist.TCPStore(place.host, place.port, place.world_size, place.rank == 0 and not of_agent, _MEETING)
    except (RuntimeError, dist.DistError) as error:
        raise ConfigError(
            [
                f"process {place.rank} of {place.world_size} did not meet the others at {place.host}:{place.port}: "
                f"{str(error).splitlines()[0]}"
            ]
        ) from error
    start = store.add(f"start of {place.rank}", 1)  # torchrun's agents count restarts each for itself
    place = replace(place, restarts=max(place.restarts, start - 1))
    return ProcessGroup(place, dist.PrefixStore(f"apollo {start}", store))


def joined() -> ProcessGroup:
    """Those that this process has met; itself alone before."""
    return join() if join.cache_info().currsize else ALONE
