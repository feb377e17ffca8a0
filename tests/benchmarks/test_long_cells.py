"""Cells of the long runs: their names, stages and words."""

import pytest

from benchmarks.cells import SEEDS
from benchmarks.configs import config_of, plan_of
from benchmarks.long_cells import (
    AT_LENGTH,
    DECAY,
    LONGEST,
    METHODS,
    RATES,
    SHALLOWER,
    SHORTER,
    STEPS,
    LongCell,
    long_cells,
)


@pytest.mark.parametrize("kind", RATES)
def test_every_cell_has_a_name_and_a_run_of_its_own_and_scratch_is_first(kind: str) -> None:
    cells = long_cells(kind)
    assert len({cell.name for cell in cells}) == len(cells) == len({cell.words for cell in cells})
    assert cells[:2] == [LongCell(kind, "scratch", RATES[kind], 0, layers) for layers in (None, SHALLOWER)]
    ladder = {(layers, steps) for layers in (None, SHALLOWER) for steps in (None, *SHORTER)}
    longest = {(layers, LONGEST) for layers in (None, SHALLOWER)}
    for seed in SEEDS:  # without it no saving is known
        found = {(c.layers, c.steps) for c in cells if (c.method, c.seed) == ("scratch", seed)}
        assert found == ladder | (longest if seed == 0 else set())
    assert {(cell.method, cell.seed) for cell in cells} == {(name, seed) for name in METHODS for seed in (0, 1, 2)}
    assert [c.method for c in cells if c.steps == LONGEST] == ["scratch", "scratch", AT_LENGTH[kind]]


def test_a_method_grows_in_the_constant_part_of_the_rate_and_shallower_runs_cost_as_much() -> None:
    grown, shallow, scaled = (
        LongCell("gpt", "two_hops_late", "2e-3", 0),
        LongCell("gpt", "scratch", "2e-3", 0, layers=SHALLOWER),
        LongCell("gpt", "apollo_completep", "2e-3", 1),
    )
    plan, config = plan_of(grown.words), config_of(grown.words)
    assert [(stage.stage.layers, stage.stage.end_step) for stage in plan.stages] == [
        (3, 6000),
        (6, 9000),
        (12, STEPS),
    ]
    assert max(config.schedule.ends[:-1]) < 1 - DECAY
    assert config.optim.decay == DECAY
    assert plan_of(shallow.words).flops == pytest.approx(plan.flops, rel=0.01)
    config = config_of(scaled.words)
    assert (config.sampler.kind, config.expander.kind, config.run.seed) == ("lvps", "interpolate", 1)
    assert (config.model.parametrization, config.model.base_hidden, config.model.base_layers) == (
        "completep",
        64,
        3,
    )


def test_completep_needs_a_bert_whose_sums_are_not_normalised() -> None:
    norms = {name: "model.norm=pre" in LongCell("bert", name, "1e-3", 0).words for name in METHODS}
    assert norms == {name: name.endswith("completep") for name in METHODS}
    assert config_of(LongCell("bert", "scratch_completep", "1e-3", 0).words).model.complete_p


@pytest.mark.slow
@pytest.mark.parametrize("kind", RATES)
def test_every_cell_has_a_config(kind: str) -> None:
    for cell in long_cells(kind):
        config = config_of(cell.words)
        assert (config.model.kind, config.budget.steps) == (kind, cell.steps or STEPS)
        assert config.schedule.layers[-1] == config.model.layers == (cell.layers or 12)
