"""No key or token is ever in a log, a config, a row or a message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KEY, TOKEN = "5ec2e7" * 6 + "cafe", "hf_" + "TopSecret" * 4


def _command(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "apollo_cli.train", *words], capture_output=True, text=True, cwd=folder, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN} | environment,
    )  # fmt: skip


def _assert_no_secret(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for secret in (KEY, TOKEN):
        assert secret not in done.stdout + done.stderr
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_a_run_with_a_key_leaves_no_trace_of_it(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Nobody listens at that address: the recording, the logs of W&B and the summary are all there."""
    words = [*tiny, "tracking=wandb", "tracking.wandb=online", "tracking.timeout=3", "hydra.run.dir=run"]
    done = _command(words, tmp_path, WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stdout
    assert list((tmp_path / "run" / "wandb").rglob("*.wandb"))
    _assert_no_secret(done, tmp_path)


@pytest.mark.faults
def test_an_unavailable_dataset_reveals_no_token(tmp_path: Path) -> None:
    done = _command(["data=hub", "data.path=nobody/nothing", "tracking=local"], tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "nobody/nothing" in done.stderr
    _assert_no_secret(done, tmp_path)


@pytest.mark.faults
def test_the_config_that_is_shown_has_no_key(tmp_path: Path) -> None:
    done = _command(["--cfg", "all"], tmp_path)
    assert done.returncode == 0
    assert "seed: 0" in done.stdout
    _assert_no_secret(done, tmp_path)
