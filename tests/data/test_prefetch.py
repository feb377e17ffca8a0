"""Without a GPU: that its thread makes the batches that are asked for, whatever the order."""

import numpy as np
import pytest
import torch

from apollo_cli.data.batches import NextToken, TrainingBatches
from apollo_cli.data.prefetch import Prefetch
from apollo_cli.models.transformer import Batch


class _Event:
    def __init__(self) -> None:
        self.waited = 0


class _Stream:
    def __init__(self, *_: object) -> None:
        self.events: list[_Event] = []

    def record_event(self) -> _Event:
        self.events.append(_Event())
        return self.events[-1]

    def wait_event(self, event: _Event) -> None:
        event.waited += 1

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Gpu:
    """Looks like a CUDA device where Prefetch asks, and is the CPU."""

    type = "cuda"


@pytest.fixture
def batches() -> TrainingBatches:
    rows = np.arange(60 * 8, dtype=np.uint16).reshape(60, 8) % 500
    return TrainingBatches(rows, NextToken(), seed=3, batch_size=6, micro_size=2)


@pytest.fixture
def prefetch(batches: TrainingBatches, monkeypatch: pytest.MonkeyPatch) -> Prefetch:
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    current = _Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: batch)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    return Prefetch(batches, 3, _Gpu())  # type: ignore[arg-type]


def _equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "positions", "targets"))


def test_micro_batches_may_be_requested_in_any_order(batches: TrainingBatches, prefetch: Prefetch) -> None:
    in_order = [(step, part) for step in range(4) for part in range(3)]
    for key in [*in_order, (1, 2), (1, 2), (9, 0), (9, 1), (0, 0)]:
        assert _equal(prefetch.micro_batch(*key), batches.micro_batch(*key)), key


def test_each_batch_is_made_once_ahead_of_time(
    batches: TrainingBatches, prefetch: Prefetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    original = TrainingBatches.micro_batch

    def counted(self: TrainingBatches, step: int, part: int) -> Batch:
        made.append((step, part))
        return original(self, step, part)

    monkeypatch.setattr(TrainingBatches, "micro_batch", counted)
    for step in range(3):
        for part in range(3):
            prefetch.micro_batch(step, part)
    prefetch.worker.shutdown()
    assert made == [(step, part) for step in range(3) for part in range(3)] + [(3, 0)]
    events = prefetch.stream.events  # type: ignore[attr-defined]
    assert [event.waited for event in events] == [1] * 9 + [0]


def test_on_a_cpu_they_are_made_when_requested(batches: TrainingBatches) -> None:
    prefetch = Prefetch(batches, 3, torch.device("cpu"))
    assert _equal(prefetch.micro_batch(2, 1), batches.micro_batch(2, 1))
    assert prefetch.ahead is None
