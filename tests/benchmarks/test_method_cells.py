"""Every method on the same work: what the cells share, and their budgets."""

from functools import cache
from pathlib import Path

import pytest

from apollo_cli.config.config import Config
from benchmarks.cells import KINDS
from benchmarks.configs import config_of, plan_of
from benchmarks.method_cells import (
    FROM_SOURCE,
    METHODS,
    MethodCell,
    flops,
    method_cells,
    scratch_steps,
    source_of,
    with_budget,
)
from tests.benchmarks.test_cells import fixed

SOURCE = Path("outputs/source")


FEW = ("scratch", "gstack", "one_layer", "ligo")  # as shipped, with a rate of its own, from a source


@cache
def configs(kind: str, methods: tuple[str, ...]) -> dict[str, Config]:
    """Config of each method with its budget."""
    cells = [with_budget(cell, SOURCE) for cell in method_cells(kind, methods)[: len(methods)]]
    return {cell.method: config_of(cell.words) for cell in cells}


@pytest.mark.parametrize(
    ("kind", "methods"),
    [("gpt", FEW), *(pytest.param(kind, METHODS, marks=pytest.mark.slow) for kind in KINDS)],
)
def test_methods_share_all_that_is_not_the_method(kind: str, methods: tuple[str, ...]) -> None:
    scratch = configs(kind, methods)["scratch"]
    assert scratch.model.hidden == 64
    assert scratch.raw["data"]["tokenizer"] == "bytes"
    for method, config in configs(kind, methods).items():
        assert fixed(config) == fixed(scratch)
        assert config.run.name == method
        assert config.run.seed == scratch.run.seed
        assert config.optim.lr == scratch.optim.lr
        assert (config.optim.schedule, config.optim.knots) == ("wsd", None)


def test_all_methods_have_the_shape_of_the_learning_rate_in_common() -> None:
    assert "optim.schedule=wsd" in MethodCell("gpt", "stackbert", "4e-3", 0).words
    one_layer = MethodCell("gpt", "one_layer", "4e-3", 0).words
    assert "optim.schedule=wsd" in one_layer
    assert not [word for word in one_layer if word.startswith(("optim.warmup", "optim.decay"))]  # its preset's


@pytest.mark.parametrize("methods", [FEW, pytest.param(METHODS, marks=pytest.mark.slow)])
def test_every_method_has_the_flops_of_scratch_with_those_of_its_source(methods: tuple[str, ...]) -> None:
    whole = flops("gpt", "scratch", scratch_steps())
    (ligo,) = method_cells("gpt", ["ligo"])[:1]
    source = plan_of(source_of(ligo).words).flops
    for method, config in configs("gpt", methods).items():
        if method != "scratch":
            assert config.budget.flops == whole - (source if method in FROM_SOURCE else 0)
    assert f"init_from.path={SOURCE}" in with_budget(ligo, SOURCE).words
