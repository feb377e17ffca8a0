"""A run on a busy machine says so, once."""

import pytest

from apollo_cli.training import core_use
from apollo_cli.training.core_use import CoreUse


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    for name in core_use._WAITING:
        monkeypatch.delenv(name, raising=False)
    now = {"wall": 100.0, "processor": 40.0}
    monkeypatch.setattr(core_use, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(core_use, "process_time", lambda: now["processor"])
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    return now


def looks(use: CoreUse, now: dict[str, float], spans: list[tuple[float, float]]) -> list[str]:
    """What is said after each span of seconds and processor seconds, after a first look."""
    said: list[str] = []
    use.look(said.append)
    for seconds, used in spans:
        now["wall"] += seconds
        now["processor"] += used
        use.look(said.append)
    return said


def test_cores_that_others_use_are_named_once(clocks: dict[str, float]) -> None:
    said = looks(CoreUse(), clocks, [(10, 40), (10, 31), (10, 20), (10, 5)])
    assert len(said) == 1
    assert said[0].startswith("note: 4 threads got 50% of the time of 4 cores")


def test_short_spans_are_measured_together(clocks: dict[str, float]) -> None:
    assert not looks(CoreUse(), clocks, [(1, 0), (0.9, 0), (2, 15.6)])
    assert looks(CoreUse(), clocks, [(1, 0), (0.9, 0), (2, 8)])


@pytest.mark.parametrize("name", core_use._WAITING)
def test_who_has_chosen_how_threads_wait_is_told_nothing(
    name: str, clocks: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "passive")
    assert not looks(CoreUse(), clocks, [(10, 1)])


def test_one_thread_waits_for_no_other(clocks: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert not looks(CoreUse(), clocks, [(10, 1)])
