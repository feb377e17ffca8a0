import socket
from typing import Any, NoReturn

import datasets.config
import huggingface_hub.constants
import pytest

from apollo_cli.data import network


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    network._answers.cache_clear()


def offline() -> tuple[bool, bool]:
    return huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise socket.gaierror(-2, "Name or service not known")


def test_where_nobody_answers_the_cache_is_looked_into_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", refuse)
    network.look_into_the_cache_alone()
    assert offline() == (True, True)


def test_where_somebody_answers_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        socket, "create_connection", lambda address, timeout: asked.append(address) or socket.socket()
    )
    for _ in range(2):
        network.look_into_the_cache_alone()
    assert offline() == (False, False)
    assert asked == [("huggingface.co", 443)]


def test_behind_a_proxy_the_libraries_ask_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setattr(socket, "create_connection", refuse)
    network.look_into_the_cache_alone()
    assert offline() == (False, False)


def test_what_to_do_depends_on_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.what_to_do().startswith("HF_HUB_OFFLINE allows")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert network.what_to_do().startswith("Without a network")
