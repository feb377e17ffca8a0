"""profile=true leaves a table and a Chrome trace."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apollo_cli.config.config import Config
from apollo_cli.training.profiling import profiled
from apollo_cli.training.run import train


def test_a_profile_has_the_operators_of_a_few_steps(config: Callable[..., Config], tmp_path: Path) -> None:
    train(config("profile=true"), tmp_path / "run")
    table = (tmp_path / "run" / "profile.txt").read_text(encoding="utf-8")
    assert "aten::" in table
    trace = json.loads((tmp_path / "run" / "profile.json").read_text(encoding="utf-8"))
    steps = {event["name"] for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep")}
    assert steps == {f"ProfilerStep#{number}" for number in range(3, 8)}


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_run_that_is_too_short_for_a_profile_says_so(steps: int, tmp_path: Path) -> None:
    said: list[str] = []
    with profiled(torch.device("cpu"), tmp_path, said.append) as after_step:
        for _ in range(steps):
            after_step()
    assert said == ["profile=true: no profile, for the run ended before its step 4"]
    assert not list(tmp_path.iterdir())
