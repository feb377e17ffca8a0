from collections.abc import Callable
from pathlib import Path

import pytest

from apollo_cli.config.config import Config
from apollo_cli.training.run import train
from tests.helpers import made_glue


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks in the original form, with a few rows each."""
    return made_glue.write(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def pretrained(config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of a tiny BERT."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train(config("budget.steps=4", "model.dropout=0.1"), folder)
    return folder


@pytest.fixture(scope="session")
def quick(glue_dir: Path) -> tuple[str, ...]:
    """Overrides of fine-tuning runs of six steps: three batches an epoch."""
    return (
        f"glue.data_dir={glue_dir}",
        "glue.epochs=2",
        "batch.size=8",
        "seed=0",
        "optim.lr=1e-3",
        "log.every=2",
        "checkpoint.every=2",
        "tracking=local",
        "device=cpu",
    )


@pytest.fixture(scope="session")
def gpt_folder(config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model of a tiny GPT."""
    folder = tmp_path_factory.mktemp("gpt") / "run"
    train(config("model=gpt", "budget.steps=4"), folder)
    return folder / "model"
