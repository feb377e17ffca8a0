import pytest

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "flags", "overrides"),
    [
        ("", [], []),
        ("seed=1 model=gpt", [], ["seed=1", "model=gpt"]),
        ("-m seed=0,1", ["-m"], ["seed=0,1"]),
        ("seed=0,1 --multirun", ["--multirun"], ["seed=0,1"]),
        ("--cfg job seed=1", ["--cfg", "job"], ["seed=1"]),
        ("seed=1 -c job", ["-c", "job"], ["seed=1"]),
        ("--cfg job --package model seed=1", ["--cfg", "job", "--package", "model"], ["seed=1"]),
        ("--config-dir other seed=1", ["--config-dir", "other"], ["seed=1"]),
        ("--hydra-help", ["--hydra-help"], []),
        ("--config-name=mine -cp elsewhere", ["--config-name", "mine", "-cp", "elsewhere"], []),
        ("+experiment=stackbert +tracking.x=1 experiment=null", [], ["experiment=stackbert", "+tracking.x=1"]),
        ("~tracking +x=-1", [], ["~tracking", "+x=-1"]),
    ],
)
def test_words_are_sorted_into_flags_and_overrides(words: str, flags: list[str], overrides: list[str]) -> None:
    line = CommandLine.parse(words.split())
    assert (line.flags, line.overrides) == (flags, overrides)


@pytest.mark.parametrize(
    ("words", "multirun", "runs"),
    [
        ("seed=1", False, True),
        ("-m seed=0,1", True, True),
        ("--multirun seed=0,1", True, True),
        ("--cfg job", False, False),
        ("-m --cfg job", True, False),
        ("--info", False, False),
        ("--hydra-help", False, False),
        ("--config-dir mine seed=1", False, True),
        ("--config-dir mine -m seed=0,1", True, True),
        ("--config-dir mine --cfg job", False, False),
    ],
)
def test_flags_say_whether_it_is_a_sweep_and_whether_it_runs(words: str, multirun: bool, runs: bool) -> None:
    line = CommandLine.parse(words.split())
    assert (line.multirun, line.runs) == (multirun, runs)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--plan", r"--plan: no such flag; keys have no dashes: type plan=VALUE"),
        ("--multrun", r"--multrun: no such flag; did you mean --multirun\?"),
        ("--config-di", r"--config-di: no such flag; did you mean --config-dir\?"),
        ("--optim.lr=1e-3", r"--optim.lr: no such flag; keys have no dashes: type optim.lr=VALUE"),
    ],
)
def test_flags_are_not_guessed(flag: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CommandLine.parse([flag])


def test_a_flag_takes_its_value_with_and_without_an_equals_sign() -> None:
    for words in (["--config-dir", "mine"], ["--config-dir=mine"]):
        line = CommandLine.parse([*words, "seed=1"])
        assert (line.flags, line.overrides) == (["--config-dir", "mine"], ["seed=1"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [("seed=1", False), ("-cd mine", True), ("--config-name=mine", True), ("hydra.searchpath=[file:///x]", True)],
)
def test_configs_of_the_user_are_recognised(words: str, expected: bool) -> None:
    assert CommandLine.parse(words.split()).has_user_configs == expected
