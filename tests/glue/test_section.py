"""The words of `apollo-glue` and what they mean."""

from pathlib import Path

import pytest
import yaml

from apollo_cli.errors import ConfigError
from apollo_cli.glue.section import compose_words, parse_glue


def test_the_defaults_are_those_of_the_file() -> None:
    values = yaml.safe_load(Path("conf/glue.yaml").read_text(encoding="utf-8"))
    del values["defaults"]
    plain = parse_glue(compose_words(["run=x"])).plain
    assert plain.pop("tracking")["wandb"] == "auto"
    assert plain == values | {"run": "x", "task": ["all"]}


def test_several_values_are_a_list_and_paths_are_taken_literally() -> None:
    words = ["model=a,b=[c]", "task=RTE,cola", "seed=1", "optim.lr=1e-3,2e-4", "glue.data_dir=~/x{y}"]
    config = parse_glue(compose_words([*words, "tracking=local", "out=null"]))
    assert (config.model, config.data_dir, config.out) == ("a,b=[c]", Path.home() / "x{y}", None)
    assert ([task.name for task in config.tasks], config.seed) == (["cola", "rte"], (1,))
    assert config.optim.lr == (0.001, 0.0002)
    assert config.tracking.wandb == "disabled"
    assert parse_glue(compose_words(["run=x", "seed=[3,4]"])).seed == (3, 4)


def test_rules_between_keys_hold_here_too() -> None:
    with pytest.raises(ConfigError, match=r"optim\.warmup=0\.9 and optim\.decay=0\.5 add up to more"):
        parse_glue(compose_words(["run=x", "optim.schedule=wsd", "optim.warmup=0.9", "optim.decay=0.5"]))


def test_a_recipe_has_the_values_that_were_not_typed_too() -> None:
    """So that results of before a key was there, or of a command that typed its default, are of the same recipe."""
    values = compose_words(["run=x"])
    before = {**values, "optim": {key: value for key, value in values["optim"].items() if key != "decay_shape"}}
    assert parse_glue(before).recipe == parse_glue(values).recipe
    assert parse_glue(values).recipe["optim"]["decay_shape"] == "linear"
    other = parse_glue(compose_words(["run=x", "optim.decay_shape=sqrt"]))
    assert other.recipe != parse_glue(values).recipe


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        (
            "tracking=null",
            "tracking=null: tracking is a group of keys; type tracking=wandb, "
            "tracking=local or tracking=tensorboard",
        ),
        ("tracking=neptune", "tracking=neptune: tracking is a group of keys"),
        ("tracking=../glue", "tracking=../glue: tracking is a group of keys"),
        ("glue=null", "glue=null: glue is a group of keys; type glue.KEY=VALUE"),
        ("optim=adamw", "optim=adamw: optim is a group of keys"),
        ("batch.size=null", "batch.size=null: should be a valid integer"),
        ("optim.lr=null", "optim.lr=null: should be a valid number"),
        ("seed=[]", "seed=[]: "),
        ("glue.epochs=${oc.env:HOME}", "glue.epochs=${oc.env:HOME}: should be a valid integer"),
        ("glue.epochs=${", "glue.epochs=${: not understood"),
        ("glue.epochs=[1", "glue.epochs=[1: not understood"),
        ("seed", "seed: not understood; type KEY=VALUE"),
        ("sed=1", "sed: no such key; did you mean seed?"),
        ("glue.epoch=1", "glue.epoch: no such key; did you mean glue.epochs?"),
        ("some.thing=1", "some: no such key"),
        ("model.dropout=0.1", "model.dropout=0.1: model has no keys; type model=VALUE"),
        ("seed.head=1", "seed.head=1: seed has no keys; type seed=VALUE"),
        *((f"{key}=1", f"{key}: no such key") for key in ("optim.kind", "optim.ema", "optim.ns_steps")),
        ("checkpoint.best=true", "checkpoint.best: no such key"),
        ("optim={schedule: wsd}", "optim={schedule: wsd}: optim is a group of keys"),
    ],
)
def test_a_wrong_word_is_one_problem(word: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_glue(compose_words(["run=x", word]))
    (found,) = caught.value.problems
    assert problem in found
