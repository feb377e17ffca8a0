from importlib.metadata import PackageNotFoundError

import pytest
import torch

from apollo_cli.training import summary


def test_a_package_without_metadata_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(summary, "version", without)
    assert summary.versions()["wandb"] == "not installed"
    assert summary.versions()["torch"] == str(torch.__version__)
