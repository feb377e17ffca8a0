import re
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.resume import resume_overrides
from apollo_cli.config.hydra_syntax import resume_words
from apollo_cli.errors import ConfigError


@pytest.mark.parametrize("words", ["", "seed=1", "resume=null", "model=gpt resume=null"])
def test_without_a_run_to_resume_there_is_none(words: str) -> None:
    assert resume_overrides(CommandLine.parse(words.split())) is None


@pytest.mark.parametrize(
    ("words", "folder", "sections"),
    [
        (["resume=outputs/apollo/2026"], "outputs/apollo/2026", {}),
        (["resume=/abs/run-1.5_x"], "/abs/run-1.5_x", {}),
        (["resume=2026"], "2026", {}),
        (["resume='my runs/a,b'"], "my runs/a,b", {}),
        (["resume=outputs/lr=1e-3/2026"], "outputs/lr=1e-3/2026", {}),
        (["resume=run", "tracking.wandb=disabled"], "run", {"tracking": {"wandb": "disabled"}}),
        (
            ["tracking.wandb=offline", "tracking.timeout=5", "checkpoint.keep=3", "resume=run"],
            "run",
            {"tracking": {"wandb": "offline", "timeout": 5}, "checkpoint": {"keep": 3}},
        ),
    ],
)
def test_resume_gives_the_run_and_what_cannot_change_it(
    words: list[str], folder: str, sections: dict[str, Any]
) -> None:
    assert resume_overrides(CommandLine.parse(words)) == (folder, sections)


@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "budget.patience=5",
        "budget.extended_from=[5]",
        "budget.steps=5,6",
        "model=gpt",
        "tracking=local",
        "batch.micro=4",
        "tracking.wandb=online,offline",
    ],
)
def test_what_could_change_a_resumed_run_is_refused_by_name(word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)) as error:
        resume_overrides(CommandLine.parse(["resume=run", word]))
    assert "tracking" in str(error.value)


def test_a_key_that_does_not_exist_is_told_from_one_that_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"budget\.step=5: no such key; did you mean budget\.steps\?$"):
        resume_overrides(CommandLine.parse(["resume=run", "budget.step=5"]))


def test_all_that_is_refused_beside_resume_comes_in_one_message() -> None:
    with pytest.raises(ConfigError) as error:
        resume_overrides(CommandLine.parse(["-m", "resume=run", "seed=1", "optim.lr=1"]))
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("project", ["apollo", "", "null", "it's (mine), [really]: a=b $x", "größer 10 %", "1e3"])
def test_what_is_handed_on_beside_resume_arrives(project: str) -> None:
    sections = {
        "tracking": {"project": project, "timeout": 2.5},
        "devices": None,
        "on_nonfinite": "skip",
        "distributed": {"timeout": 60},
        "checkpoint": {"every": 0, "keep": 1},
    }
    words = resume_words(Path("/a b/run"), sections)
    assert resume_overrides(CommandLine.parse(words)) == ("/a b/run", sections)


def test_a_section_of_which_nothing_was_typed_hands_on_nothing() -> None:
    assert resume_words(Path("run"), {"data": {}, "seed": 1}) == ["resume=run", "seed=1"]


def test_resume_with_a_sweep_is_refused() -> None:
    with pytest.raises(ConfigError, match="-m"):
        resume_overrides(CommandLine.parse(["-m", "resume=run"]))


@pytest.mark.parametrize(
    "folder", ["outputs/lr=1e-3/2026", "one,two", "a b", "runs/[1]", "x=null", "q'", '"', "nulls", "null\n"]
)
def test_the_folder_to_resume_is_taken_as_it_is_typed(folder: str) -> None:
    assert resume_overrides(CommandLine.parse([f"resume={folder}"])) == (folder, {})


def test_quotes_that_belong_to_a_name_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resume_overrides(CommandLine.parse(["resume='q'"])) == ("q", {})
    (tmp_path / "'q'").mkdir()
    assert resume_overrides(CommandLine.parse(["resume='q'"])) == ("'q'", {})


def test_beside_resume_one_may_say_where_the_cache_is() -> None:
    words = ["resume=run", "data.cache_dir='/my cache'"]
    assert resume_overrides(CommandLine.parse(words)) == ("run", {"data": {"cache_dir": "/my cache"}})
    with pytest.raises(
        ConfigError, match=r"data\.files=a: .*data\.cache_dir, on_nonfinite, devices and compile may be"
    ):
        resume_overrides(CommandLine.parse(["resume=run", "data.files=a"]))


def test_beside_resume_one_may_decide_what_is_done_with_steps_that_are_not_finite() -> None:
    words = ["resume=runs/x", "on_nonfinite=skip", "tracking.wandb=offline"]
    expected = {"on_nonfinite": "skip", "tracking": {"wandb": "offline"}}
    assert resume_overrides(CommandLine.parse(words)) == ("runs/x", expected)
    with pytest.raises(ConfigError, match="on_nonfinite=stop,skip"):
        resume_overrides(CommandLine.parse(["resume=runs/x", "on_nonfinite=stop,skip"]))


def test_beside_resume_one_may_make_the_run_longer_in_one_unit() -> None:
    typed = resume_overrides(CommandLine.parse(["resume=runs/x", "budget.tokens=1e6"]))
    assert typed == ("runs/x", {"budget": {"tokens": 1e6}})
    assert resume_words(Path("runs/x"), {"budget": {"steps": 40}}) == ["resume=runs/x", "budget.steps=40"]
    for words in (["budget.steps=5", "budget.tokens=6"], ["budget.steps=null"]):
        with pytest.raises(ConfigError, match="one length"):
            resume_overrides(CommandLine.parse(["resume=runs/x", *words]))


def test_beside_resume_compile_may_be_typed_for_a_run_that_cannot_go_on_as_it_was() -> None:
    line = CommandLine.parse(["resume=a", "compile=true"])
    assert resume_overrides(line) == ("a", {"compile": True})
