import socket
from typing import Any, NoReturn

import huggingface_hub.constants
import pytest

from apollo_cli.data import network

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    network._is_reachable.cache_clear()


def offline() -> tuple[bool, bool]:
    import datasets.config

    return huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise socket.gaierror(-2, "Name or service not known")


def test_without_an_answer_of_the_hub_only_the_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", refuse)
    network.go_offline_if_needed()
    assert offline() == (True, True)


def test_if_the_hub_answers_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(address: Any, timeout: float) -> socket.socket:
        asked.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", answer)
    for _ in range(2):
        network.go_offline_if_needed()
    assert offline() == (False, False)
    assert asked == [("huggingface.co", 443)]


def test_behind_a_proxy_the_libraries_try_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setattr(socket, "create_connection", refuse)
    network.go_offline_if_needed()
    assert offline() == (False, False)


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("value", ["1", "true"])
def test_each_variable_makes_all_libraries_stay_offline(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(network, "_is_reachable", lambda _: pytest.fail("the hub was asked"))
    network.go_offline_if_needed()
    assert offline() == (True, True)
    assert network.what_to_do("x").startswith(f"unset {name}, or name a cache")


@pytest.mark.parametrize("value", ["0", ""])
def test_a_variable_that_is_off_changes_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(network, "_is_reachable", lambda _: True)
    network.go_offline_if_needed()
    assert offline() == (False, False)
    assert network.what_to_do("a/b").startswith("check that a/b is its name there")


def test_what_to_do_if_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", refuse)
    network.go_offline_if_needed()
    assert network.what_to_do("x").startswith("there is no way to the hub from here")
