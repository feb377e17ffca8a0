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
    "sweep that nobody asked for": "hydra:\n mode: MULTIRUN\n",
    "words of a sweep": "hydra:\n sweeper:\n  params:\n   seed: 0,1\n   hydra.sweep.dir: MARK\n",
    "logging of a sweep": "hydra:\n mode: MULTIRUN\n sweeper:\n  params:\n   +hydra.job_logging.handlers.x: "
    "'{class: logging.FileHandler, filename: MARK, mode: w}'\n",
    "words of the command": "hydra:\n overrides:\n  task: [hydra.sweep.dir=MARK]\n",
    "words for each cell": "hydra:\n overrides:\n  hydra: [hydra.job.chdir=true]\n",
    "folder of the jobs": "hydra:\n job:\n  chdir: true\n",
    "resolver made of values": "name: env\ntracking:\n project: ${oc.${name}:SECRET}\n",
    "resolver in a resolver": "tracking:\n project: ${hydra:${oc.env:SECRET}}\n",
    "key like a path": "tracking.project: x\ntracking:\n project: ${oc.env:SECRET}\n",
    "name like a path": "name: ../mark\n",
    "name in parts": "tracking:\n project: ../mark\nname: ${tracking.project}\n",
    "secret in a choice": "defaults:\n - _self_\n - override /tracking: ${oc.env:SECRET}\n",
    "secret in a choice of theirs": "defaults:\n - _self_\n - /more: ${oc.env:SECRET}\n",
    "cache": "data:\n cache_dir: MARK/cache\n",
    "cache in parts": "name: mark\ndata:\n cache_dir: ${name}\n",
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
        ["name='${oc.${tracking.project}:SECRET}'", "tracking.project=env"],
        ["seed=${oc.env:SECRET}"],
        ["seed=${oc.env:SECRET}", "smapler=lvps"],
        ["-m", "seed=0,1", "optim.lr=${oc.env:SECRET}"],
        ["hydra.run.dir=${oc.env:SECRET}"],
        ["-m", "seed=0,1", "hydra.sweep.dir=${oc.env:SECRET}"],
        ["hydra.job.name=${oc.env:SECRET}"],
        ["tracking.project='${hydra:overrides.task}'", "name='${oc.env:SECRET}'"],
        ["hydra.run.dir=${tracking.project}/x", "tracking.project=../mark"],
        ["hydra.mode=MULTIRUN"],
        ["+hydra.sweeper.params.seed=1", "-m"],
        ["hydra.sweeper.params={seed:1}", "-m"],
        ["hydra={run:{dir:mark}}"],
        ["-m", "name=../mark,b"],
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


def test_a_sweep_over_brought_configs_is_looked_at_cell_by_cell(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each value is harmless beside the defaults; two together are not."""
    _bring(place, "name: ${tracking.project}\n")
    (place / "brought" / "tracking").mkdir()
    (place / "brought" / "tracking" / "mine.yaml").write_text("defaults: [local, _self_]\nproject: ../mark\n")
    words = ["--config-dir", "brought", "-m", "experiment=apollo_gpt,theirs", "plan=true"]
    assert run([*words, "tracking=local,mine"]) == 2
    assert capfd.readouterr().err.startswith("apollo-train: config: name=../mark: ")
    assert _made(place) == []


def test_the_folders_that_are_looked_at_are_those_that_are_read(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Hydra would read the first folder before the second; a name that it would not take as it is, elsewhere."""
    _bring(place, BROUGHT["secret"])
    (place / "fine" / "experiment").mkdir(parents=True)
    (place / "fine" / "experiment" / "theirs.yaml").write_text("# @package _global_\nname: fine\n")
    more = f"hydra.searchpath=[file://{place}/fine]"
    assert run(["--config-dir", "brought", more, "experiment=theirs", "plan=true"]) == 2
    assert "beside --config-dir" in capfd.readouterr().err
    (place / "brought").rename(place / "fine,x")
    assert run(["--config-dir", "fine,x", "experiment=theirs", "plan=true"]) == 2
    assert "resolver is not allowed" in capfd.readouterr().err
    assert run(["--config-dir", "${name}", "experiment=theirs", "plan=true"]) == 2
    assert "may not be in its path" in capfd.readouterr().err
    assert {path.name for path in place.iterdir()} == {"fine", "fine,x"}


def test_what_is_typed_beside_brought_configs_chooses_no_option_by_the_environment(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _bring(place, "name: fine\n")
    for word in ("experiment=${oc.env:SECRET}", "experiment=1"):
        assert run(["--config-dir", "brought", word, "plan=true"]) == 2
        said = capfd.readouterr()
        assert SECRET not in said.out + said.err
        assert said.err.startswith("apollo-train: config: ")
    assert _made(place) == []


@pytest.mark.parametrize(
    "option", ["o${now:%f}", "o${hydra:job.name}", "o${oc.decode:1}", "o${oc.env:SECRET,1}", "o${oc.select:seed}"]
)
def test_no_list_of_defaults_chooses_by_more_than_other_choices(
    option: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The clock would choose another option when Hydra composes than when the guard did."""
    (place / "brought" / "mine").mkdir(parents=True)
    (place / "brought" / "mine" / "o1.yaml").write_text("seed: 1\n")
    _bring(place, f'defaults:\n - "/mine@_global_: {option}"\nname: theirs\n')
    assert run([*TINY, "--config-dir", "brought", "experiment=theirs", "plan=true"]) == 2
    said = capfd.readouterr()
    assert said.err.startswith("apollo-train: config: ")
    assert SECRET not in said.out + said.err
    assert _made(place) == []


@pytest.mark.parametrize(
    "params", ["{optim.lr: '1,2'}", "{hydra.sweep.dir: MARK}", "{+hydra.job.chdir: 'true'}", "{a: 1}"]
)
def test_beside_a_sweep_of_ours_no_brought_config_has_a_grid(
    params: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "brought" / "tracking").mkdir(parents=True)
    (place / "brought" / "tracking" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [local@tracking, _self_]\n"
        f"hydra:\n sweeper:\n  params: {params.replace('MARK', str(place / 'mark'))}\n"
    )
    _bring(place, "name: mine\n")
    words = ["--config-dir", "brought", "-m", "tracking=mine", "plan=true"]
    for experiment in ("ablation/k", "theirs"):
        assert run([*words, f"experiment={experiment}"]) == 2
        assert "hydra.sweeper" in (said := capfd.readouterr().err)
        assert "Traceback" not in said
    assert _made(place) == []


def test_a_brought_experiment_does_not_take_the_place_of_a_sweep_of_ours(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _bring(place, "name: mine\n")
    brought = place / "brought" / "experiment"
    (brought / "ablation").mkdir()
    (brought / "theirs.yaml").rename(brought / "ablation" / "k.yaml")
    words = ["--config-dir", "brought", "-m", "experiment=ablation/k", "seed=0", "plan=true"]
    assert run([*TINY[8:10], *words, "model.layers=4", "sampler.k=1", "hydra.sweep.dir=sweep"]) == 0
    assert "name: ablation_k\n" in (place / "sweep" / "0" / "config.yaml").read_text()


def test_beside_a_sweep_of_ours_a_brought_option_is_one_more(place: Path) -> None:
    (place / "brought" / "sampler").mkdir(parents=True)
    (place / "brought" / "sampler" / "mine.yaml").write_text("kind: lvps\nk: 3.5\nlower: 0.2\novershoot: 1.0\n")
    words = ["--config-dir", "brought", "-m", "experiment=ablation/samplers", "sampler=lvps,mine", "seed=0"]
    assert run([*words, "plan=true", "hydra.sweep.dir=sweep"]) == 0
    cells = {path.parent.name: yaml.safe_load(path.read_text()) for path in place.glob("sweep/*/config.yaml")}
    assert set(cells) == {"0", "1", "scratch-0"}
    assert cells["1"]["sampler"]["k"] == 3.5


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


def test_a_cache_that_only_a_config_names_is_used_if_it_is_one_already(
    corpus_file: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _bring(place, "data:\n cache_dir: cache\n")
    words = [*TINY, f"data.files=[{corpus_file}]", "--config-dir", "brought", "experiment=theirs"]
    assert run([*words, "hydra.run.dir=run"]) == 2
    assert "type 'data.cache_dir=cache' yourself" in capfd.readouterr().err
    assert _made(place) == []
    assert run([*words, "data.cache_dir=cache", "hydra.run.dir=run"]) == 0
    assert (
        (place / "cache" / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    )
    assert run([*words, "plan=true", "hydra.run.dir=again"]) == 0


def test_a_strangers_run_does_not_choose_the_cache(
    tiny: tuple[str, ...], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", "hydra.run.dir=theirs"]) == 0
    path = place / "theirs" / "config.yaml"
    values = yaml.safe_load(path.read_text()) | {"plan": False}
    values["data"]["cache_dir"] = str(place / "mine")
    path.write_text(yaml.safe_dump(values))
    (place / "mine").mkdir()
    assert run(["resume=theirs"]) == 2
    assert f"type 'data.cache_dir={place}/mine' yourself, beside resume=" in capfd.readouterr().err
    assert list((place / "mine").iterdir()) == []
    assert run(["resume=theirs", f"data.cache_dir={place}/mine"]) == 0


def test_a_refused_corpus_leaves_no_cache(tiny: tuple[str, ...], place: Path) -> None:
    rest = [word for word in tiny if not word.startswith(("data.files=", "data.cache_dir="))]
    (place / "mine").mkdir()
    for folder in ("mine", "new/cache"):
        assert run([*rest, "data.files=[gone.txt]", f"data.cache_dir={folder}"]) == 2
    assert list(place.rglob("*")) == [place / "mine"]
