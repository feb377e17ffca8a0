from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from apollo_cli.config import training
from apollo_cli.config.config import Config, parse
from apollo_cli.config.data import PyDocsArgs
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.errors import ApolloError, ConfigError
from tests.helpers.config_values import changed, problems_of, refuses

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/[!_]*.yaml"))

FROM = "init_from.path=a_smaller_model"
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
    *("budget.target_loss", "budget.patience"),
    *("init_from.path", "init_from.checkpoint", "init_from.optimizer", "init_from.data", "init_from.flops"),
    *("batch.size", "batch.micro"),
    *("model.layers", "model.hidden", "model.heads", "model.ffn", "model.dropout"),
    "sampler.k",
    *("expander.mode", "expander.moments"),
    *("schedule.layers", "schedule.ends", "schedule.when", "schedule.window", "schedule.threshold"),
    *("data.seq_len", "data.vocab_size", "data.tokenizer", "data.cache_dir", "data.inspect"),
    *("data.validation", "data.validation_seed"),
    *("optim.lr", "optim.schedule", "optim.knots", "optim.warmup"),
    *("optim.weight_decay", "optim.clip", "optim.at_growth"),
    *("eval.every", "eval.rows"),
    *("checkpoint.every", "checkpoint.keep", "checkpoint.best"),
    "log.every",
    *("tracking.wandb", "tracking.project", "tracking.entity", "tracking.group", "tracking.tags"),
    *("tracking.notes", "tracking.upload", "tracking.tensorboard", "tracking.csv"),
]


def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize(
    "words",
    [
        ("model=bert", "model.dropout=0.1", "budget.steps=null", "budget.seconds=3"),
        ("schedule=scratch", "model.layers=6", "schedule.layers=[6]", "schedule.ends=[1]"),
        ("sampler=edge", "sampler.lower=0.3", "data.text_field='a b'", "seed=3"),
    ],
)
def test_the_config_fixture_equals_what_hydra_composes(
    words: tuple[str, ...], config: Callable[..., Config], tiny: tuple[str, ...]
) -> None:
    assert config(*words) == parse(compose_values([*tiny, *words]))


def test_the_defaults_are_a_small_bert_on_this_machines_documentation(composed: dict[str, Any]) -> None:
    config = parse(composed)
    assert (config.model.kind, config.model.layers, config.model.dropout) == ("bert", 12, 0)
    assert (config.data.vocab_size, config.data.tokenizer) == (1024, "auto")
    assert isinstance(config.data, PyDocsArgs)
    assert (config.run.device, config.run.precision, config.run.compile) == ("auto", "auto", "auto")
    assert config.schedule.layers == (3, 6, 12)
    assert config.budget.steps
    assert config.budget.tokens is config.budget.flops is config.budget.seconds is None


@pytest.mark.parametrize("option", OPTIONS)
def test_every_shipped_option_is_valid(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "find_spec", lambda package: package)  # as if every extra were installed
    composed = compose_values([option, *NEEDS.get(option, [])])
    config = parse(composed)
    composed["data"]["vocab_size"] = config.data.vocab_size  # which a tokenizer may decide
    following = ("heads", "ffn", "init_std", "init_positions_std")  # the width
    composed["model"] |= {key: getattr(config.model, key) for key in following}
    composed["schedule"]["layers"] = list(config.schedule.layers)  # numbers instead of parts of the target
    if "sizes" in composed["sampler"]:
        composed["sampler"]["sizes"] = list(config.sampler.sizes)  # type: ignore[attr-defined]
    assert config.raw == composed
    assert config.schedule.layers[-1] == config.model.layers
    if option.startswith("experiment="):
        assert option == f"experiment={config.run.name}"


@pytest.mark.parametrize("key", CONTRACT)
def test_documented_keys_exist(composed: dict[str, Any], key: str) -> None:
    assert key in set(keys(composed))


def test_text_files_are_given_by_data_files() -> None:
    assert "data.files" in set(keys(compose_values(["data=text"])))


def test_the_config_files_name_no_code_but_the_callback_of_sweeps() -> None:
    texts = [path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml")]
    targets = [line.split()[-1] for text in texts for line in text.splitlines() if "_target_" in line]
    assert targets == ["apollo_cli.sweeps.sweep.SweepCallback"]


@pytest.mark.parametrize("option", ["model=gpt", "data=text", "data=wiki_books", "experiment=stackbert"])
def test_a_config_that_was_saved_is_read_back_the_same(option: str) -> None:
    config = parse(compose_values([option, "sampler=edge", "budget.steps=null", "budget.tokens=1e8"]))
    assert parse(yaml.safe_load(yaml.safe_dump(config.raw))) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": "abc"}, ["seed=abc", "integer"]),
        ({"seed": -1}, ["seed=-1", "greater than or equal to 0"]),
        ({"seed": 1.5}, ["seed=1.5", "integer"]),
        ({"size": {"model": {"layers": 4}}}, ["size: its file sets keys of other groups", "# @package _global_"]),
        (
            {"seed": "3"},
            ["seed=3: should be a valid integer; this is a text", "'seed=\"${oc.decode:${oc.env:NAME}}\"'"],
        ),
        ({"name": "a/b"}, ["name=a/b"]),
        ({"name": ""}, ["name="]),
        ({"name": "../up"}, ["name=../up"]),
        ({"device": "gpu"}, ["device=gpu", "cuda"]),
        ({"precision": "fp8"}, ["precision=fp8", "auto", "fp32", "bf16"]),
        ({"compile": "maybe"}, ["compile=maybe", "auto"]),
        ({"plan": "maybe"}, ["plan=maybe", "boolean"]),
        ({"sampler.kk": 2}, ["sampler.kk", "no such key", "did you mean sampler.k?"]),
        ({"sede": 2}, ["sede", "no such key", "did you mean seed?"]),
        ({"expander.source": "small"}, ["expander.source=small: renamed to init_from.path=small"]),
        ({"model.mask_words": True}, ["model.mask_words=true: renamed to model.whole_word_masking=true"]),
    ],
)
def test_an_invalid_value_is_refused_with_key_value_and_remedy(
    composed: dict[str, Any], changes: dict[str, Any], says: list[str]
) -> None:
    refuses(composed, changes, says)


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
def test_a_misspelt_value_is_refused_with_the_closest_one(
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
    assert problems_of(values) == [f"{key}: missing; type {key}=VALUE"]


@pytest.mark.parametrize("group", ["model", "optim", "budget", "tracking"])
def test_a_group_that_is_missing_or_a_number_is_named(composed: dict[str, Any], group: str) -> None:
    (missing,), (number,) = (problems_of(changed(composed, {group: value})) for value in (None, 3))
    assert missing.startswith(f"{group}: missing")
    assert number.startswith(f"{group}=3: {group} is a group of keys; type {group}.KEY=VALUE, with a KEY of ")


def test_a_value_of_a_group_names_its_keys(composed: dict[str, Any]) -> None:
    (problem,) = problems_of(changed(composed, {"init_from": "outputs/run"}))
    assert problem.endswith("type init_from.KEY=VALUE, with a KEY of path, checkpoint, optimizer, data, flops")


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
    assert "10 problems" in str(ConfigError(*problems))


def test_a_rule_between_keys_is_checked_only_if_its_keys_are_valid(composed: dict[str, Any]) -> None:
    problems = problems_of(changed(composed, {"model.layers": "x", "batch.size": "y", "budget.steps": "z"}))
    assert [problem.partition("=")[0] for problem in problems] == ["model.layers", "budget.steps", "batch.size"]


def test_a_config_error_is_a_user_error() -> None:
    assert issubclass(ConfigError, ApolloError)
    assert str(ConfigError("one")) == "config: one"


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
def test_devices_of_torch_are_accepted(composed: dict[str, Any], value: str) -> None:
    assert parse(changed(composed, {"device": value})).run.device == value


@pytest.mark.parametrize("name", ["a", "run_2", "lr=1e-3", "v1.2+x"])
def test_valid_names(composed: dict[str, Any], name: str) -> None:
    assert parse(changed(composed, {"name": name})).run.name == name


def test_the_model_config_has_the_sizes_of_the_config(composed: dict[str, Any]) -> None:
    shape = parse(composed).model_config
    model, data = composed["model"], composed["data"]
    assert (shape.kind, shape.layers, shape.hidden) == (model["kind"], model["layers"], model["hidden"])
    assert (shape.heads, shape.ffn, shape.dropout) == (2, 4 * model["hidden"], model["dropout"])
    assert (shape.vocabulary, shape.positions) == (data["vocab_size"], data["seq_len"])


def test_a_config_cannot_be_changed(composed: dict[str, Any]) -> None:
    config: Config = parse(composed)
    with pytest.raises(ValidationError):
        config.run.seed = 1
