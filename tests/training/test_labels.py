"""Tests of the labels by which trackers group runs."""

import pytest
from omegaconf import OmegaConf

from apollo_cli.config.hydra_syntax import compose_values, job_config
from apollo_cli.training.device import choose
from apollo_cli.training.labels import labels, tags
from apollo_cli.training.planning import make_plan


@pytest.mark.parametrize(
    ("words", "experiment", "expected", "expected_tags"),
    [
        (
            ["experiment=scratch", "size=nano", "model=gpt", "budget.steps=9"],
            "scratch",
            {"scratch": True, "size": "nano", "method": "scratch: scratch"},
            ("gpt", "full", "interpolate", "layers=12", "nano", "baseline"),
        ),
        (
            ["schedule=scratch", "sampler=subset", "sampler.sizes=[4]", "size=nano", "budget.steps=9"],
            None,
            {"scratch": False, "method": "apollo: subset expander=interpolate layers=12"},
            ("bert", "subset", "interpolate", "layers=12", "nano"),
        ),
        (
            ["model.hidden=32", "budget.steps=9"],
            None,
            {"scratch": False, "size": "12x32"},
            ("bert", "lvps", "interpolate", "layers=3-6-12", "12x32"),
        ),
    ],
)
def test_labels(
    words: list[str], experiment: str | None, expected: dict[str, object], expected_tags: tuple[str, ...]
) -> None:
    config = job_config(OmegaConf.create(compose_values(words)), words)
    device = choose(config.run)
    found = labels(config, make_plan(config, device), device)
    assert {key: found[key] for key in expected} == expected
    assert config.raw.get("experiment") == experiment  # a key of the config that W&B shows
    assert found["target_layers"] == 12
    assert found["made_with"]["threads"] >= 1
    assert tags(config) == expected_tags
