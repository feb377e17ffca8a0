"""What a Hydra user types works, and what it costs."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from apollo_cli.config import config as config_module
from apollo_cli.sweeps import sweep
from apollo_cli.train import run

Words = tuple[str, ...]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def preset(place: Path) -> Callable[[str, str], None]:
    """Writes conf/GROUP/NAME.yaml of the user's own."""

    def write(option: str, content: str) -> None:
        file = place / "conf" / f"{option}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    return write


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The config of every job, by the path of its folder."""
    found = sorted(folder.rglob("config.yaml"))
    return {str(path.parent.relative_to(folder)): yaml.safe_load(path.read_text()) for path in found}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often Hydra composes, and how often a config is parsed."""
    counts = {"compositions": 0, "parsed": 0}
    load, parse = ConfigLoaderImpl.load_configuration, config_module.parse

    def counted_load(*args: Any, **kwargs: Any) -> Any:
        counts["compositions"] += 1
        return load(*args, **kwargs)

    def counted_parse(*args: Any) -> Any:
        counts["parsed"] += 1
        return parse(*args)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted_load)
    monkeypatch.setattr("apollo_cli.config.hydra_syntax.parse", counted_parse)
    return counts


def test_hydra_alone_composes_a_run_and_its_config_is_parsed_once(
    tiny: Words, place: Path, counted: dict[str, int]
) -> None:
    assert run([*tiny, "plan=true", "sampler.k=3"]) == 0
    assert counted == {"compositions": 2, "parsed": 1}


def test_an_experiment_costs_no_composition(tiny: Words, place: Path, counted: dict[str, int]) -> None:
    rest = [word for word in tiny if not word.startswith("size=")]
    assert run([*rest, "plan=true", "experiment=apollo_gpt", "model.heads=1"]) == 0
    assert counted == {"compositions": 2, "parsed": 1}


def test_a_sweep_is_composed_twice_a_job_and_once_for_the_check(
    tiny: Words, place: Path, counted: dict[str, int]
) -> None:
    assert run(["-m", *tiny, "plan=true", "seed=0,1,2"]) == 0
    assert counted["compositions"] <= 2 + 2 * 3 + 3
    assert counted["parsed"] == 3 + 3


def test_a_sweep_preset_of_ones_own_is_a_sweep(
    tiny: Words, place: Path, preset: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "hydra:\n mode: MULTIRUN\n sweeper:\n  params:\n   seed: 0,1\n   sampler.k: 3\n"
    preset("experiment/grid", f"# @package _global_\n{grid}")
    words = [*tiny, "--config-dir", "conf", "experiment=grid", "plan=true", "hydra.sweep.dir=sweep"]
    assert run(words) == 0
    found = {(c["seed"], c["sampler"]["k"]) for c in configs(place / "sweep").values()}
    assert found == {(0, 3), (1, 3)}
    assert "Sweep of 2" in capsys.readouterr().out


def test_a_launcher_preset_of_ones_own_is_taken(
    tiny: Words, place: Path, preset: Callable[[str, str], None]
) -> None:
    preset("hydra/launcher/lab", "defaults: [submitit_local]\nname: ours\ntimeout_min: 5\n")
    words = ["-m", *tiny, "-cd", "conf", "hydra/launcher=lab", "seed=1", "plan=true", "hydra.sweep.dir=sweep"]
    assert run(words) == 0
    assert set(configs(place / "sweep")) == {"0"}


def test_values_from_the_environment_and_of_hydra_are_filled_in(
    tiny: Words, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB", "ours")
    words = ["name=${oc.env:LAB}-${hydra:runtime.choices.sampler}", "+hydra.job.env_set.APOLLO_TRIED=yes"]
    assert run([*tiny, *words, "plan=true"]) == 0
    (found,) = configs(place / "outputs").values()
    assert found["name"] == "ours-lvps"
    assert "APOLLO_TRIED" not in os.environ  # for the job alone


def test_several_experiments_of_which_one_is_ones_own(
    tiny: Words, place: Path, preset: Callable[[str, str], None]
) -> None:
    preset("experiment/mine", "# @package _global_\ndefaults:\n - override /sampler: edge\noptim:\n lr: 0.5\n")
    words = [*(w for w in tiny if not w.startswith(("optim.lr", "size="))), "--config-dir=conf", "plan=true"]
    assert run([*words, "experiment=[apollo_bert,mine]", "hydra.run.dir=run"]) == 0
    found = configs(place)["run"]
    assert (found["sampler"]["kind"], found["optim"]["lr"], found["name"]) == ("edge", 0.5, "apollo_bert")


def test_a_primary_config_of_ones_own(tiny: Words, place: Path, preset: Callable[[str, str], None]) -> None:
    preset("lab", "defaults: [config, _self_]\nname: lab\n")
    assert run([*tiny, "-cd", "conf", "--config-name", "lab", "plan=true", "hydra.run.dir=run"]) == 0
    assert configs(place)["run"]["name"] == "lab"


def test_the_presets_of_the_documentation_are_taken(
    tiny: Words, place: Path, preset: Callable[[str, str], None]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
    as_pasted = r"```yaml\n((?:#[^\n]*\n)?# FOLDER/(\S+)\.yaml\n.*?)```"
    blocks = re.findall(as_pasted, page, re.DOTALL)
    assert {option for _, option in blocks} == {"size/micro", "schedule/halves", "data/own"}
    for text, option in blocks:
        preset(option, text.replace("corpus/*.txt", tiny[-2].removeprefix("data.files=").strip("[]")))
    words = ["size=micro", "schedule=halves", "data=own", "plan=true", "hydra.run.dir=run", tiny[-1]]
    assert run(["--config-dir=conf", *words]) == 0
    found = configs(place)["run"]
    assert (found["model"]["hidden"], found["schedule"]["layers"]) == (32, [2, 4])


def test_files_alone_are_a_corpus_beside_presets_of_ones_own(
    tiny: Words, place: Path, preset: Callable[[str, str], None]
) -> None:
    preset("experiment/mine", "# @package _global_\nname: mine\n")
    words = [word for word in tiny if word != "data=text"]
    assert run([*words, "--config-dir=conf", "plan=true", "hydra.run.dir=run"]) == 0
    assert configs(place)["run"]["data"]["kind"] == "text"


def test_callbacks_and_targets_that_the_user_names_are_used(
    tiny: Words, place: Path, preset: Callable[[str, str], None]
) -> None:
    called = "hydra:\n callbacks:\n  mine:\n   _target_: hydra.experimental.callback.Callback\n"
    preset("experiment/mine", f"# @package _global_\n{called}")
    assert run([*tiny, "-cd", "conf", "experiment=mine", "plan=true"]) == 0
    assert (
        run([*tiny, "-cd", "conf", "experiment=mine", "plan=true", "hydra.callbacks.mine._target_=nowhere.X"]) == 2
    )


def test_a_key_may_be_deleted_where_the_schema_allows_it(
    tiny: Words, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "+hydra.job.env_set.X=1", "~hydra.job.env_set.X", "plan=true"]) == 0
    assert run([*tiny, "~optim.clip", "plan=true"]) == 2
    assert capsys.readouterr().err == "apollo-train: config: optim.clip: missing; type optim.clip=VALUE\n"


@pytest.mark.parametrize(
    ("layout", "folders"),
    [
        ("${hydra.job.override_dirname}", {"sampler.k=1,tracking.notes=a_b", "sampler.k=2,tracking.notes=a_b"}),
        ("k${sampler.k}/${tracking.notes}", {"k1/a_b", "k2/a_b"}),
    ],
)
def test_a_value_with_a_slash_names_one_folder_of_a_sweep(
    layout: str, folders: set[str], tiny: Words, place: Path
) -> None:
    exclude = [word.partition("=")[0] for word in (*tiny, "plan=")]
    words = ["-m", *tiny, "sampler.k=1,2", "tracking.notes=a/b", "plan=true", "hydra.sweep.dir=sweep"]
    words.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(exclude)}]")
    assert run([*words, f"hydra.sweep.subdir='{layout}'"]) == 0
    assert set(configs(place / "sweep")) == folders


@pytest.mark.parametrize(
    ("swept", "remedy"), [("seed=0,1", "${seed}"), ("sampler=lvps,uniform", "${hydra:runtime.choices.sampler}")]
)
def test_jobs_of_one_folder_are_refused_before_the_first_one(
    swept: str, remedy: str, tiny: Words, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *tiny, "optim.lr=0.1,0.2", swept, "plan=true", "hydra.sweep.dir=sweep"]
    assert run([*words, "hydra.sweep.subdir='lr-${optim.lr}'"]) == 2
    said = capsys.readouterr().err
    assert "hydra.sweep.subdir=lr-${optim.lr}: jobs that differ in " + swept.partition("=")[0] in said
    assert f"add {remedy} to it" in said
    assert not (place / "sweep").exists()
    assert run([*words, f"hydra.sweep.subdir='lr-${{optim.lr}}-{remedy}'"]) == 0
    assert len(list((place / "sweep").glob("lr-*"))) == 4


def test_values_that_become_one_name_are_refused_too(
    tiny: Words, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *tiny, "tracking.notes=a/b,a_b", "plan=true", "hydra.sweep.dir=sweep"]
    assert run([*words, "hydra.sweep.subdir='n-${tracking.notes}'"]) == 2
    said = capsys.readouterr().err
    assert "hydra.sweep.subdir=n-${tracking.notes}: jobs that differ in tracking.notes have one folder" in said
    assert "type hydra.sweep.subdir='${hydra.job.num}'" in said
    assert not (place / "sweep").exists()


@pytest.mark.parametrize(("flag", "key"), [("-m", "hydra.sweep.subdir"), ("", "hydra.run.dir")])
def test_a_folder_with_too_long_a_name_is_refused_before_it_is_made(
    flag: str, key: str, tiny: Words, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*([flag] if flag else []), *tiny, "plan=true", f"tracking.notes={'x' * 256}"]
    assert run([*words, key + "='${hydra.job.override_dirname}'", "hydra.sweep.dir=sweep"]) == 2
    said = capsys.readouterr().err
    assert re.search(rf"{key}: a folder would have a name of \d+ bytes, and 255 is the most", said)
    assert not list(place.iterdir())


def test_verbose_shows_our_debug_lines_and_of_others_the_warnings(
    tiny: Words, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", "hydra.verbose=true"]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("DEBUG")]
    assert lines
    assert all(line.startswith("DEBUG apollo_cli.") for line in lines)
    assert run([*tiny, "plan=true"]) == 0
    assert "DEBUG" not in capfd.readouterr().err


def test_information_is_hydras_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--info", "defaults", "model=gpt"]) == 0
    assert "model/gpt" in capfd.readouterr().out
    assert run(["--cfg", "hydra", "--package", "hydra.run"]) == 0
    assert "dir: outputs/" in capfd.readouterr().out


def test_bash_completes_groups_options_and_keys(place: Path) -> None:
    """As Hydra's documentation installs it, in a shell of its own."""
    command = Path(sys.executable).with_name("apollo-train")
    script = f"""
        set -e
        eval "$({command} -sc install=bash)"
        complete_words() {{
            COMP_LINE="{command} $1"; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE); COMP_CWORD=1
            COMPREPLY=(); hydra_bash_completion; echo "$1: ${{COMPREPLY[*]}}"
        }}
        complete_words sampl
        complete_words sampler=lv
        complete_words sampler.k
    """
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert " hydra\n" in done.stderr
    assert " torch\n" not in done.stderr, "a second of each word"
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert lines["sampl"].split() == ["sampler.", "sampler="]
    assert "lvps" in lines["sampler=lv"]
    assert "sampler.k=" in lines["sampler.k"] or "sampler.kind=" in lines["sampler.k"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_can_be_installed_in_other_shells(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-sc", f"install={shell}"]) == 0
    assert "hydra" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=0,0"], "seed=0,0: 0 stands there twice; type each value once"),
        (["optim.lr=interval(1e-4,1e-3)"], "optim.lr=interval(1e-4,1e-3): an interval is searched"),
        (["seed=range(3,3)"], "seed=range(3,3): no value is in it"),
        (["seed=range(0,3,0)"], "seed=range(0,3,0): range() arg 3 must not be zero"),
        (["optim.lr=range(0.1,0.2,0.0)"], "Invalid range values"),
        (["seed=range(0,1000000000)"], "seed=range(0,1000000000): more than 10,000 values"),
        (["seed=shuffle(range(0,1000000000000))"], "more than 10,000 values"),
        (["seed=range(0,200)", "model.mask_fraction=range(0,200)"], "40,000 jobs, and a sweep has at most 10,000"),
        (["sampler=glob(nothing*)"], "sampler=glob(nothing*): no value is in it"),
        (["seed=0,1", "optim.lr=-1"], "optim.lr=-1: should be greater than 0"),
        (["optim.lr=-1,-2"], "config: 2 problems\n  - optim.lr=-1: should be greater than 0\n  - optim.lr=-2: "),
        (["seed=0,1", "hydra.sweeper.max_batch_size=0"], "max_batch_size=0: should be greater than 0"),
        (
            ["experiment=ablation/k", "data.vocab_size=261", "sampler.k=-1,-2"],
            "sampler.k=-2: should be greater",
        ),
        (["experiment=ablation/k,stackbert"], "experiment=ablation/k: it is a sweep itself"),
        (["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "n_jobs"),
        (["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=many"], "n_jobs"),
    ],
)
def test_a_sweep_without_a_job_that_could_run_is_refused_before_the_first(
    words: list[str], message: str, tiny: Words, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = {word.partition("=")[0] for word in words}
    assert run(["-m", *(w for w in tiny if w.partition("=")[0] not in typed), *words]) == 2
    assert message in (error := capsys.readouterr().err)
    assert "Traceback" not in error
    assert list(place.iterdir()) == []


def test_the_jobs_that_will_fail_are_named_before_the_first_one(
    tiny: Words, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = [word for word in tiny if not word.startswith("optim.lr")]
    assert run(["-m", *rest, "optim.lr=1e-3,-1", "sampler.k=2,-2", "plan=true", "hydra.sweep.dir=sweep"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "apollo-train: some jobs of this sweep will fail; the others run\n"
        "  - sampler.k=-2: should be greater than or equal to 0\n  - optim.lr=-1: should be greater than 0\n"
    )
    assert set(configs(place / "sweep")) == {"0"}


SEARCH = ("-m", "hydra/sweeper=optuna", "optim.lr=interval(1e-4,1e-2)", "hydra.sweeper.sampler.seed=0")


def test_a_search_minimises_the_final_validation_loss(
    tiny: Words, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from apollo_cli.sweeps import job

    losses = iter([4.0, float("nan"), 3.5, 5.5])
    monkeypatch.setattr(job, "train_or_continue", lambda *_: {"eval/loss": next(losses)})
    rest = [word for word in tiny if not word.startswith("optim.lr")]
    assert run([*rest, *SEARCH, "hydra.sweeper.n_trials=4", "hydra.sweep.dir=search"]) == 0
    best = yaml.safe_load((place / "search" / "optimization_results.yaml").read_text())
    assert best["best_value"] == 3.5
    out = capsys.readouterr().out
    assert "Sweep of 4" in out
    assert "search/1 completed: no finite validation loss" in out


def test_a_study_that_is_typed_again_continues_its_trials_in_a_new_folder(
    tiny: Words, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = [word for word in tiny if not word.startswith("optim.lr")]
    storage = f"hydra.sweeper.storage=sqlite:///{place}/study.db"
    words = [*rest, *SEARCH, storage, "hydra.sweeper.n_trials=2", "hydra.sweep.dir=search", "budget.steps=4"]
    assert run(words) == 0
    assert run(words) == 0
    assert "search holds trials already: study apollo continues in search_2" in capsys.readouterr().out

    import optuna

    trials = optuna.load_study(study_name="apollo", storage=f"sqlite:///{place}/study.db").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    losses = [trial.value for trial in trials]
    kept = [yaml.safe_load((place / f / "summary.json").read_text()) for f in ("search/0", "search_2/1")]
    assert [losses[0], losses[3]] == [summary["losses"]["eval/loss"] for summary in kept]


def test_the_ends_of_an_interval_are_checked(tiny: Words, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = [word for word in tiny if not word.startswith("optim.lr")]
    words = ["-m", *rest, "hydra/sweeper=optuna", "plan=true", "hydra.sweeper.n_trials=1"]
    assert run([*words, "optim.lr=interval(-2,-1)"]) == 2
    assert "config: " in capsys.readouterr().err
    assert run([*words, "optim.lr=interval(1e-4,1e-3)"]) == 2
    assert "plan=true: a search chooses its jobs by their losses" in capsys.readouterr().err
    assert sweep.Command.current is None


def test_a_refused_job_leaves_nothing_of_hydras_either(tiny: Words, place: Path) -> None:
    words = [*tiny, "hydra.run.dir=run", "hydra.output_subdir=.hydra"]
    assert run([*words, "batch.micro=0"]) == 2
    assert not (place / "run").exists()
    assert run([*words, "plan=true"]) == 0
    assert (place / "run" / ".hydra" / "overrides.yaml").exists()


def test_a_refused_job_deletes_nothing_but_what_hydra_wrote(tiny: Words, place: Path) -> None:
    (place / "runs" / "notes").mkdir(parents=True)
    (place / "runs" / "mine").mkdir()
    (place / "runs" / "mine" / "kept.txt").write_text("kept", encoding="utf-8")
    words = [*tiny, "batch.micro=0"]
    assert run([*words, "hydra.run.dir=runs/new", "hydra.output_subdir=.."]) == 2
    assert run([*words, "hydra.run.dir=runs", "hydra.output_subdir=mine"]) == 2
    assert (place / "runs" / "mine" / "kept.txt").read_text(encoding="utf-8") == "kept"
    assert (place / "runs" / "notes").is_dir()


def test_a_sweep_folder_that_cannot_be_made_is_named_by_its_key(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for folder in ("file", "file/sweep"):
        assert run(["-m", *tiny, "seed=0,1", f"hydra.sweep.dir={folder}"]) == 2
        assert f"hydra.sweep.dir={folder}: cannot be made" in capsys.readouterr().err
