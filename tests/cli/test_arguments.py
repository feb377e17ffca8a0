from pathlib import Path

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
        ("--optim.lr=1e-3", r"--optim.lr: no such flag; keys have no dashes: type optim.lr=1e-3"),
        ("--seed 3", r"--seed: no such flag; keys have no dashes: type seed=3"),
        ("--plan seed=3", r"type plan=VALUE"),
        ("--model gpt", r"--model: no such flag; keys have no dashes: type model=gpt"),
    ],
)
def test_flags_are_not_guessed(flag: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CommandLine.parse(flag.split())


@pytest.mark.parametrize(
    ("typed", "passed_on"),
    [
        ("name=2026_11_29", "name='2026_11_29'"),
        ("name=1e3", "name='1e3'"),
        ("name=3.10", "name='3.10'"),
        ("name=true", "name='true'"),
        ("name=0012", "name=0012"),  # no number in Hydra's grammar
        ("name=7b", "name=7b"),
        ("name='1_1_1'", "name='1_1_1'"),
        ("name=null", "name=null"),
        ("name=2026,run,1e3", "name='2026',run,'1e3'"),
        ("tracking.project=1e3", "tracking.project='1e3'"),
        ("hydra.run.dir=2026_11_29", "hydra.run.dir='2026_11_29'"),
        ("hydra.run.dir=~/run", f"hydra.run.dir={Path.home()}/run"),
        ("data.files=~/a.txt", "data.files='~/a.txt'"),
        ("data.files=~/*.txt,b.txt", "data.files='~/*.txt',b.txt"),
        ("data.files=[2024,1.10,on,a.txt]", "data.files=['2024','1.10',on,a.txt]"),
        ("tracking.tags=[1e3]", "tracking.tags=['1e3']"),
        ("tracking.tags=[[1e3]]", "tracking.tags=[[1e3]]"),
        ("init_from.path=runs/1", "init_from.path=runs/1"),
        ("+experiment=2026_11", "experiment='2026_11'"),
        ("seed=1e3", "seed=1e3"),
        ("data.files=my corpus é/a b.txt", "data.files='my corpus é/a b.txt'"),
        ("data.files=it's.txt", r"data.files='it\'s.txt'"),
        ("tracking.notes=it's a try (1)", r"tracking.notes='it\'s a try (1)'"),
        ("hydra.run.dir=my öut", "hydra.run.dir='my öut'"),
        ("data.files=my file.txt", "data.files=my file.txt"),
        ("data.files=a,b (1).txt", "data.files=a,b (1).txt"),  # one file or two
        ("tracking.tags=['a b,c", "tracking.tags=['a b,c"),
        ("resume=it's/a run é", "resume=it's/a run é"),  # taken as it is
    ],
)
def test_a_text_that_looks_like_a_number_stays_as_typed(typed: str, passed_on: str) -> None:
    assert CommandLine.parse([typed]).overrides[-1] == passed_on


@pytest.mark.parametrize(
    ("words", "implied"),
    [
        ("data.files=a.txt", ["data=text"]),
        ("-m data.files=a.txt,b.txt seed=0,1", ["data=text"]),
        ("data.path=org/name", ["data=hub"]),
        ("data=mixture data.files=a.txt", []),
        ("experiment=paper/gpt2 data.files=a.txt", ["data=text"]),
        ("--config-dir mine data.files=a.txt", ["data=text"]),
        ("--config-dir mine experiment=[paper/gpt2,apollo_gpt] data.files=a.txt", ["data=text"]),
        ("--config-dir mine experiment=[paper/gpt2,mine] data.files=a.txt", []),
        ("--config-name mine data.files=a.txt", []),
        ("data.seq_len=64", []),
    ],
)
def test_the_kind_of_corpus_follows_from_files_or_path(words: str, implied: list[str]) -> None:
    line = CommandLine.parse(words.split())
    assert [o for o in line.overrides if o.startswith("data=") and o != "data=mixture"] == implied


def test_a_flag_takes_its_value_with_and_without_an_equals_sign() -> None:
    for words in (["--config-dir", "mine"], ["--config-dir=mine"]):
        line = CommandLine.parse([*words, "seed=1"])
        assert (line.flags, line.overrides) == (["--config-dir", "mine"], ["seed=1"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [("seed=1", False), ("-cd mine", True), ("--config-name=mine", True), ("hydra.searchpath=[file:///x]", True)],
)
def test_configs_of_the_user_are_recognised(words: str, expected: bool) -> None:
    assert (CommandLine.parse(words.split()).user_folders != []) == expected


def test_folders_of_the_user_are_those_beside_the_shipped_configs(tmp_path: Path) -> None:
    def folders(*words: str) -> list[Path] | None:
        return CommandLine.parse(words).user_folders

    assert folders("seed=1") == []
    there = [f"--config-dir={tmp_path}", f"hydra.searchpath=[file://{tmp_path.parent}]"]
    assert folders(*there) == [tmp_path, tmp_path.parent]
    assert folders("--config-dir", f"{tmp_path}/nowhere") is None
    assert folders("hydra.searchpath=[pkg://lab]") is None
    assert folders(*there, "--config-name", "lab") is None
