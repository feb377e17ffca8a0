"""Makes the next micro-batch while the device computes the current one."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from apollo_cli.models.transformer import Batch

Key = tuple[int, int]  # step and part
Copied = tuple[Batch, torch.cuda.Event]


class MicroBatches(Protocol):
    """Training data as a function of step and part."""

    def micro_batch(self, step: int, part: int) -> Batch: ...

    def row_numbers(self, step: int, part: int) -> np.ndarray: ...


class Prefetch:
    """Micro-batches on the device of a run.

    A micro-batch is a function of its step and part, so any one may be requested at any time. On a GPU the next one
    is made by a thread, pinned, and copied on a separate stream; if another one is requested, it is made instead.
    On a CPU they are made when they are requested, because a thread would slow down the training.
    """

    def __init__(self, batches: MicroBatches, micro_steps: int, device: torch.device) -> None:
        self.batches, self.micro_steps, self.device = batches, micro_steps, device
        self.ahead: tuple[Key, Future[Copied]] | None = None
        if device.type == "cuda":
            self.worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
            self.stream = torch.cuda.Stream(device)

    def micro_batch(self, step: int, part: int) -> Batch:
        if self.device.type != "cuda":
            return self.batches.micro_batch(step, part).to(self.device)
        ahead = self.ahead if self.ahead and self.ahead[0] == (step, part) else self._begin((step, part))
        self.ahead = self._begin((step, part + 1) if part + 1 < self.micro_steps else (step + 1, 0))
        batch, copied = ahead[1].result()
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for tensor in batch.tensors.values():
            tensor.record_stream(current)  # its memory is not reused before this stream has used it
        return batch

    def _begin(self, key: Key) -> tuple[Key, Future[Copied]]:
        return key, self.worker.submit(self._copy, key)

    def _copy(self, key: Key) -> Copied:
        batch = self.batches.micro_batch(*key).pin_memory()
        with torch.cuda.stream(self.stream):
            return batch.to(self.device), self.stream.record_event()
