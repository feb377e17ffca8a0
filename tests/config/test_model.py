"""The model: what may be typed."""

import re
from typing import Any

import pytest

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.config.model import with_sizes
from apollo_cli.models.model_config import CompleteP
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


BASE = ("model.parametrization=completep", "model.base_hidden=64", "model.base_layers=3")


@pytest.mark.parametrize(
    ("words", "base"),
    [
        (["model.hidden=128"], CompleteP(64, 3, 32)),  # heads follow from each width: 64 at 128, 32 at 64
        (["model.hidden=128", "model.heads=4"], CompleteP(64, 3, 32)),  # heads of 32, here and there
        (["model.hidden=128", "model.heads=8"], CompleteP(64, 3, 16)),
        (["model.hidden=128", "model.heads=8", "model.base_heads=1"], CompleteP(64, 3, 64)),
        (["model.hidden=64"], CompleteP(64, 3, 32)),
    ],
)
@pytest.mark.parametrize("kind", ["bert model.norm=pre", "gpt", "llama"])
def test_the_base_of_completep(kind: str, words: list[str], base: CompleteP) -> None:
    config = parse(compose_values([*f"model={kind}".split(), *BASE, *words]))
    assert config.model_config.complete_p == base
    assert config.raw["model"]["base_heads"] == 64 // base.head_width
    assert config.model.init_std == round(0.02 * (768 / 64) ** 0.5, 4)  # the base's, whatever the width
    standard = parse(compose_values([*f"model={kind}".split(), *BASE[1:], *words]))
    assert standard.model_config.complete_p is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (BASE[:2], ["model.base_layers=null", "depth", "model.base_layers=12"]),
        (BASE[::2], ["model.base_hidden=null", "width", "model.base_hidden=128"]),
        ((*BASE, "model.heads=1"), ["model.base_heads=null: heads of 128 do not divide model.base_hidden=64"]),
        ((*BASE, "model.base_heads=5"), ["model.base_heads=5 does not divide model.base_hidden=64"]),
        ((*BASE, "model=bert"), ["completep", "model.norm=post has a norm after each sum", "model.norm=pre"]),
        ((*BASE, "model.parametrization=mup"), ["model.parametrization=mup", "standard", "completep"]),
    ],
)
def test_a_base_that_does_not_fit_is_refused(words: tuple[str, ...], says: list[str]) -> None:
    kind = () if "model=bert" in words else ("model=gpt",)
    (problem,) = problems_of(compose_values(["size=nano", *kind, *words]))
    assert all(each in problem for each in says), problem


def test_only_bert_has_a_choice_of_norms(composed: dict[str, Any]) -> None:
    assert parse(composed).model_config.norm == "post"
    assert parse(compose_values(["model.norm=pre"])).model_config.architecture.pre_norm
    refuses(composed, {"model.norm": "middle"}, ["model.norm=middle", "post", "pre"])
    for kind in ("gpt", "llama"):
        (problem,) = problems_of(compose_values([f"model={kind}", "+model.norm=pre"]))
        assert problem.startswith("model.norm")


def test_llamas_heads_have_an_even_width() -> None:
    assert with_sizes({"kind": "llama", "hidden": 70, "heads": None})["heads"] == 1  # 35 would be odd
