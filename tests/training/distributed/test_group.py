"""The processes of a run meet, or say within seconds who is missing and how to go without them."""

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from apollo_cli.errors import ConfigError
from apollo_cli.training.distributed import group
from apollo_cli.training.distributed.environment import ProcessEnv


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


def test_processes_that_start_one_after_another_are_one_group(env: ProcessEnv) -> None:
    with ThreadPoolExecutor(1) as other:
        later = other.submit(group._meet, replace(env, rank=1), 20.0)
        first = group._meet(env, 20.0)
        assert (first.rank, later.result().rank, first.world_size) == (0, 1, 2)
        first.store.set("stamp", "2026")
        assert later.result().broadcast_via_store("stamp", lambda: "unused") == "2026"
