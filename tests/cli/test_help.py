import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apollo_cli.cli.help import groups, page

CONF = Path(__file__).parents[2] / "conf"
PATHS = [path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/**/*.yaml") if "hydra" not in path.parts]
OPTIONS = {(path.parts[0], "/".join(path.parts[1:])) for path in PATHS if not path.name.startswith("_")}


def test_groups_are_the_folders_and_options_the_files_of_conf() -> None:
    listed = [(group, option) for group, options in groups().items() for option in options]
    assert set(listed) == OPTIONS
    assert len(listed) == len(OPTIONS)


@pytest.mark.parametrize(("group", "option"), sorted(OPTIONS))
def test_the_page_names_every_option_below_its_group_with_a_sentence(group: str, option: str) -> None:
    lines = page().splitlines()
    below = lines[lines.index(group) + 1 :]
    section = below[: next(i for i, line in enumerate(below) if not line.startswith("  "))]
    (line,) = [line for line in section if line.split()[0] == option]
    assert len(line.split()) > 1, "an option without a sentence"


def test_the_page_fits_a_wide_terminal_and_ends_its_last_line() -> None:
    assert max(map(len, page().splitlines())) <= 120
    assert page().endswith("\n")


@pytest.mark.parametrize(
    "words",
    ["plan=true", "resume=RUN_DIR", "budget.tokens", "-m", "--cfg job", "experiment=", "seed=", "apollo-train"],
)
def test_the_page_shows_how_to_start(words: str) -> None:
    assert words in page()


def test_help_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys, apollo_cli.train\n"
        "assert apollo_cli.train.run(['--help']) == 0\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'datasets', 'wandb', 'numpy', 'transformers', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == page().strip()


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_comes_within_a_second(flag: str) -> None:
    seconds = []
    for _ in range(3):  # the machine may be busy
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "apollo_cli.train", flag], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
        assert done.stdout.decode().strip() == page().strip()
    assert min(seconds) < 1


def test_the_sentences_of_a_group_begin_below_each_other() -> None:
    for group, options in groups().items():
        block = page().partition(f"\n{group}\n")[2].splitlines()[: len(options)]
        ends = {len(line) - len(line[2:].partition(" ")[2].lstrip()) for line in block if line.strip()}
        assert len(ends) == 1, group


@pytest.mark.parametrize("word", ["--help", "--version", "--schema"])
def test_nobody_has_to_read_to_the_end(word: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        done = subprocess.run([sys.executable, "-m", "apollo_cli.train", word], stdout=out, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stderr == b""
