"""The model: what may be typed."""

import re
from typing import Any

import pytest

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.config.model import with_sizes
from tests.helpers.config_values import changed, problems_of, refuses


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.dropout": 1}, ["model.dropout=1", "less than 1"]),
        ({"model.layers": 0}, ["model.layers=0", "greater than 0"]),
        ({"model.hidden": "wide"}, ["model.hidden=wide", "integer"]),
        ({"model.mask_fraction": 0}, ["model.mask_fraction=0", "greater than 0"]),
    ],
)
def test_an_invalid_value_is_refused_with_key_value_and_remedy(
    composed: dict[str, Any], changes: dict[str, Any], says: list[str]
) -> None:
    refuses(composed, changes, says)


@pytest.mark.parametrize("heads", [3, 5, 7, 100, 129])
def test_heads_that_do_not_divide_the_width_are_refused(composed: dict[str, Any], heads: int) -> None:
    (problem,) = problems_of(changed(composed, {"model.heads": heads}))
    assert f"model.heads={heads}" in problem
    assert "model.hidden=64" in problem
    offer = re.search(r"for example model\.heads=(\d+)", problem)
    assert offer
    assert 128 % int(offer[1]) == 0


@pytest.mark.parametrize(
    ("hidden", "heads"),
    [(64, 2), (128, 2), (256, 4), (768, 12), (1024, 16), (96, 3), (32, 1), (16, 1), (100, 2), (7, 1)],
)
def test_heads_and_inner_width_follow_the_width_unless_typed(
    composed: dict[str, Any], hidden: int, heads: int
) -> None:
    """Heads of 64, else of 32, else of the most between that divides the width: 100 is two heads of 50."""
    sizes = parse(changed(composed, {"model.hidden": hidden, "model.heads": None, "model.ffn": None})).model
    assert (sizes.heads, sizes.ffn) == (heads, 4 * hidden)
    typed = parse(changed(composed, {"model.hidden": hidden, "model.heads": 1, "model.ffn": 50}))
    assert (typed.model.heads, typed.model.ffn) == (1, 50)
    assert typed.raw["model"]["ffn"] == 50


@pytest.mark.parametrize("size", ["nano", "mini", "small", "base", "large"])
def test_every_size_has_heads_of_64_and_an_inner_width_of_4(size: str) -> None:
    model = parse(compose_values([f"size={size}"])).model
    assert (model.hidden // model.heads, model.ffn // model.hidden) == (64, 4)


@pytest.mark.parametrize(("hidden", "ffn"), [(64, 192), (128, 320), (256, 704), (768, 2048), (8, 64)])
def test_llamas_inner_width_is_eight_thirds_of_the_width_to_a_multiple_of_64(hidden: int, ffn: int) -> None:
    assert with_sizes({"kind": "llama", "hidden": hidden, "heads": None, "ffn": None})["ffn"] == ffn


def test_llamas_heads_have_an_even_width() -> None:
    assert with_sizes({"kind": "llama", "hidden": 70, "heads": None})["heads"] == 1  # 35 would be odd
