import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apollo_cli.config.config import Config
from apollo_cli.sweeps.continuation import train_or_continue
from apollo_cli.training import run as run_module


def test_a_completed_job_is_passed_over_and_returns_its_recorded_losses(
    config: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = train_or_continue(config("precision=auto"), tmp_path / "job", "job 0")
    monkeypatch.setattr(run_module, "train", lambda *_: pytest.fail("it trains again"))
    monkeypatch.setattr(run_module, "resume", lambda *_: pytest.fail("it is resumed"))
    assert train_or_continue(config("precision=auto"), tmp_path / "job", "job 0") == trained
    assert trained == json.loads((tmp_path / "job" / "summary.json").read_text(encoding="utf-8"))["losses"]
    assert capsys.readouterr().out.endswith("job 0: completed before\n")
