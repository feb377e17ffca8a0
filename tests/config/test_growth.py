"""Samplers, expanders, schedules: what may be typed, and what goes with what."""

import re
from typing import Any

import pytest

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.errors import ConfigError
from apollo_cli.growth.samplers import LVPS, DepthSampler
from tests.helpers.config_values import problems_of, refuses


@pytest.fixture(scope="session")
def composed() -> dict[str, Any]:
    """Four stages of 12 layers: 1-3-6-12."""
    return compose_values(["schedule=apollo"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sampler.k": -1}, ["sampler.k=-1", "greater than or equal to 0"]),
        ({"sampler.lower": 0}, ["sampler.lower=0", "0.01"]),
        ({"expander.mode": "near"}, ["expander.mode=near", "nearest", "linear"]),
        ({"expander.moments": "drop"}, ["expander.moments=drop", "keep", "map", "reset"]),
        ({"schedule.layers": [6, 3, 1, 12]}, ["schedule.layers", "[6, 3, 1, 12]", "never fall"]),
        ({"schedule.layers": [-1, 3, 6, 12]}, ["schedule.layers", "[-1, 3, 6, 12]", "0 or more"]),
        (
            {"schedule.trained": ["all", "new"]},
            ["schedule.trained has 2", "schedule.layers 4", "one for each stage"],
        ),
        ({"schedule.trained": ["all", "new", "new", "none"]}, ["schedule.trained", "'all' or 'new'"]),
        (
            {"schedule.trained": ["all", "new", "new", "all"]},
            ["expander=interpolate", "between the old ones", "append"],
        ),
        (
            {"sampler": {"kind": "subset", "sizes": [6, 8]}},
            ["sampler.sizes has 2 values and schedule.layers 4: give one for each stage"],
        ),
        (
            {"sampler": {"kind": "subset", "sizes": [2, 2, 8, 10]}},
            ["sampler.sizes=[2, 2, 8, 10]", "from 2, the first and the last", "[1, 3, 6, 12]"],
        ),
        (
            {"sampler": {"kind": "prefixes", "multiple": 3, "trained": 2, "stages": 1}},
            ["sampler.trained=2", "sampler.multiple=3", "never train"],
        ),
        (
            {
                "sampler": {"kind": "prefixes", "multiple": 3, "trained": 3, "stages": 1},
                "expander": {"kind": "append", "moments": "keep"},
                "schedule.trained": ["all", "new", "new", "all"],
            },
            ["sampler=prefixes chooses the layers itself", "shallow"],
        ),
        (
            {"expander": {"kind": "msg", "moments": "keep", "gate_duration": 0.1}},
            ["expander.gate_duration=0.1", "a stage that adds layers is shorter", "longer"],
        ),
        ({"schedule.widths": [0.5, 1]}, ["schedule.widths has 2 values and schedule.layers 4", "for each stage"]),
        ({"schedule.widths": [0.5, 1, 0.5, 1]}, ["schedule.widths", "[0.5, 1.0, 0.5, 1.0]", "[0.5,0.5,0.5,1]"]),
        ({"schedule.widths": [0.5, 0.5, 1, "whole"]}, ["schedule.widths", "whole", "number"]),
        (
            {"schedule.widths": [0.5, 0.5, 0.5, 1]},
            ["expander.moments=keep", "schedule.widths", "type expander.moments=reset"],
        ),
        (
            {"schedule.widths": [0.25, 0.5, 0.5, 1], "expander.moments": "reset"},
            ["schedule.widths=[0.25, 0.5, 0.5, 1.0]", "0.25 of model.heads=2 is 0.5", "whole numbers"],
        ),
        (
            {
                **{"model.hidden": 129, "model.heads": 3, "model.ffn": 513},
                **{"schedule.widths": [0.3333, 0.6667, 0.6667, 1]},
                "expander": {"kind": "lemon", "moments": "reset"},
            },
            ["schedule.widths", "hidden grows as [43, 86, 86, 129]", "LEMON", "expander=bert2bert"],
        ),
        ({"schedule.layers": [1, 2, 3, 4]}, ["schedule.layers=[1, 2, 3, 4]", "model.layers is 12"]),
        ({"schedule.layers": [1, 3, 12]}, ["schedule.ends has 4", "schedule.layers 3", "one for each stage"]),
        ({"schedule.layers": [1, "L/3", "half", 12]}, ["schedule.layers=half", "integer"]),
        ({"init_from.flops": -1}, ["init_from.flops=-1", "greater than or equal to 0"]),
        ({"schedule.layers": "all"}, ["schedule.layers=all"]),
        ({"schedule.ends": [0.1, 0.2, 0.3, 0.4]}, ["schedule.ends", "[0.1, 0.2, 0.3, 0.4]", "[0.25,0.5,0.75,1]"]),
        ({"schedule.ends": [0.3, 0.2, 0.5, 1]}, ["schedule.ends", "[0.3, 0.2, 0.5, 1.0]", "rise to 1"]),
        ({"schedule.ends": [0, 0.2, 0.5, 1]}, ["schedule.ends", "[0.0, 0.2, 0.5, 1.0]", "rise to 1"]),
        ({"schedule.ends": [0.1, 0.2, 1, 2]}, ["schedule.ends", "rise to 1"]),
    ],
)
def test_an_invalid_value_is_refused_with_key_value_and_remedy(
    composed: dict[str, Any], changes: dict[str, Any], says: list[str]
) -> None:
    refuses(composed, changes, says)


def test_stages_are_parts_of_the_depth() -> None:
    config = parse(compose_values(["size=large", "schedule=apollo"]))
    assert config.schedule.layers == (1, 6, 12, 24)
    assert config.raw["schedule"]["layers"] == [1, 6, 12, 24]
    typed = compose_values(["size=large", "schedule.layers=[1,5L/8,L]", "schedule.ends=[0.1,0.2,1]"])
    assert parse(typed).schedule.layers == (1, 15, 24)


@pytest.mark.parametrize("sampler", ["lvps", "uniform", "edge", "full", "shallow"])
def test_every_sampler_can_be_built(sampler: str) -> None:
    built = parse(compose_values([f"sampler={sampler}"])).sampler.build()
    assert isinstance(built, DepthSampler)
    assert sum(built.probabilities(3, 12).values()) == pytest.approx(1)


def test_a_sampler_that_is_no_distribution_in_a_stage_is_refused(
    composed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sums_to_a_half = {1: {1: 1.0}, 3: {3: 0.5}}
    monkeypatch.setattr(LVPS, "probabilities", lambda self, layers, target: sums_to_a_half[layers])
    (problem,) = problems_of(composed)
    assert (
        "sampler=lvps: with 3 stored layers of 12, the probabilities sum to 0.5, not 1; change sampler.k="
        in problem
    )


def test_an_unknown_kind_is_refused_with_all_kinds() -> None:
    values = compose_values([]) | {"sampler": {"kind": "foo"}}
    with pytest.raises(ConfigError, match=r"sampler\.kind=foo: should be one of lvps, edge, .*sampler=NAME"):
        parse(values)


@pytest.mark.parametrize(
    ("target", "example"), [(24, r"\[2,6,12,24\]"), (2, r"\[1,2\]"), (1, r"\[1\]"), (13, r"\[1,3,6,13\]")]
)
def test_stages_that_end_at_another_depth_are_refused_with_a_valid_example(target: int, example: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(compose_values(["schedule=apollo", f"model.layers={target}", "schedule.layers=[1,3,6,12]"]))
    assert re.search(rf"'schedule\.layers={example}'", str(caught.value).replace(", ", ",")), str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget.steps=null", "budget.seconds=60"], "budget.seconds=60: .* type budget.steps, budget.tokens or"),
        (
            ["budget.steps=null", "budget.flops=1e12", "optim.schedule=cosine"],
            "optim.schedule=cosine: .* type optim.schedule=wsd or constant, or budget.steps",
        ),
        (
            ["budget.steps=null", "budget.flops=1e12", "optim.decay=0.3"],
            "optim.decay=0.3: .* as late as 0.8 of the run.* type optim.decay=0.2, or budget.steps",
        ),
        (["schedule.layers=[L]", "schedule.ends=[1]"], "schedule.when=plateau: there is one stage"),
        (["expander=msg", "sampler=shallow"], "expander=msg: its new layers enter over many steps"),
        (
            ["budget.steps=null", "budget.flops=1e12", "optim.schedule=constant", "data=c4"],
            "data.streaming=true: with schedule.when=plateau and budget.flops .* type budget.steps",
        ),
        (["schedule.window=0"], "schedule.window=0: should be greater than 0"),
        (["schedule.threshold=1"], "schedule.threshold=1: should be less than 1"),
    ],
)
def test_a_plateau_is_refused_where_it_leaves_the_run_undefined(words: list[str], said: str) -> None:
    (problem,) = problems_of(compose_values(["schedule=plateau", *words]))
    assert re.search(said, problem), problem


@pytest.mark.parametrize(
    "words",
    [
        ["optim.schedule=cosine"],
        ["budget.steps=null", "budget.flops=1e12", "optim.schedule=constant"],
        ["budget.steps=null", "budget.flops=1e12", "optim.decay=0.2"],
    ],
)
def test_a_plateau_goes_with_a_rate_that_is_known_before(words: list[str]) -> None:
    assert parse(compose_values(["schedule=plateau", *words])).schedule.when == "plateau"


@pytest.mark.parametrize("name", ["bert2bert", "lemon", "ligo"])
def test_a_method_for_smaller_models_requires_init_from(name: str) -> None:
    (problem,) = problems_of(compose_values([f"experiment={name}"]))
    assert f"expander={name} grows a smaller model: type init_from.path=FOLDER" in problem


@pytest.mark.parametrize(
    "words", [["schedule=apollo"], ["schedule=wider"], ["schedule=wider", "schedule.layers=[L,L]"]]
)
def test_a_learned_map_needs_no_source_where_layers_or_width_grow(words: list[str]) -> None:
    assert parse(compose_values(["experiment=ligo", *words])).init_from.path is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["schedule=apollo", "expander.moments=keep"],
            "expander.moments=keep: AdamW starts afresh where a map is learned",
        ),
        (
            ["schedule=scratch"],
            r"init_from.path=FOLDER, .*, or let schedule.layers or schedule.widths grow within",
        ),
        (
            ["schedule=apollo", "distributed=fsdp"],
            "ligo is learned on whole weights; take distributed=ddp",
        ),
        (["schedule=mslt"], "expander=ligo puts new layers between the old ones"),
    ],
)
def test_an_impossible_learned_map_is_refused(words: list[str], said: str) -> None:
    (problem,) = problems_of(compose_values(["experiment=ligo", *words]))
    assert re.search(said, problem)


ZERO = ("schedule.layers=[0,12]", "schedule.ends=[0.2,1]")


def test_no_layers_at_first_need_fresh_ones_and_no_sharing() -> None:
    assert parse(compose_values([*ZERO, "sampler=shallow", "expander=fresh"])).schedule.layers == (0, 12)
    sampler, expander = reversed(problems_of(compose_values([*ZERO])))
    assert sampler == (
        "schedule.layers=[0, 12]: stage 1 stores no layer, so sampler=lvps has none to share; type sampler=shallow"
    )
    assert expander == (
        "schedule.layers=[0, 12]: the first layers have none to be copied from by expander=interpolate; type "
        "expander=fresh"
    )


@pytest.mark.parametrize("sampler", ["uniform", "edge", "full", "subset", "prefixes"])
def test_samplers_that_share_or_choose_layers_are_refused_where_there_are_none(sampler: str) -> None:
    sizes = ["sampler.sizes=[1,12]"] if sampler == "subset" else []
    (problem,) = problems_of(compose_values([*ZERO, "expander=fresh", f"sampler={sampler}", *sizes]))
    assert f"sampler={sampler} has none to share; type sampler=shallow" in problem


@pytest.mark.parametrize("expander", ["stack", "append", "middle", "boundary", "net2net", "split", "msg"])
def test_expanders_that_copy_are_refused_where_there_is_nothing(expander: str) -> None:
    (problem,) = problems_of(compose_values([*ZERO, "sampler=shallow", f"expander={expander}"]))
    assert problem.endswith(f"by expander={expander}; type expander=fresh")


def test_a_stage_without_layers_has_the_whole_width_and_nothing_below_to_freeze() -> None:
    words = [*ZERO, "sampler=shallow", "expander=fresh"]
    (problem,) = problems_of(compose_values([*words, "schedule.widths=[0.5,1]"]))
    assert "a stage without layers has the whole width" in problem
    (problem,) = problems_of(compose_values([*words, "schedule.trained=[all,new]"]))
    assert "before stage 2 there is no layer; make it all there" in problem


@pytest.mark.parametrize("name", ["bert2bert", "lemon"])
def test_a_run_that_grows_in_width_needs_no_source(name: str) -> None:
    config = parse(compose_values([f"expander={name}", "schedule=wider"]))
    assert config.model_config.narrowed(config.schedule.shares[0]).hidden == config.model.hidden // 2


def test_a_narrower_stage_is_drawn_as_a_model_of_its_width() -> None:
    """0.02 sqrt(768 / 32) = 0.098, and twice that for positions; a typed deviation and that of CompleteP stay."""
    words = ["model=gpt", "model.hidden=64", "expander=bert2bert", "schedule=wider", "model.heads=2"]
    narrow = parse(compose_values(words)).model_config.narrowed(0.5).init
    assert (narrow.std, narrow.positions_std) == (0.098, 0.196)
    assert parse(compose_values(words)).model_config.init.std == 0.0693
    typed = parse(compose_values([*words, "model.init_std=0.05"])).model_config
    assert typed.narrowed(0.5).init == typed.init
    completep = ["model.parametrization=completep", "model.base_hidden=64", "model.base_layers=2"]
    scaled = parse(compose_values([*words, *completep])).model_config
    assert scaled.narrowed(0.5).init == scaled.init


def test_the_first_stage_of_a_run_from_a_source_trains_whole() -> None:
    words = ["init_from.path=there", "expander=append", "sampler=shallow", "schedule.layers=[12,12]"]
    (problem,) = problems_of(compose_values([*words, "schedule.ends=[0.5,1]", "schedule.trained=[new,all]"]))
    assert "begins with the layers of init_from, and all of its layers train; type all first" in problem
