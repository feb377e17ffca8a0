"""The processes of a run meet, or say within seconds who is missing and how to go without them."""

import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from apollo_cli.errors import ConfigError, PeerError
from apollo_cli.signals import Terminated
from apollo_cli.training.distributed import group
from apollo_cli.training.distributed.environment import ProcessEnv
from apollo_cli.training.distributed.group import ProcessGroup


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> ProcessEnv:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ProcessEnv(0, 2, 0, "127.0.0.1", port, unset="unset WORLD_SIZE")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_the_others_names_what_to_unset(
    rank: int, env: ProcessEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(group, "_NOTE_AFTER", 0.1)
    with pytest.raises(ConfigError, match=r"(1 of them started within 0.3 s|refused).*type: unset WORLD_SIZE"):
        group._meet(replace(env, rank=rank), 0.3)
    assert f"process {rank} of 2 waits for the others" in capsys.readouterr().err


def _met(env: ProcessEnv) -> tuple[ProcessGroup, ProcessGroup]:
    """The groups of both processes."""
    with ThreadPoolExecutor(1) as other:
        later = other.submit(group._meet, replace(env, rank=1), 20.0)
        return group._meet(env, 20.0), later.result()


def test_processes_that_start_one_after_another_are_one_group(env: ProcessEnv) -> None:
    first, second = _met(env)
    assert (first.rank, second.rank, first.world_size) == (0, 1, 2)
    first.store.set("stamp", "2026")
    assert second.broadcast_via_store("stamp", lambda: "unused") == "2026"


def test_what_ends_a_process_is_said_by_it_where_rank_0_was_killed(
    env: ProcessEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher ends the others while they wait for what rank 0 says."""
    _, second = _met(env)

    def ended(seconds: float) -> None:
        raise Terminated(signal.SIGTERM)

    monkeypatch.setattr(group, "sleep", ended)
    assert second.should_report("another process of this run ended", PeerError("ended"))


def test_what_rank_0_says_no_other_process_repeats(env: ProcessEnv) -> None:
    first, second = _met(env)
    assert first.should_report("the disk is full", ConfigError("the disk is full"))
    assert not second.should_report("the disk is full", ConfigError("the disk is full"))
    assert not second.should_report("another process of this run ended", PeerError("ended"))
    assert second.should_report("its own disk is full", ConfigError("its own disk is full"))
