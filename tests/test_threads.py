"""Threads wait briefly for each other, and a run on a busy machine says so, once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apollo_cli import threads
from apollo_cli.threads import CoreWaits, wait_briefly


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    for name in threads._CHOICES:
        monkeypatch.delenv(name, raising=False)
    now = {"wall": 100.0, "waited": 40.0}
    monkeypatch.setattr(threads, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(threads, "seconds_waited", lambda: now["waited"])
    return now


def looks(waits: CoreWaits, now: dict[str, float], spans: list[tuple[float, float]]) -> list[str]:
    """What is said after each span of seconds and seconds of waiting, after a first look."""
    said: list[str] = []
    waits.look(said.append)
    for seconds, waited in spans:
        now["wall"] += seconds
        now["waited"] += waited
        waits.look(said.append)
    return said


def test_cores_that_others_use_are_named_once(clocks: dict[str, float]) -> None:
    said = looks(CoreWaits(4), clocks, [(10, 0), (10, 3.9), (10, 10), (10, 20)])
    assert len(said) == 1
    assert said[0].startswith("note: the 4 threads of this run wait for a core 25% of the time")


def test_short_spans_are_measured_together(clocks: dict[str, float]) -> None:
    assert not looks(CoreWaits(4), clocks, [(1, 0.7), (0.9, 0.7), (2, 0)])
    assert looks(CoreWaits(4), clocks, [(1, 0.7), (0.9, 0.7), (2, 1)])


@pytest.mark.parametrize("name", threads._CHOICES)
def test_who_has_chosen_how_threads_wait_is_told_nothing(
    name: str, clocks: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "passive")
    assert not looks(CoreWaits(4), clocks, [(10, 30)])


def test_one_thread_waits_for_no_other(clocks: dict[str, float]) -> None:
    assert not looks(CoreWaits(1), clocks, [(10, 9)])


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not count it")
def test_waiting_for_a_core_is_counted() -> None:
    """Two threads on one core: the system lets each wait while the other runs."""
    script = (
        "import os, time\n"
        "from threading import Thread\n"
        "from hashlib import sha256\n"
        "from apollo_cli.threads import seconds_waited\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "ends, data, before = time.monotonic() + 0.4, bytes(2**20), seconds_waited()\n"
        "def work():\n"
        "    while time.monotonic() < ends:\n"
        "        sha256(data)\n"
        "both = [Thread(target=work) for _ in range(2)]\n"
        "[each.start() for each in both]\n"
        "time.sleep(0.3)\n"
        "print(seconds_waited() - before)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(shown) > 0.1


def test_a_command_has_threads_wait_briefly_but_as_the_user_chose(
    clocks: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ  # libgomp would follow that instead
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    assert looks(CoreWaits(4), clocks, [(10, 30)])  # that was no choice of the user's
