from collections.abc import Callable
from pathlib import Path

import pytest

from apollo_cli.config.config import Config
from apollo_cli.training.run import train
from tests.conftest import BuiltOnce


@pytest.fixture(scope="session")
def finished(built_once: BuiltOnce, config: Callable[..., Config]) -> Callable[[str], Path]:
    """The directory of a finished run of this kind of model, trained once."""

    def path_of(kind: str) -> Path:
        words = (f"model={kind}", "checkpoint.keep=9", "optim.lr=1e-2")
        return built_once(f"inference_{kind}", lambda path: train(config(*words), path))

    return path_of
