import random
import socket
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub.constants
import pytest


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a test reached for the network")

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # read when it is imported
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Distinct documents of 5 to 80 words each, every one with a first word of its own."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(150)]
    return [" ".join([f"doc{i}", *rng.choices(words, k=rng.randint(4, 79)), rng.choice(".!?")]) for i in range(300)]
