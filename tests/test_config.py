import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from apollo_cli.config import Config, parse
from apollo_cli.errors import ApolloError, ConfigError
from apollo_cli.growth.samplers import DepthSampler
from apollo_cli.overrides import compose_values

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/[!_]*.yaml"))

FROM = "expander.source=a_smaller_model"
NEEDS = {  # one goes with the other
    "sampler=subset": ["schedule=equal"],
    "schedule=mslt": ["expander=append"],
    "schedule=wider": ["expander.moments=reset"],
    **{f"expander={name}": [FROM] for name in ("bert2bert", "lemon")},
    **{f"experiment={name}": [FROM] for name in ("bert2bert", "ligo", "lemon")},
}

CONTRACT = [
    *("seed", "name", "device", "precision", "compile", "plan", "resume"),
    *("budget.steps", "budget.tokens", "budget.flops", "budget.seconds"),
    *("batch.size", "batch.micro"),
    *("model.layers", "model.hidden", "model.heads", "model.ffn", "model.dropout"),
    "sampler.k",
    *("expander.mode", "expander.moments"),
    *("schedule.layers", "schedule.ends"),
    *("data.seq_len", "data.vocab_size", "data.tokenizer", "data.cache_dir", "data.inspect"),
    *("data.validation", "data.validation_seed"),
    *("optim.lr", "optim.schedule", "optim.knots", "optim.warmup"),
    *("optim.weight_decay", "optim.clip", "optim.at_growth"),
    *("eval.every", "eval.rows"),
    *("checkpoint.every", "checkpoint.keep"),
    "log.every",
    *("tracking.wandb", "tracking.project"),
]


@pytest.fixture(scope="session")
def composed() -> dict[str, Any]:
    """What `apollo-train` alone composes; not to be changed."""
    return compose_values([])


def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The same with other values at dotted keys."""
    result = deepcopy(values)
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = result
        for name in path:
            inner = inner[name]
        inner[last] = value
    return result


def problems_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(values)
    assert all(problem in str(error.value) for problem in error.value.problems)
    return error.value.problems


@pytest.mark.parametrize(
    "words",
    [
        ("model=bert", "model.dropout=0.1", "budget.steps=null", "budget.seconds=3"),
        ("schedule=scratch", "model.layers=6", "schedule.layers=[6]", "schedule.ends=[1]"),
        ("sampler=edge", "sampler.lower=0.3", "data.text_field='a b'", "seed=3"),
    ],
)
def test_a_config_that_is_filled_in_is_the_one_that_hydra_composes(
    words: tuple[str, ...], config: Callable[..., Config], tiny: tuple[str, ...]
) -> None:
    assert config(*words) == parse(compose_values([*tiny, *words]))


def test_the_defaults_are_a_small_bert_on_this_machines_documentation(composed: dict[str, Any]) -> None:
    config = parse(composed)
    assert (config.model.kind, config.model.layers, config.model.dropout) == ("bert", 12, 0)
    assert (config.data.kind, config.data.vocab_size, config.data.tokenizer) == ("pydocs", 4096, "auto")
    assert (config.run.device, config.run.precision, config.run.compile) == ("auto", "auto", "auto")
    assert config.schedule.layers == (1, 3, 6, 12)
    assert config.budget.steps
    assert config.budget.tokens is config.budget.flops is config.budget.seconds is None


@pytest.mark.parametrize("option", OPTIONS)
def test_every_shipped_option_is_valid(option: str) -> None:
    composed = compose_values([option, *NEEDS.get(option, [])])
    config = parse(composed)
    composed["data"]["vocab_size"] = config.data.vocab_size  # which a tokenizer may decide
    composed["schedule"]["layers"] = list(config.schedule.layers)  # numbers instead of parts of the target
    if "sizes" in composed["sampler"]:
        composed["sampler"]["sizes"] = list(config.sampler.sizes)  # type: ignore[attr-defined]
    assert config.raw == composed
    assert config.schedule.layers[-1] == config.model.layers
    if option.startswith("experiment="):
        assert option == f"experiment={config.run.name}"


def test_stages_are_parts_of_the_depth() -> None:
    config = parse(compose_values(["size=large"]))
    assert config.schedule.layers == (1, 6, 12, 24)
    assert config.raw["schedule"]["layers"] == [1, 6, 12, 24]
    typed = compose_values(["size=large", "schedule.layers=[1,5L/8,L]", "schedule.ends=[0.1,0.2,1]"])
    assert parse(typed).schedule.layers == (1, 15, 24)


@pytest.mark.parametrize("key", CONTRACT)
def test_keys_that_users_count_on_are_there(composed: dict[str, Any], key: str) -> None:
    assert key in set(keys(composed))


def test_text_files_are_given_by_data_files() -> None:
    assert "data.files" in set(keys(compose_values(["data=text"])))


def test_the_config_files_hold_values_only() -> None:
    for path in CONF.rglob("*.yaml"):
        assert "_target_" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("option", ["model=gpt", "data=text", "data=wiki_books", "experiment=stackbert"])
def test_a_config_that_was_saved_is_read_back_the_same(option: str) -> None:
    config = parse(compose_values([option, "sampler=edge", "budget.steps=null", "budget.tokens=1e8"]))
    assert parse(yaml.safe_load(yaml.safe_dump(config.raw))) == config


def piecewise(knots: Any) -> dict[str, Any]:
    return {"optim.schedule": "piecewise", "optim.knots": knots}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": "abc"}, ["seed=abc", "integer"]),
        ({"seed": -1}, ["seed=-1", "greater than or equal to 0"]),
        ({"seed": 1.5}, ["seed=1.5", "integer"]),
        ({"name": "a/b"}, ["name=a/b"]),
        ({"name": ""}, ["name="]),
        ({"name": "../up"}, ["name=../up"]),
        ({"device": "gpu"}, ["device=gpu", "cuda"]),
        ({"precision": "fp8"}, ["precision=fp8", "auto", "fp32", "bf16"]),
        ({"compile": "maybe"}, ["compile=maybe", "auto"]),
        ({"plan": "maybe"}, ["plan=maybe", "boolean"]),
        ({"sampler.k": -1}, ["sampler.k=-1", "greater than or equal to 0"]),
        ({"sampler.lower": 0}, ["sampler.lower=0", "0.01"]),
        ({"expander.mode": "near"}, ["expander.mode=near", "nearest", "linear"]),
        ({"expander.moments": "drop"}, ["expander.moments=drop", "keep", "map", "reset"]),
        ({"model.dropout": 1}, ["model.dropout=1", "less than 1"]),
        ({"model.layers": 0}, ["model.layers=0", "greater than 0"]),
        ({"model.hidden": "wide"}, ["model.hidden=wide", "integer"]),
        ({"model.mask_fraction": 0}, ["model.mask_fraction=0", "greater than 0"]),
        ({"data.seq_len": 3}, ["data.seq_len=3", "greater than or equal to 4"]),
        ({"data.validation": 1}, ["data.validation=1", "less than or equal to 0.5"]),
        ({"data.vocab_size": True}, ["data.vocab_size=True", "integer"]),
        ({"batch.size": 0}, ["batch.size=0", "greater than 0"]),
        ({"batch.size": 2.5}, ["batch.size=2.5", "integer"]),
        ({"batch.micro": 5}, ["batch.micro=5", "batch.size=16", "divide"]),
        ({"batch.micro": 32}, ["batch.micro=32", "batch.size=16"]),
        ({"eval.every": 0}, ["eval.every=0", "greater than 0"]),
        ({"checkpoint.keep": 0}, ["checkpoint.keep=0", "greater than 0"]),
        ({"optim.lr": 0}, ["optim.lr=0", "greater than 0"]),
        ({"optim.lr": float("nan")}, ["optim.lr=nan"]),
        ({"optim.lr": float("inf")}, ["optim.lr=inf"]),
        ({"optim.warmup": 1}, ["optim.warmup=1", "less than 1"]),
        ({"optim.schedule": "step"}, ["optim.schedule=step", "cosine", "linear", "wsd", "constant"]),
        ({"optim.betas": [0.9]}, ["optim.betas=", "0.9"]),
        (
            {"optim.schedule": "wsd", "optim.warmup": 0.6, "optim.decay": 0.5},
            ["optim.warmup=0.6", "optim.decay=0.5", "more than the whole run"],
        ),
        (
            {"optim.schedule": "piecewise"},
            ["optim.schedule=piecewise", "optim.knots is missing", "'optim.knots=[[0.5,0.3],[1,0]]'"],
        ),
        (
            {"optim.knots": [[1, 0]]},
            [
                "optim.knots are given and optim.schedule=cosine",
                "type optim.schedule=piecewise, or optim.knots=null",
            ],
        ),
        (piecewise(0.5), ["optim.knots=0.5", "pairs [share of all steps, share of the peak]"]),
        (piecewise([]), ["optim.knots=[]", "pairs"]),
        (piecewise([0.5, 1]), ["optim.knots=[0.5, 1]", "pairs", "'optim.knots=[[0.5,0.3],[1,0]]'"]),
        (piecewise([[0.5, 0.3, 0.1], [1, 0]]), ["optim.knots=[[0.5, 0.3, 0.1], [1, 0]]", "pairs"]),
        (piecewise([[0.5, "half"], [1, 0]]), ["optim.knots=[[0.5, 'half'], [1, 0]]", "pairs"]),
        (piecewise([[0.5, 1.5], [1, 0]]), ["optim.knots=[[0.5, 1.5], [1, 0]]", "from 0 to 1"]),
        (piecewise([[-0.5, 0.5], [1, 0]]), ["optim.knots=[[-0.5, 0.5], [1, 0]]", "from 0 to 1"]),
        (piecewise([[0.5, float("nan")], [1, 0]]), ["optim.knots=[[0.5, nan], [1, 0]]", "from 0 to 1"]),
        (piecewise([[0.5, 0.3], [0.5, 0.2], [1, 0]]), ["optim.knots=[[0.5, 0.3], [0.5, 0.2]", "rise to 1"]),
        (piecewise([[0.6, 0.3], [0.5, 0.2], [1, 0]]), ["optim.knots=[[0.6, 0.3], [0.5, 0.2]", "rise to 1"]),
        (piecewise([[0.5, 0.3]]), ["optim.knots=[[0.5, 0.3]]", "rise to 1"]),
        (
            {**piecewise([[0.1, 0.9], [1, 0]]), "optim.warmup": 0.1},
            ["optim.knots=[[0.1, 0.9], [1.0, 0.0]]", "after optim.warmup=0.1"],
        ),
        ({**piecewise([[1, 0.1]]), "optim.final_lr": 0.1}, ["optim.final_lr=0.1", "the last of optim.knots"]),
        (
            {**piecewise([[1, 0]]), "optim.at_growth": "rewind"},
            ["optim.at_growth=rewind", "once", "optim.at_growth=continue or rewarm"],
        ),
        ({"tracking.wandb": "yes"}, ["tracking.wandb=yes", "auto", "online", "offline", "disabled"]),
        ({"schedule.layers": [6, 3, 1, 12]}, ["schedule.layers", "[6, 3, 1, 12]", "never fall"]),
        ({"schedule.layers": [0, 3, 6, 12]}, ["schedule.layers", "[0, 3, 6, 12]", "1 or more"]),
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
                "expander": {"kind": "append", "moments": "keep", "source": None, "source_flops": None},
                "schedule.trained": ["all", "new", "new", "all"],
            },
            ["sampler=prefixes chooses the layers itself", "shallow"],
        ),
        (
            {"expander": {"kind": "msg", "moments": "keep", "source": None, "source_flops": None, "entry": 0.1}},
            ["expander.entry=0.1", "a stage is shorter", "longer"],
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
                "expander": {"kind": "lemon", "moments": "reset", "source": None, "source_flops": None},
            },
            ["schedule.widths", "hidden grows as [43, 86, 86, 129]", "LEMON", "expander=bert2bert"],
        ),
        ({"schedule.layers": [1, 2, 3, 4]}, ["schedule.layers=[1, 2, 3, 4]", "model.layers is 12"]),
        ({"schedule.layers": [1, 3, 12]}, ["schedule.ends has 4", "schedule.layers 3", "one for each stage"]),
        ({"schedule.layers": [1, "L/3", "half", 12]}, ["schedule.layers=half", "integer"]),
        ({"expander.source_flops": -1}, ["expander.source_flops=-1", "greater than or equal to 0"]),
        ({"schedule.layers": "all"}, ["schedule.layers=all"]),
        ({"schedule.ends": [0.1, 0.2, 0.3, 0.4]}, ["schedule.ends", "[0.1, 0.2, 0.3, 0.4]", "[0.05,0.1,0.25,1]"]),
        ({"schedule.ends": [0.3, 0.2, 0.5, 1]}, ["schedule.ends", "[0.3, 0.2, 0.5, 1.0]", "rise to 1"]),
        ({"schedule.ends": [0, 0.2, 0.5, 1]}, ["schedule.ends", "[0.0, 0.2, 0.5, 1.0]", "rise to 1"]),
        ({"schedule.ends": [0.1, 0.2, 1, 2]}, ["schedule.ends", "rise to 1"]),
        ({"budget.tokens": 100}, ["exactly one budget", "budget.steps and budget.tokens", "null"]),
        ({"budget.steps": None}, ["exactly one budget", "none", "budget.steps, budget.tokens, budget.flops"]),
        ({"budget.steps": -5}, ["budget.steps=-5", "greater than 0"]),
        ({"budget.steps": None, "budget.seconds": 0}, ["budget.seconds=0", "greater than 0"]),
        ({"sampler.kk": 2}, ["sampler.kk", "no such key", "did you mean sampler.k?"]),
        ({"sede": 2}, ["sede", "no such key", "did you mean seed?"]),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_its_value_and_what_to_type(
    composed: dict[str, Any], changes: dict[str, Any], says: list[str]
) -> None:
    (problem,) = problems_of(changed(composed, changes))
    assert all(words in problem for words in says), problem


@pytest.mark.parametrize("heads", [3, 5, 7, 100, 129])
def test_heads_that_do_not_divide_the_width_get_a_number_that_does(composed: dict[str, Any], heads: int) -> None:
    (problem,) = problems_of(changed(composed, {"model.heads": heads}))
    assert f"model.heads={heads}" in problem
    assert "model.hidden=128" in problem
    offer = re.search(r"for example model\.heads=(\d+)", problem)
    assert offer
    assert 128 % int(offer[1]) == 0


@pytest.mark.parametrize(
    ("key", "typed", "meant"),
    [
        ("precision", "pf32", "fp32"),
        ("precision", "bf15", "bf16"),
        ("expander.mode", "nearst", "nearest"),
        ("expander.mode", "liner", "linear"),
        ("optim.schedule", "cosin", "cosine"),
        ("optim.schedule", "const", "constant"),
        ("tracking.wandb", "ofline", "offline"),
        ("tracking.wandb", "disable", "disabled"),
    ],
)
def test_a_word_that_is_almost_right_gets_the_right_one(
    composed: dict[str, Any], key: str, typed: str, meant: str
) -> None:
    (problem,) = problems_of(changed(composed, {key: typed}))
    assert problem.startswith(f"{key}={typed}")
    assert problem.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    "key", ["seed", "optim.lr", "schedule.ends", "budget.flops", "data.seq_len", "model.heads"]
)
def test_a_missing_key_is_named(composed: dict[str, Any], key: str) -> None:
    values = deepcopy(composed)
    *path, last = key.split(".")
    del (values[path[0]] if path else values)[last]
    assert problems_of(values) == [f"{key}: missing"]


@pytest.mark.parametrize("group", ["model", "optim", "budget", "tracking"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_group_that_is_missing_or_a_number_is_named(composed: dict[str, Any], group: str, value: Any) -> None:
    (problem,) = problems_of(changed(composed, {group: value}))
    assert problem.startswith(f"{group}: missing")


def test_all_problems_come_in_one_error(composed: dict[str, Any]) -> None:
    wrong = changed(
        composed,
        {
            "seed": "abc",
            "sampler.k": -1,
            "sampler.kk": 1,
            "model.heads": 3,
            "batch.micro": 5,
            "budget.flops": 10**9,
            "schedule.layers": [6, 3, 1, 12],
            "schedule.ends": [0.1, 0.2, 0.3, 0.4],
            "optim.lr": -1,
            "optim.eps": "x",
        },
    )
    problems = problems_of(wrong)
    assert len(problems) == 10
    for words in ("seed=abc", "sampler.k=-1", "sampler.kk", "model.heads=3", "batch.micro=5", "budget.flops"):
        assert sum(words in problem for problem in problems) == 1 + (words == "sampler.k"), words
    assert "10 problems" in str(ConfigError(problems))


def test_a_rule_between_keys_waits_until_its_keys_are_valid(composed: dict[str, Any]) -> None:
    problems = problems_of(changed(composed, {"model.layers": "x", "batch.size": "y", "budget.steps": "z"}))
    assert [problem.partition("=")[0] for problem in problems] == ["model.layers", "budget.steps", "batch.size"]


def test_a_config_error_is_an_error_that_the_user_can_mend() -> None:
    assert issubclass(ConfigError, ApolloError)
    assert str(ConfigError(["one"])) == "config: one"


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        ({"budget.steps": None, "budget.tokens": 1e8}, "budget.tokens", 100_000_000),
        ({"budget.steps": None, "budget.flops": 1e15}, "budget.flops", 10**15),
        ({"model.heads": 4.0}, "model.heads", 4),
    ],
)
def test_whole_numbers_may_be_written_with_an_exponent(
    composed: dict[str, Any], changes: dict[str, Any], key: str, expected: int
) -> None:
    section, _, name = key.partition(".")
    value = getattr(getattr(parse(changed(composed, changes)), section), name)
    assert value == expected
    assert isinstance(value, int)


@pytest.mark.parametrize("value", ["auto", True, False])
def test_compile_is_auto_or_yes_or_no(composed: dict[str, Any], value: str | bool) -> None:
    assert parse(changed(composed, {"compile": value})).run.compile is value


@pytest.mark.parametrize("value", ["auto", "cpu", "mps", "cuda", "cuda:1"])
def test_devices_that_torch_names_are_taken(composed: dict[str, Any], value: str) -> None:
    assert parse(changed(composed, {"device": value})).run.device == value


@pytest.mark.parametrize("name", ["a", "run_2", "lr=1e-3", "v1.2+x"])
def test_names_may_hold_what_folders_may(composed: dict[str, Any], name: str) -> None:
    assert parse(changed(composed, {"name": name})).run.name == name


@pytest.mark.parametrize(("micro", "size", "steps"), [(None, 16, 1), (4, 4, 4), (16, 16, 1), (1, 1, 16)])
def test_a_step_is_as_many_micro_steps_as_fill_the_batch(
    composed: dict[str, Any], micro: int | None, size: int, steps: int
) -> None:
    batch = parse(changed(composed, {"batch.micro": micro})).batch
    assert (batch.micro_size, batch.accumulation) == (size, steps)


@pytest.mark.parametrize("sampler", ["lvps", "uniform", "edge", "full", "shallow"])
def test_every_sampler_can_be_built(sampler: str) -> None:
    built = parse(compose_values([f"sampler={sampler}"])).sampler.build()
    assert isinstance(built, DepthSampler)
    assert sum(built.probabilities(3, 12).values()) == pytest.approx(1)


def test_the_shape_is_that_of_the_config(composed: dict[str, Any]) -> None:
    shape = parse(composed).shape
    model, data = composed["model"], composed["data"]
    assert (shape.kind, shape.layers, shape.hidden) == (model["kind"], model["layers"], model["hidden"])
    assert (shape.heads, shape.ffn, shape.dropout) == (model["heads"], model["ffn"], model["dropout"])
    assert (shape.vocabulary, shape.positions) == (data["vocab_size"], data["seq_len"])


def test_a_config_cannot_be_changed(composed: dict[str, Any]) -> None:
    config: Config = parse(composed)
    with pytest.raises(ValidationError):
        config.run.seed = 1


def test_a_kind_that_is_none_names_all_there_are() -> None:
    values = compose_values([]) | {"sampler": {"kind": "foo"}}
    with pytest.raises(ConfigError, match=r"sampler\.kind=foo: should be one of lvps, edge, .*sampler=NAME"):
        parse(values)


@pytest.mark.parametrize(
    ("target", "example"), [(24, r"\[2,6,12,24\]"), (2, r"\[1,2\]"), (1, r"\[1\]"), (13, r"\[1,3,6,13\]")]
)
def test_stages_that_do_not_end_at_the_model_come_with_an_example_that_does(target: int, example: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(compose_values([f"model.layers={target}", "schedule.layers=[1,3,6,12]"]))
    assert re.search(rf"'schedule\.layers={example}'", str(caught.value).replace(", ", ",")), str(caught.value)


@pytest.mark.parametrize("name", ["bert2bert", "lemon", "ligo"])
def test_a_method_that_begins_from_a_smaller_model_asks_for_it(name: str) -> None:
    (problem,) = problems_of(compose_values([f"experiment={name}"]))
    assert f"expander={name} begins from a smaller model: type expander.source=FOLDER" in problem


@pytest.mark.parametrize(
    "words", [["schedule=apollo"], ["schedule=wider"], ["schedule=wider", "schedule.layers=[L,L]"]]
)
def test_a_map_is_learned_where_layers_or_width_grow_without_a_source(words: list[str]) -> None:
    assert parse(compose_values(["experiment=ligo", *words])).expander.source is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["schedule=apollo", "expander.moments=keep"],
            "expander.moments=keep: where a map is learned AdamW begins",
        ),
        (
            ["schedule=scratch"],
            r"expander.source=FOLDER, .*, or let schedule.layers or schedule.widths grow within",
        ),
        (["schedule=apollo", "distributed=fsdp"], "its map is learned on whole weights; take distributed=ddp"),
        (["schedule=mslt"], "expander=ligo puts new layers between the old ones"),
    ],
)
def test_a_learned_map_that_cannot_be_is_refused(words: list[str], said: str) -> None:
    (problem,) = problems_of(compose_values(["experiment=ligo", *words]))
    assert re.search(said, problem)


@pytest.mark.parametrize("name", ["bert2bert", "lemon"])
def test_a_run_that_grows_in_width_needs_no_source(name: str) -> None:
    config = parse(compose_values([f"expander={name}", "schedule=wider"]))
    assert config.shape.narrowed(config.schedule.shares[0]).hidden == config.model.hidden // 2
