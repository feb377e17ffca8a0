"""The commands that make runs again."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from apollo_cli.config.conf_folder import CONF
from apollo_cli.config.hydra_syntax import job_config, pasted
from apollo_cli.config.schema import flat
from apollo_cli.errors import ConfigError
from apollo_cli.report.commands import commands
from apollo_cli.report.runs import Run, make_run


def run_of(values: dict[str, Any]) -> Run:
    return make_run("run", flat(values), {}, {}, [])


def of_command(line: str) -> dict[str, Any]:
    """The config of a run that is typed so."""
    program, *words = shlex.split(line)
    assert program == "apollo-train"
    return config_of(*words)


def config_of(*words: str) -> dict[str, Any]:
    with initialize_config_module(CONF, version_base="1.3"):
        return job_config(compose("config", list(words)), words).raw


@pytest.mark.parametrize(
    "words",
    [
        ["seed=7", "budget.tokens=1e6", "model.heads=4", "compile=false", "name='1e3'"],
        ["experiment=lemon", "model=llama", "init_from.path='a ${seed} \\'b'", "optim=muon", "size=nano"],
        ["experiment=late_zero_init", "model=gpt", "data=text", "data.files=['a b/*.txt','null','it\\'s']"],
        ["experiment=lemon", "init_from.path='out put/no 1e3 true'"],
        ["experiment=late_zero_init", "expander=interpolate"],  # as by default, and not as in the experiment
        ["experiment=ablation/k", "sampler.k=3"],  # a job of a sweep
    ],
)
def test_a_command_makes_the_config_again(words: list[str]) -> None:
    values = config_of(*words)
    (line,) = commands(run_of(values))
    assert "experiment" not in line
    assert of_command(line) == {key: value for key, value in values.items() if key != "experiment"}
    assert len(line) < 1500


def test_a_path_with_spaces_has_the_quotes_of_the_shell_alone() -> None:
    assert pasted("init_from.path", "outputs/my run") == "'init_from.path=outputs/my run'"
    assert pasted("init_from.path", "outputs/my  run") == shlex.quote("init_from.path='outputs/my  run'")


def test_what_is_as_by_default_is_not_typed() -> None:
    values = config_of("seed=3", "optim.lr=1e-3")
    (line,) = commands(run_of(values))
    words = dict(word.split("=", 1) for word in shlex.split(line)[1:])
    follow = {"model.heads", "model.ffn", "model.init_std", "model.init_positions_std", "schedule.layers"}
    assert {key for key in words if key not in follow} == {"seed", "optim.lr"}


def test_a_longer_run_is_made_in_two_steps() -> None:
    values = config_of("budget.steps=100")
    extended = values | {"budget": values["budget"] | {"steps": 300, "extended_from": [100]}}
    first, second = commands(run_of(extended))
    assert of_command(first)["budget"]["steps"] == 100
    assert second == "apollo-train resume=RUN_DIR budget.steps=300"


def test_a_run_of_tokens_that_was_made_longer_twice_has_a_command_for_each_length() -> None:
    """The lengths before are known in steps."""
    values = config_of("budget.tokens=1e6")
    budget = values["budget"] | {"tokens": 4_000_000, "extended_from": [100, 200]}
    first, second, third = commands(run_of(values | {"budget": budget}))
    assert (of_command(first)["budget"]["steps"], of_command(first)["budget"]["tokens"]) == (100, None)
    assert second == "apollo-train resume=RUN_DIR budget.steps=200"
    assert third == "apollo-train resume=RUN_DIR budget.tokens=4000000"


def test_nothing_of_a_stranger_is_resolved_and_no_control_character_is_shown() -> None:
    values = config_of("data=text", "data.files=[a.txt]")
    hostile = values | {"data": values["data"] | {"files": ["${oc.env:HOME}", "$(reboot); '`\\", "\\${x}"]}}
    (line,) = commands(run_of(hostile))
    assert of_command(line) == hostile
    run = run_of(values)
    for key, value in (
        ("data.files", ["\x1b[201~reboot"]),
        ("sampler.kind", "../x"),
        ("name", "<b>"),
        ("model", 1),
    ):
        with pytest.raises(ConfigError):
            commands(replace(run, config=run.config | {key: value}))


def test_kept_runs_have_commands(tmp_path: Path) -> None:
    """A run of an older version lacks keys, which then have their defaults."""
    values = config_of()
    older = {key: value for key, value in values.items() if key not in ("profile", "plan_device")}
    (line,) = commands(run_of(older))
    assert of_command(line) == values
