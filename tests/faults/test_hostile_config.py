"""A stranger's config, or a pasted override, runs no code and takes no secret along."""

import builtins
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from apollo_cli.train import run
from tests.conftest import TINY

SECRET = "a-key-that-nobody-may-see"

CALLS = """
  _target_: os.mkdir
  path: MARK
"""
BROUGHT = {
    "callback": f"hydra:\n callbacks:\n  x:\n{CALLS.replace(chr(10), chr(10) + '  ')}",
    "logging factory": "hydra:\n job_logging:\n  formatters:\n   x:\n    (): os.mkdir\n    path: MARK\n",
    "logging of Hydra": "hydra:\n hydra_logging:\n  version: 1\n  handlers:\n   x:\n    class: os.mkdir\n",
    "launcher": "hydra:\n launcher:\n  _target_: os.mkdir\n  path: MARK\n",
    "inside the sweeper": "hydra:\n sweeper:\n  params:\n   x:\n    _target_: os.mkdir\n    path: MARK\n",
    "environment": "hydra:\n job:\n  env_set:\n   PYTHONPATH: MARK\n",
    "target": "model:\n _target_: os.mkdir\n path: MARK\n",
    "secret": "name: ${oc.env:SECRET}\ntracking:\n project: ${oc.env:SECRET}\n",
    "secret in parts": "tracking:\n project: x-${ oc.env:SECRET}\n",
    "decoded": "name: ${oc.decode:'1'}\n",
    "created": "name: ${oc.create:x}\n",
    "run directory": "hydra:\n run:\n  dir: MARK\n",
    "cells": "hydra:\n sweep:\n  subdir: ../../../MARK\n",
    "output": "hydra:\n output_subdir: ../../MARK\n",
}


HOW = ("joined", "searchpath", "swept", "shown")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    return tmp_path


def _made(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.name != "brought"]


def _bring(place: Path, content: str) -> None:
    folder = place / "brought" / "experiment"
    folder.mkdir(parents=True)
    (folder / "theirs.yaml").write_text("# @package _global_\n" + content.replace("MARK", str(place / "mark")))


@pytest.mark.parametrize("what", BROUGHT)
@pytest.mark.parametrize("how", ["config-dir", *(pytest.param(how, marks=pytest.mark.faults) for how in HOW)])
def test_what_a_brought_config_may_not_do_is_refused_before_anything_happens(
    what: str, how: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _bring(place, BROUGHT[what])
    words: Sequence[str] = {
        "config-dir": ["--config-dir", "brought", "experiment=theirs"],
        "joined": [f"--config-dir={place}/brought", "experiment=theirs"],
        "searchpath": [f"hydra.searchpath=[file://{place}/brought]", "experiment=theirs"],
        "swept": ["--config-dir", "brought", "-m", "experiment=apollo_gpt,theirs"],
        "shown": ["--config-dir", "brought", "experiment=theirs", "--cfg", "job"],
    }[how]
    assert run([*words, "plan=true"]) == 2
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert said.err.startswith("apollo-train: config: ")
    assert "Traceback" not in said.err
    assert _made(place) == []


@pytest.mark.parametrize(
    "words",
    [
        ["+hydra.callbacks.x._target_=os.mkdir", "+hydra.callbacks.x.path=mark"],
        ["++hydra.job_logging.handlers.x.class=os.mkdir"],
        ["hydra/job_logging=default"],
        ["hydra.launcher._target_=os.mkdir", "+hydra.launcher.path=mark", "-m", "seed=1,2"],
        ["+hydra.job.env_set.PYTHONPATH=mark"],
        ["hydra.output_subdir=../../mark"],
        ["name=${oc.env:SECRET}"],
        ["tracking.project='${oc.env:SECRET}'"],
        ["-m", "tracking.project=a,'${oc.env:SECRET}'"],
        ["+model._target_=os.mkdir"],
        ["--experimental-rerun", "config.pickle"],
        ["--experimental-r=config.pickle"],
        ["--config-path", "."],
        ["-cp", "."],
        ["--config-name=theirs"],
        ["--config-di", "."],
    ],
)
def test_what_is_pasted_may_not_do_it_either(
    words: list[str], place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("a pickle was loaded"))
    monkeypatch.setattr(builtins, "eval", lambda *_: pytest.fail("something was evaluated"))
    assert run([*words, "plan=true"]) == 2
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert said.err.startswith("apollo-train: config: ")
    assert _made(place) == []


def test_an_honest_config_of_ones_own_is_read(place: Path, corpus_file: Path) -> None:
    (place / "brought" / "sampler").mkdir(parents=True)
    (place / "brought" / "sampler" / "mine.yaml").write_text("kind: lvps\nk: 3.5\nlower: 0.2\novershoot: 1.0\n")
    _bring(
        place, "defaults:\n - _self_\n - override /sampler: mine\nname: theirs-${hydra:runtime.choices.sampler}\n"
    )
    words = ["--config-dir", "brought", "experiment=theirs", f"data.files=[{corpus_file}]", "plan=true"]
    assert run([*TINY, *words, "hydra.run.dir=typed"]) == 0
    config = yaml.safe_load((place / "typed" / "config.yaml").read_text())
    assert (config["sampler"]["k"], config["name"]) == (3.5, "theirs-mine")


@pytest.mark.parametrize("name", ["../up", "/tmp/abs", "a/b", "..", ".hidden", "a\nb", "a\0b", "~", ""])
def test_a_name_is_no_path(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([f"name='{name}'", "plan=true"]) == 2
    assert "name" in capfd.readouterr().err
    assert list(place.iterdir()) == []


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "content",
    [
        b"!!python/object/apply:os.mkdir [mark]",
        b"seed: !!python/object/apply:os.mkdir [mark]",
        b"!!python/name:os.system",
        BOMB.encode(),
        b"a: " + b"[" * 100_000,
        b"\xff\xfe\x00",
        b"seed: \x00",
        b"",
        b"- 1",
        b"format: 2\n" + b"#" * 17_000_000,
        b"format: 2\nseed: ${oc.env:SECRET}\nname: ${oc.env:SECRET}\n",
    ],
)
def test_a_strangers_run_directory_is_refused(
    content: bytes, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "theirs").mkdir()
    (place / "theirs" / "config.yaml").write_bytes(content)
    (place / "theirs" / "plan.json").write_text('{"steps": 12}')
    before = sorted((place / "theirs").iterdir())
    assert run(["resume=theirs"]) == 2
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert "Traceback" not in said.err
    assert "config" in said.err
    assert sorted((place / "theirs").iterdir()) == before
    assert not (place / "mark").exists()


def test_what_looks_like_an_interpolation_in_a_saved_config_stays_text(
    tiny: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", "hydra.run.dir=theirs"]) == 0
    path = place / "theirs" / "config.yaml"
    values = yaml.safe_load(path.read_text()) | {"plan": False}
    values["tracking"]["project"] = "${oc.env:SECRET}"
    path.write_text(yaml.safe_dump(values))
    assert run(["resume=theirs"]) == 0
    assert all(SECRET.encode() not in p.read_bytes() for p in place.rglob("*") if p.is_file())
    assert SECRET not in "".join(capfd.readouterr())
