"""Cells of the mixing bench: their names, factors, stages and words."""

from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.configs import config_of, plan_of
from benchmarks.mixing_cells import (
    BASE,
    DEEP,
    KINDS,
    OPERATORS,
    PAIRS,
    SHALLOW,
    MixingCell,
    by_setting,
    chain,
    growing,
    mixing_cells,
    reference,
)

RATE = {"lr_scale", "lr_steps"}  # one factor: the rate of the new layers


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_has_a_name_and_a_run_of_its_own(kind: str) -> None:
    cells = mixing_cells(kind)
    assert len({cell.name for cell in cells}) == len(cells) == len({cell.words for cell in cells})
    assert all(cell.name.startswith(f"{kind}_") for cell in cells)
    assert len([cell for cell in cells if not cell.is_reference]) == {"bert": 38, "gpt": 42, "llama": 40}[kind]


def test_one_factor_differs_from_the_base_point_and_in_other_settings_the_operator_alone() -> None:
    base, *cells = growing("gpt", MixingCell("gpt", BASE, "2e-3", 0).lengths)
    pairs = [cell for cell in cells if cell.method != BASE and not cell.is_usual]
    assert [(cell.method, cell.factors) for cell in pairs] == list(PAIRS["gpt"])
    cells = [cell for cell in cells if cell not in pairs]
    assert (base.method, base.factors) == (BASE, {})
    for cell in cells:
        differing = set(cell.factors) | ({"operator"} if cell.method != BASE else set())
        of_setting = differing & {"age", "optim", "parametrization"}
        assert len(of_setting) <= 1
        of_growth = differing - of_setting
        assert len(of_growth) <= 1 or of_growth == RATE, cell.name
        assert not of_setting or of_growth <= {"operator"}, cell.name
    assert {cell.method for cell in [base, *cells]} == set(OPERATORS)
    assert {cell.moments for cell in cells} == {"new", "keep", "map", "reset"}


def test_each_setting_comes_after_its_references_and_these_after_their_sources() -> None:
    cells = mixing_cells("bert")
    for i, cell in enumerate(cells):
        assert cell.source is None or cell.source in cells[:i]
    for group in by_setting(cells).values():
        for method in (SHALLOW, DEEP):
            assert cells.index(reference(group[0], method)) < cells.index(group[0])


def test_the_parts_of_a_reference_follow_each_other_and_reach_as_far_as_the_cells() -> None:
    last = MixingCell("gpt", SHALLOW, "2e-3", 0, age=9000)
    parts = chain(last)
    assert [(part.first_step, part.stages) for part in parts] == [
        (0, ((3, 2500),)),
        (2500, ((3, 2000),)),
        (4500, ((3, 6000),)),
    ]
    for part, following in pairwise(parts):
        assert part.first_step + part.stages[0][1] == following.first_step
    for part in parts:
        cell = replace(part, method="stack")
        assert cell.source == part
        assert cell.first_step + 125 == cell.age
        saved = int(next(word for word in part.words if word.startswith("checkpoint.every=")).partition("=")[2])
        assert part.first_step + saved == cell.first_step


def test_a_cell_grows_within_its_run_and_trains_on_at_a_constant_rate() -> None:
    one = MixingCell("gpt", "split", "2e-3", 0)
    two = MixingCell("gpt", "two_hops", "2e-3", 0)
    assert (one.last_growth, two.last_growth) == (0, 375)
    stages = [(part.stage.layers, part.stage.first_step, part.stage.end_step) for part in plan_of(two.words).stages]
    assert stages == [(3, 0, 125), (6, 125, 500), (12, 500, 1625)]
    config = config_of(one.words)
    assert (config.optim.schedule, config.optim.warmup, config.optim.lr) == ("constant", 0, 2e-3)
    assert (config.expander.kind, config.expander.moments, config.sampler.kind) == ("split", "new", "shallow")
    assert (config.model.hidden, config.raw["data"]["tokenizer"]) == (64, "bytes")
    scaled = config_of(replace(one, parametrization="completep").words).model
    assert (scaled.base_hidden, scaled.base_layers, scaled.layers) == (64, 3, 12)
    first = config_of(chain(reference(one, DEEP))[0].words)
    assert first.optim.warmup * 2500 == 300
    assert first.schedule.layers == (12,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_has_a_config(kind: str) -> None:
    for cell in mixing_cells(kind):
        config = config_of(cell.words)
        assert (config.run.name, config.model.kind) == (cell.name, kind)
        assert list(config.schedule.layers) == [layers for layers, _ in cell.stages]
