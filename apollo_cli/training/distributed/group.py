"""The processes of one run, one device each, and their collective operations through torch.distributed."""

import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic, sleep
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from apollo_cli.errors import ConfigError, PeerError
from apollo_cli.signals import Interrupted, Terminated
from apollo_cli.training.distributed.environment import ProcessEnv

T = TypeVar("T")

_START_TIMEOUT = 600.0  # seconds until all processes are started
_NOTE_AFTER = 5.0  # seconds of waiting for them
_ERROR_TIMEOUT = 3.0  # seconds in which rank 0 may report the same error
_ERROR_KEY = "error of rank 0"


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run. Its collective methods must be called by every process."""

    env: ProcessEnv | None = None  # rank of this process; None if it is the only one
    # key-value store of all processes, which needs no initialized group
    store: Any = field(default=None, repr=False, compare=False)

    @property
    def rank(self) -> int:
        return self.env.rank if self.env else 0

    @property
    def world_size(self) -> int:
        return self.env.world_size if self.env else 1

    @property
    def local_rank(self) -> int:
        return self.env.local_rank if self.env else 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @contextmanager
    def initialized(self, timeout: float, device: torch.device) -> Iterator[None]:
        """Initializes torch's process group while entered; a process may take `timeout` seconds to answer.

        A PeerError if another process ended or does not answer.
        """
        if not self.env:
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
                    f"distributed.timeout={timeout:g}: another process has not answered for {timeout:g} s; it "
                    "hangs, or is much slower"
                ) from error
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise PeerError("another process of this run ended") from error
            raise
        dist.destroy_process_group()  # not after an error, for other processes may be inside an operation

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place."""
        if self.env:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def max(self, *values: float) -> list[float]:
        if not self.env:
            return list(values)
        reduced = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return reduced.tolist()

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        box = [value if self.is_main else None]
        if self.env:
            dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        values = [value] * self.world_size
        if self.env:
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def local_rank_zero_first(self, name: str) -> Iterator[None]:
        """Lets one process of each machine through first, and the others of the machine when it has left."""
        if not self.env:
            yield
            return
        key = f"{name} {self.rank - self.local_rank}"
        if self.local_rank:
            self._wait_for(key)
        yield
        self.store.set(key, "done")

    def broadcast_via_store(self, key: str, value: Callable[[], str]) -> str:
        """The value of rank 0; needs no initialized group."""
        if not self.env:
            return value()
        if self.is_main:
            self.store.set(key, value())
        self._wait_for(key, _START_TIMEOUT)
        return self.store.get(key).decode()

    def _wait_for(self, key: str, seconds: float = math.inf) -> None:
        """Waits until another process has set the key; signals do not interrupt the store's own wait.

        A PeerError if rank 0 ended, or the time is over.
        """
        began = monotonic()
        while not self.store.check([key]):
            if monotonic() - began > seconds:
                raise PeerError(f"rank 0 of this run has not answered for {seconds:g} s")
            if self.store.check([_ERROR_KEY]):
                raise PeerError("rank 0 of this run ended")
            sleep(0.05)

    def should_report(self, message: str, error: Exception) -> bool:
        """Whether this process prints the error that ends it.

        Rank 0 always does; another rank does not print the same message, nor what follows from the end of rank 0.
        """
        if not self.env:
            return True
        with suppress(RuntimeError, Terminated):  # the store, or all, where rank 0 was killed
            if self.is_main:
                self.store.set(_ERROR_KEY, message)
                return True
            began = monotonic()
            while monotonic() - began < _ERROR_TIMEOUT:
                if self.store.check([_ERROR_KEY]):
                    return self.store.get(_ERROR_KEY).decode() != message and not isinstance(
                        error, PeerError | Interrupted
                    )
                sleep(0.05)
        return True


ALONE = ProcessGroup()
_connected: list[ProcessGroup] = []  # none before `connect`, then one


def connect(timeout: float = _START_TIMEOUT) -> ProcessGroup:
    """Connects to the other processes of this run, if there are any; later calls return the same group.

    A ConfigError if they are not all started within `timeout` seconds, or the environment does not name them.
    """
    if not _connected:
        env = ProcessEnv.from_environ(os.environ)
        _connected.append(_meet(env, timeout) if env else ALONE)
    return _connected[0]


def connected() -> ProcessGroup:
    """The processes that this one is connected to; itself alone before `connect`."""
    return _connected[0] if _connected else ALONE


def _meet(env: ProcessEnv, timeout: float) -> ProcessGroup:
    """The group of all processes, once each of them is there. Waits in Python, so that a signal ends it."""
    listens = env.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun does
    began, noted, problem, present = monotonic(), False, "", 0
    store: Any = None
    while present < env.world_size:
        try:
            if store is None:
                if not listens:
                    socket.create_connection((env.host, env.port), timeout=5).close()
                store = dist.TCPStore(
                    env.host, env.port, env.world_size, listens, timedelta(seconds=timeout), wait_for_workers=False
                )
                start = store.add(f"start of {env.rank}", 1)  # each of torchrun's agents counts restarts by itself
                store = dist.PrefixStore(f"apollo {start}", store)
                store.set(f"present {env.rank}", "")
            present = sum(store.check([f"present {rank}"]) for rank in range(env.world_size))
        except (OSError, RuntimeError, dist.DistError) as error:
            problem = f": {str(error).splitlines()[0]}"
            if listens or store:
                raise _unreachable(env, problem) from error
        seconds = monotonic() - began
        if seconds > timeout:
            raise _unreachable(env, problem or f": {present} of them started within {timeout:g} s")
        if seconds > _NOTE_AFTER and not noted:
            noted = True
            print(
                f"apollo-train: process {env.rank} of {env.world_size} waits for the others at "
                f"{env.host}:{env.port}{problem}; for one process on its own, type: {env.unset}",
                file=sys.stderr,
                flush=True,
            )
        if present < env.world_size:
            sleep(0.05)
    return ProcessGroup(replace(env, restarts=max(env.restarts, start - 1)), store)


def _unreachable(env: ProcessEnv, problem: str) -> ConfigError:
    return ConfigError(
        f"process {env.rank} of {env.world_size} could not connect to the others at {env.host}:{env.port}"
        f"{problem}; for one process on its own, type: {env.unset}"
    )
