"""Every `apollo-glue` command of README.md and docs/ runs, with fewer steps."""

import shutil
from pathlib import Path

import pytest

from apollo_cli.glue.command import run
from tests.helpers.pages import COMMANDS

GLUE = [words[1:] for words in COMMANDS if words[0] == "apollo-glue"]
EACH = [
    pytest.param(words, id=" ".join(words), marks=[pytest.mark.slow] if "task=all" in words else [])
    for words in GLUE
]


@pytest.mark.parametrize("words", EACH)
def test_every_command_runs(
    words: list[str],
    pretrained: Path,
    glue_dir: Path,
    quick: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    key, _, place = words[0].partition("=")
    run_dir = Path(place).parent if key == "resume" else Path(place)
    shutil.copytree(pretrained / "model" if key == "model" else pretrained, run_dir)
    shutil.copytree(glue_dir, "glue")
    if key == "resume":
        assert run([f"run={run_dir}", "task=rte", *quick]) == 0
        assert run(words) == 0
        return
    typed = {word.partition("=")[0] for word in words}
    less = [word for word in quick if word.partition("=")[0] not in typed]
    assert run([*words, *less, "glue.epochs=1"]) == 0


def test_the_three_ways_are_there() -> None:
    assert {words[0].partition("=")[0] for words in GLUE} == {"run", "model", "resume"}
