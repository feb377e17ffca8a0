"""The model: what may be typed."""

import re
from typing import Any

import pytest

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
    assert "model.hidden=128" in problem
    offer = re.search(r"for example model\.heads=(\d+)", problem)
    assert offer
    assert 128 % int(offer[1]) == 0
