"""The plugins shown in README.md and docs/extending.md run unchanged in a copy of this package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apollo_cli.growth.samplers import sampler
from tests.helpers.pages import PAGES, README, REPOSITORY

SHOWN = README + PAGES["docs/extending.md"]
FILES = dict(re.findall(r"`((?:apollo_cli|conf|tests)/\S+\.\w+)`:\n\n```\w+\n(.*?)```", SHOWN, flags=re.DOTALL))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its configs, and the pages' files beside them."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPOSITORY / "apollo_cli", folder / "apollo_cli")
    shutil.copytree(REPOSITORY / "conf", folder / "apollo_cli" / "conf")
    for name, text in FILES.items():
        path = folder / name.replace("conf/", "apollo_cli/conf/")
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def python(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_a_sampler_an_expander_and_a_schedule_are_shown_each_in_under_20_lines() -> None:
    kinds = [name.rpartition("/")[0] for name in FILES]
    assert {"apollo_cli/growth/plugins", "conf/sampler", "conf/expander", "conf/schedule", "tests/growth"} == set(
        kinds
    )
    assert all(len(text.splitlines()) < 20 for name, text in FILES.items() if not name.startswith("tests/"))


def test_the_shown_tests_pass_and_plugins_are_planned_listed_and_checked_like_shipped_methods(
    checkout: Path, tmp_path: Path
) -> None:
    """In one process: each imports torch."""
    commands = [
        ["sampler=ends", "expander=mirror", "schedule=halves", "plan=true", f"hydra.run.dir={tmp_path}/run"],
        ["sampler=coin", "plan=true", f"hydra.run.dir={tmp_path}/coin"],
        ["--help"],
        ["sampler=ends", "sampler.deep=often"],
    ]
    script = f"""
import pytest
from apollo_cli.train import run
assert pytest.main(["-q", "-p", "no:cacheprovider", "tests/growth/test_mine.py"]) == 0
assert [run(words) for words in {commands}] == [0, 0, 0, 2]
"""
    done = python(checkout, "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "kind: mirror" in (tmp_path / "run" / "config.yaml").read_text()
    assert re.search(r"ends +N or L, and nothing between", done.stdout)
    assert "sampler.deep=often" in done.stderr


_COMMON = "from dataclasses import dataclass\nfrom apollo_cli.growth.samplers import Shallow, sampler\n"
_CLASS = "@sampler('broken')\n@dataclass(frozen=True)\nclass Broken(Shallow):\n    "


BROKEN = {  # text of the plugin, and what is said of it
    "syntax": ("class Broken(:\n", "growth/plugins/syntax.py cannot be imported: SyntaxError: invalid syntax"),
    "type": (f"{_COMMON}import numpy as np\n{_CLASS}table: np.ndarray\n", "plugins/type.py, type: Pydantic"),
    "name": (f"{_COMMON}{_CLASS}table: 'Sequence[float]'\n", "name: NameError: name 'Sequence' is not defined"),
    "taken": (f"{_COMMON}{_CLASS}kind: str\n", "taken: TypeError: its field kind is a key of all methods"),
    "uniform": (f"{_COMMON}{_CLASS}pass\n", "there is a sampler 'uniform' already: apollo_cli.growth.samplers"),
}


def test_a_plugin_that_cannot_be_used_is_named_to_those_who_ask_for_its_method(
    checkout: Path, tmp_path: Path
) -> None:
    """In one process: each imports torch."""
    written: list[Path] = []
    for name, (text, _) in BROKEN.items():
        files = {
            checkout / "apollo_cli" / "growth" / "plugins" / f"{name}.py": text.replace("broken", name),
            checkout / "apollo_cli" / "conf" / "sampler" / f"{name}.yaml": f"kind: {name}\n",
        }
        for path, content in files.items():
            if not path.exists():  # the option of a shipped name
                path.write_text(content, encoding="utf-8")
                written.append(path)
    script = f"""
import sys
from apollo_cli.train import run
for name in {list(BROKEN)}:
    assert run([f"sampler={{name}}", "plan=true"]) == 2
    print("next:", file=sys.stderr)
assert run(["plan=true", "hydra.run.dir={tmp_path}/run"]) == 0
"""
    try:
        done = python(checkout, "-c", script)
        assert done.returncode == 0, done.stderr
        *errors, others = done.stderr.split("next:\n")
        for error, (_, said) in zip(errors, BROKEN.values(), strict=True):
            assert said in error
        assert others == ""
    finally:
        for path in written:
            path.unlink()


def test_a_taken_name_of_a_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="there is a sampler 'lvps' already"):
        sampler("lvps")(type("Another", (), {}))
