from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from apollo_cli.config.config import Config
from apollo_cli.data import tokenizer
from apollo_cli.training.run import train
from tests.conftest import BuiltOnce
from tests.helpers import made_glue


@pytest.fixture(scope="session", autouse=True)
def _loaded_once() -> Iterator[None]:
    """A tokenizer is first loaded in another process, which takes a second; here once for copies of one file."""
    paths: dict[tuple[str, ...], Path] = {}
    by_digest = cache(lambda *digests: load(paths[digests], *digests))
    load = tokenizer._load_in_subprocess

    def load_once(path: Path, *digests: str) -> None:
        paths[digests] = path
        by_digest(*digests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_load_in_subprocess", load_once)
        yield


@pytest.fixture(scope="session")
def glue_dir(built_once: BuiltOnce) -> Path:
    """All tasks in the original form, with a few rows each."""
    return built_once("glue", made_glue.write)


@pytest.fixture(scope="session")
def pretrained(config: Callable[..., Config], built_once: BuiltOnce) -> Path:
    """A complete run of a tiny BERT."""
    return built_once("pretrained", lambda folder: train(config("budget.steps=4", "model.dropout=0.1"), folder))


@pytest.fixture(scope="session")
def quick(glue_dir: Path) -> tuple[str, ...]:
    """Overrides of fine-tuning runs of six steps: three batches an epoch."""
    return (
        f"glue.data_dir={glue_dir}",
        "glue.epochs=2",
        "precision=fp32",
        "batch.size=8",
        "seed=0",
        "optim.lr=1e-3",
        "log.every=2",
        "checkpoint.every=2",
        "tracking=local",
        "device=cpu",
    )


@pytest.fixture(scope="session")
def gpt_folder(config: Callable[..., Config], built_once: BuiltOnce) -> Path:
    """The exported model of a tiny GPT."""
    return built_once("gpt", lambda folder: train(config("model=gpt", "budget.steps=4"), folder)) / "model"
