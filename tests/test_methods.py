"""The presets of the methods are what was published, or measured to save most."""

from itertools import pairwise

import pytest

from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.growth.expanders import Bert2Bert, Ligo
from apollo_cli.growth.plan import Plan
from apollo_cli.growth.samplers import Prefixes
from apollo_cli.training.device import choose
from apollo_cli.training.optimizer import learning_rate
from apollo_cli.training.planning import make_plan

STAGES = {  # layers of 12, and where they end
    "stackbert": ((3, 6, 12), (0.125, 0.175, 1)),
    "net2net_depth": ((3, 6, 12), (0.125, 0.175, 1)),
    "gstack": ((3, 12), (0.1, 1)),
    "midas": ((3, 6, 9, 12), (0.1, 0.3, 0.6, 1)),
    "lidas": ((3, 6, 9, 12), (0.1, 0.3, 0.6, 1)),
    "one_layer": ((1, 12), (0.8, 1)),
    "late_zero_init": ((3, 12), (0.85, 1)),
    "late_zero_init_gpt": ((3, 6, 12), (0.6, 0.92, 1)),
    "mslt": ((3, 6, 9, 12, 12), (0.2, 0.4, 0.6, 0.8, 1)),
    "raptr": ((12, 12, 12, 12), (0.25, 0.5, 0.75, 1)),
    "net2net_width": ((12, 12), (0.5, 1)),
    "msg": ((3, 6, 12), (0.125, 0.175, 1)),
}
ADDED = {  # growth maps of the last growth
    "stackbert": [*range(6)] * 2,
    "net2net_depth": [i // 2 for i in range(12)],
    "gstack": [0, 1, 2] * 4,
    "midas": [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8],
    "lidas": [0, 1, 2, 3, 3, 4, 5, 4, 5, 6, 7, 8],
    "one_layer": [0] * 12,
    "late_zero_init": [i // 4 for i in range(12)],
    "late_zero_init_gpt": [i // 2 for i in range(12)],
    "mslt": None,
    "raptr": None,
    "net2net_width": [*range(12)],
    "msg": [*range(6)] * 2,
}
AT_GROWTH = {  # moments, and the learning rate
    "stackbert": ("reset", "continue"),
    "net2net_depth": ("map", "continue"),
    "gstack": ("reset", "restart"),
    "midas": ("map", "continue"),
    "lidas": ("map", "continue"),
    "one_layer": ("map", "continue"),
    "late_zero_init": ("new", "continue"),
    "late_zero_init_gpt": ("new", "continue"),
    "mslt": ("keep", "continue"),
    "raptr": ("keep", "continue"),
    "net2net_width": ("reset", "continue"),
    "msg": ("keep", "rewind"),
}


FROM_SOURCE = {
    "bert2bert": ((12, 12), (0.125, 1)),
    "ligo": ((12,), (1,)),
    "lemon": ((12,), (1,)),
}


def planned(*words: str) -> tuple[Config, Plan]:
    config = parse(compose_values([*words, "device=cpu", "budget.steps=1000"]))
    return config, make_plan(config, choose(config.run))


@pytest.mark.parametrize("model", ["bert", "gpt"])
@pytest.mark.parametrize("name", STAGES)
def test_stages_are_the_published_ones(name: str, model: str) -> None:
    config, plan = planned(f"experiment={name}", f"model={model}")
    assert (tuple(s.stage.layers for s in plan.stages), config.schedule.ends) == STAGES[name]
    assert [s.stage.end_step for s in plan.stages] == [round(1000 * end) for end in config.schedule.ends]
    assert plan.as_dict()["stages"][-1]["growth_map"] == ADDED[name]
    assert (config.expander.moments, config.optim.at_growth) == AT_GROWTH[name]
    assert config.model.kind == model


@pytest.mark.parametrize("name", STAGES)
def test_a_preset_fits_other_depths(name: str) -> None:
    config, plan = planned(f"experiment={name}", "size=large")
    assert config.model.layers == 24
    shares = [layers / config.model.layers for layers in config.schedule.layers]
    published = [layers / 12 for layers in STAGES[name][0]]
    assert all(a == b for a, b, layers in zip(shares, published, config.schedule.layers, strict=True) if layers > 1)
    assert plan.flops < plan.scratch_flops


def test_the_stages_of_midas_and_lidas_add_a_block_of_a_quarter() -> None:
    for name in ("midas", "lidas"):
        config, _ = planned(f"experiment={name}", "size=large")
        assert {b - a for a, b in pairwise(config.schedule.layers)} == {6}


def test_the_rate_of_stackbert_is_the_published_one() -> None:
    """8e-4 after 10K of 400K steps, 5.5e-4 at 50K, 3e-4 at 70K, where it grows, and then down to 0."""
    config, plan = planned("experiment=stackbert")
    assert plan.schedule.growth_steps == (125, 175)
    rates = [learning_rate(config.optim, step, 1000, plan.schedule.growth_steps) for step in (25, 125, 175, 999)]
    assert rates == pytest.approx([8e-4, 5.5e-4, 3e-4, 3e-4 / 825])


def test_mslt_trains_what_it_adds_and_at_last_all() -> None:
    _, plan = planned("experiment=mslt")
    assert [stage.stage.frozen for stage in plan.stages] == [0, 3, 6, 9, 0]
    maps = [stage["growth_map"] for stage in plan.as_dict()["stages"]]
    assert maps == [None, [0, 1, 2, 0, 1, 2], [*range(6), 3, 4, 5], [*range(9), 6, 7, 8], None]


def test_raptr_runs_more_and_more_layers() -> None:
    _, plan = planned("experiment=raptr")
    assert [stage.depth_counts for stage in plan.stages] == [{6: 250}, {8: 250}, {10: 250}, {12: 250}]


def test_net2net_trains_half_the_width_for_half_of_the_steps() -> None:
    config, plan = planned("experiment=net2net_width")
    assert [(stage.stage.width, stage.stage.steps) for stage in plan.stages] == [(0.5, 500), (1, 500)]
    assert config.expander.build() == Bert2Bert("fpi")


def test_layers_enter_msg_over_5000_of_400000_steps() -> None:
    config = parse(compose_values(["experiment=msg", "device=cpu", "budget.steps=400000"]))
    plan = make_plan(config, choose(config.run))
    assert [plan.gates(70_000 + k).get(11, 1) for k in (0, 2_500, 5_000)] == [0, 0.5, 1]


@pytest.mark.parametrize("name", FROM_SOURCE)
def test_methods_that_begin_from_a_smaller_model_have_its_whole_depth_at_once(name: str) -> None:
    config = parse(compose_values([f"experiment={name}", "init_from.path=somewhere"]))
    assert (config.schedule.layers, config.schedule.ends) == FROM_SOURCE[name]
    assert config.expander.moments == "reset"


def test_bert2bert_widens_by_aki_and_begins_with_prefixes() -> None:
    config = parse(compose_values(["experiment=bert2bert", "init_from.path=somewhere"]))
    assert config.expander.build() == Bert2Bert("aki")
    assert config.sampler.build() == Prefixes(multiple=3, trained=3, stages=1)


def test_the_map_of_ligo_is_learned_in_a_hundred_steps_with_a_rate_of_its_own() -> None:
    config = parse(compose_values(["experiment=ligo", "init_from.path=somewhere"]))
    assert config.expander.build() == Ligo(steps=100, lr=1e-3)


def test_one_layer_grows_under_a_rate_that_stays_until_the_last_tenth() -> None:
    optim = planned("experiment=one_layer")[0].optim
    assert (optim.schedule, optim.warmup, optim.decay) == ("wsd", 0.02, 0.1)
