"""The number of parameters is tested with the models, in test_transformer.py."""

from typing import NoReturn

import pytest
import torch

from apollo_cli.models import transformer
from apollo_cli.models.build import build, build_on_meta
from apollo_cli.models.model_config import ModelConfig


def test_a_model_without_weights_has_the_shapes_of_one_and_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, torch imports its compiler for that, which takes more than a second."""
    config = ModelConfig("bert", 100, 8, 16, 2, 32, 3)
    weights = build(config, 3).state_dict()

    def fail(*_: object, **__: object) -> NoReturn:
        pytest.fail("it draws weights")

    for name in ("_no_grad_normal_", "_no_grad_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, fail)
    monkeypatch.setattr(transformer, "sinusoids", fail)
    shapes = build_on_meta(config, 3).state_dict()
    assert all(p.is_meta for p in shapes.values())
    assert [(n, p.shape, p.dtype) for n, p in shapes.items()] == [(n, p.shape, p.dtype) for n, p in weights.items()]
