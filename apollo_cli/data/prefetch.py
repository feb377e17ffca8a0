"""The next micro-batch, made while the device computes this one."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from apollo_cli.models.transformer import Batch

Key = tuple[int, int]  # step and part
Copied = tuple[Batch, torch.cuda.Event]


class MicroBatches(Protocol):
    """What a run trains on, as a function of step and part."""

    @property
    def batch_size(self) -> int:
        """Sequences a step."""

    @property
    def micro_size(self) -> int:
        """Sequences a micro-step."""

    def micro_batch(self, step: int, part: int) -> Batch:
        """Micro-batch `part` of a step."""

    def row_numbers(self, step: int, part: int) -> np.ndarray:
        """Which rows these are."""


class Prefetch:
    """Micro-batches on the device of a run.

    A micro-batch is a function of its step and part, so nothing has to be kept in order: the next one is made by a
    thread, pinned, and copied on a stream of its own; if another one is asked for, that one is made instead.
    A CPU has no time to spare beside its computing, so there they are made when they are asked for.
    """

    def __init__(self, batches: MicroBatches, device: torch.device) -> None:
        self.batches, self.device = batches, device
        self.ahead: tuple[Key, Future[Copied]] | None = None
        if device.type == "cuda":
            self.worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
            self.stream = torch.cuda.Stream(device)

    def micro_batch(self, step: int, part: int) -> Batch:
        """Micro-batch `part` of a step."""
        if self.device.type != "cuda":
            return self.batches.micro_batch(step, part).to(self.device)
        ahead = self.ahead if self.ahead and self.ahead[0] == (step, part) else self._begin((step, part))
        self.ahead = self._begin(self._after(step, part))
        batch, copied = ahead[1].result()
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for tensor in batch.tensors.values():
            tensor.record_stream(current)  # its memory is not free before this stream is done
        return batch

    def _begin(self, key: Key) -> tuple[Key, Future[Copied]]:
        return key, self.worker.submit(self._copy, key)

    def _copy(self, key: Key) -> Copied:
        batch = self.batches.micro_batch(*key).pin_memory()
        with torch.cuda.stream(self.stream):
            return batch.to(self.device), self.stream.record_event()

    def _after(self, step: int, part: int) -> Key:
        last = part + 1 == self.batches.batch_size // self.batches.micro_size
        return (step + 1, 0) if last else (step, part + 1)
