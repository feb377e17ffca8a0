"""How the weights begin."""

import math

import pytest
import torch

from apollo_cli.models.build import build
from apollo_cli.models.model_config import Initialization, Kind, ModelConfig
from apollo_cli.models.transformer import LanguageModel, sinusoids

each_kind = pytest.mark.parametrize("kind", ["bert", "gpt"])


def make(kind: Kind, init: Initialization, stored: int = 3, target: int = 12) -> LanguageModel:
    torch.manual_seed(0)
    model_config = ModelConfig(
        kind, vocabulary=50, positions=64, hidden=64, heads=4, ffn=256, layers=target, init=init
    )
    return build(model_config, stored)


def assert_std(weight: torch.Tensor, std: float) -> None:
    """Within four standard errors."""
    assert weight.std().item() == pytest.approx(std, rel=4 / (2 * weight.numel()) ** 0.5)


@each_kind
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_all_weights_have_the_stated_deviation(kind: Kind, std: float) -> None:
    model = make(kind, Initialization(std, positions_std=std))
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight.numel() > 1000]
    assert len(matrices) >= 2 + 3 * 4
    for weight in matrices:
        assert_std(weight, std)


@each_kind
@pytest.mark.parametrize("target", [2, 12, 48])
@pytest.mark.parametrize("stored", [1, 3])
def test_projections_into_the_residual_stream_begin_smaller_by_the_target_depth(
    kind: Kind, target: int, stored: int
) -> None:
    for block in make(kind, Initialization(residual="by_depth"), stored, target).blocks:
        for scaled in ("attention_out.weight", "ffn_out.weight"):
            assert_std(block.get_parameter(scaled), 0.02 / (2 * target) ** 0.5)
        for plain in ("qkv.weight", "ffn_in.weight"):
            assert_std(block.get_parameter(plain), 0.02)


@each_kind
def test_sinusoidal_positions_have_the_stated_strength_and_are_trained(kind: Kind) -> None:
    positions = make(kind, Initialization(0.02, "sinusoidal", 0.05)).positions.weight
    assert positions.square().mean().sqrt().item() == pytest.approx(0.05)
    assert positions.requires_grad
    assert torch.equal(positions, make(kind, Initialization(0.02, "sinusoidal", 0.05), stored=1).positions.weight)


def test_sinusoids_are_those_of_the_paper() -> None:
    waves = sinusoids(50, 8)
    assert waves.shape == (50, 8)
    for position in (0, 1, 7, 49):
        for pair in range(4):
            angle = position / 10_000 ** (2 * pair / 8)
            expected = (math.sin(angle), math.cos(angle))
            assert waves[position, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected, abs=1e-5)
    assert sinusoids(50, 7).shape == (50, 7)


def test_a_step_along_the_row_is_one_rotation_everywhere() -> None:
    waves = sinusoids(60, 16)
    likeness = waves @ waves.T
    for step in (1, 5, 20):
        along = likeness.diagonal(step)
        assert torch.allclose(along, along[0].expand_as(along), atol=1e-4)
