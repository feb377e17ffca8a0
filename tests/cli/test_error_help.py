from pathlib import Path

import pytest
from hydra.errors import HydraException

from apollo_cli.cli import error_help
from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.error_help import explained
from apollo_cli.train import run

OF_HYDRA = HydraException(
    "Could not override 'hydra.nothing'.\nTo append to your config use +hydra.nothing=1\nmore"
)


def problems(*words: str) -> list[str]:
    return explained(CommandLine.parse(words), OF_HYDRA).problems


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("smapler=lvps", ["smapler: no such key or group", "did you mean sampler?"]),
        (
            "sampler=lvp",
            [
                "sampler=lvp: no such option",
                "did you mean lvps?",
                "edge, full, lvps, prefixes, shallow, subset, uniform",
            ],
        ),
        ("sampler.kk=2", ["sampler.kk: no such key", "did you mean sampler.k?"]),
        ("lr=1e-3", ["lr: no such key", "did you mean optim.lr?"]),
        ("layers=3", ["layers: no such key", "did you mean model.layers or schedule.layers?"]),
        ("train.lr=1e-3", ["train.lr: no such key", "did you mean optim.lr?"]),
        ("budget.step=5", ["budget.step: no such key", "did you mean budget.steps?"]),
        (
            "sampler=uniform sampler.k=2",
            ["sampler.k", "a chosen sampler has no such key", "sampler=lvps"],
        ),
        ("expander=stack expander.mode=linear", ["expander.mode", "expander=interpolate"]),
        ("foo", ["foo: not understood", "KEY=VALUE"]),
        ("schedule.layers=[1,3", ["schedule.layers=[1,3: not understood", "'KEY=[1,2]' in quotes"]),
        ("+foo=1", ["foo: no such key"]),
        ("seed=0,1", ["seed=0,1", "a sweep", "-m"]),
        ("sampler=lvps,uniform", ["sampler=lvps,uniform", "a sweep", "-m"]),
        ("seed=abc", ["seed=abc", "integer"]),
        ("model=null", ["model=None: no such option", "bert, gpt"]),
        ("hydra.nothing=1", ["Could not override 'hydra.nothing'", "+hydra.nothing=1"]),
        (
            "data.tokenizer=bytes data.vocab_size=300",
            ["data.vocab_size=300", "bytes has 261 entries for model=bert", "leave data.vocab_size out"],
        ),
        ("-m sampler=lvps,uniform sampler.kk=2", ["sampler.kk: no such key"]),
        ("-m sampler=lvps,uniform sampler.k=2", ["sampler.k", "a chosen sampler", "sampler=lvps"]),
        ("-m model=bert,gpt model.mask_fraction=0.2", ["model.mask_fraction", "a chosen model", "model=bert"]),
        ("-m sampler=lvps,unifrm", ["sampler=unifrm: no such option; did you mean uniform?"]),
        ("-m sede=0,1", ["sede: no such key or group; did you mean seed?"]),
        ("=1", ["=1: there is no key before the ="]),
        ("+=a", ["+=a: there is no key before the ="]),
        ("experiment=[apollo_bert,apolo_gpt]", ["experiment=apolo_gpt: no such option; did you mean apollo_gpt?"]),
        ("expander.source=here/run", ["expander.source=here/run: renamed to init_from.path=here/run"]),
        ("model.mask_words=true", ["model.mask_words=true: renamed to model.whole_word_masking=true"]),
        ("experiment=late_silent", ["experiment=late_silent: renamed to experiment=late_zero_init"]),
        ("budget.steps=10 budget.tokens=5e3", ["exactly one budget"]),
    ],
)
def test_a_wrong_word_is_named_with_the_closest_name(words: str, parts: list[str]) -> None:
    (problem,) = problems(*words.split())
    assert all(part in problem for part in parts), problem


def test_all_problems_of_a_command_line_are_in_one_message() -> None:
    found = problems("foo", "smapler=lvps", "sampler=lvp", "optim.lrr=1", "seed=abc", "batch.micro=5")
    assert len(found) == 6
    for words in ("foo: ", "smapler: ", "sampler=lvp: ", "optim.lrr: ", "seed=abc: ", "batch.micro=5 "):
        assert sum(problem.startswith(words) for problem in found) == 1, words


@pytest.mark.parametrize(
    "words", ["-cd mine nothing=1", "hydra.searchpath=[file:///x] nothing=1", "seed=1 model=gpt"]
)
def test_what_cannot_be_judged_here_is_left_to_hydra(words: str) -> None:
    assert problems(*words.split()) == [
        "Could not override 'hydra.nothing'. To append to your config use +hydra.nothing=1"
    ]


def test_names_in_folders_of_the_user_are_known(tmp_path: Path) -> None:
    for option, text in (
        ("experiment/mine", "# @package _global_\noptim:\n  lr: 2e-3\n"),
        ("data/own", "defaults: [text, _self_]\n"),
    ):
        (tmp_path / option).parent.mkdir(exist_ok=True)
        (tmp_path / f"{option}.yaml").write_text(text, encoding="utf-8")
    for place in (f"--config-dir={tmp_path}", f"hydra.searchpath=[file://{tmp_path}]"):
        assert "did you mean mine?" in problems(place, "experiment=mien")[0]
        assert problems(place, "modle=gpt") == ["modle: no such key or group; did you mean model?"]
        (of_key,) = problems(place, "experiment=mine", "data=own", "data.filess=a", "data.files=a")
        assert of_key == "data.filess: no such key or group; did you mean data.files?"
        assert "it belongs to data=text, data=own" in problems(place, "data=pydocs", "data.files=a")[0]


def test_an_error_in_a_file_of_the_user_is_left_to_hydra(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("defaults:\n - nowhere\n", encoding="utf-8")
    assert problems(f"--config-dir={tmp_path}", "experiment=mine")[0].startswith(
        "Could not override 'hydra.nothing'"
    )


def test_a_text_that_is_not_understood_is_to_be_typed_in_both_quotes() -> None:
    (problem,) = problems("data.files=a,b (1)=x.txt")
    assert "texts with special characters 'KEY=\"VALUE\"' in both quotes" in problem


@pytest.mark.parametrize("more", [[], ["-m", "seed=0,1"]])
def test_an_experiment_that_sets_keys_of_its_own_alone_is_refused(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("name: mine\noptim:\n  lrr: 2e-3\n", encoding="utf-8")
    folders = (f"hydra.{kind}.dir={tmp_path}/new" for kind in ("run", "sweep"))
    assert run(["--config-dir", str(tmp_path), "experiment=mine", "plan=true", *folders, *more]) == 2
    assert capsys.readouterr().err == (
        "apollo-train: config: experiment=mine: name, optim would be set for the experiment alone; "
        "its file must begin with `# @package _global_`\n"
    )
    assert not (tmp_path / "new").exists()


def test_a_word_that_hydra_itself_cannot_compose_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["seed=1", "hydra.sweeper.params.seed=0"]) == 2
    said = capsys.readouterr().err
    assert said == "apollo-train: config: hydra.sweeper.params.seed=0: Unexpected type for root: NoneType\n"
    assert run(["hydra/launcher=0"]) == 2
    assert capsys.readouterr().err.startswith("apollo-train: config: hydra/launcher=0: Config group override must")


def test_an_experiment_without_its_package_is_refused_with_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.parent.mkdir()
    text = "defaults:\n  - override /model: gpt\n  - _self_\nname: mine\n"
    mine.write_text(text, encoding="utf-8")
    words = ["--config-dir", str(tmp_path), "experiment=mine", "plan=true", f"hydra.run.dir={tmp_path}/run"]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert "experiment=mine: In 'experiment/mine': Could not override" in said
    assert "only if its file begins with `# @package _global_`" in said
    mine.write_text(f"# @package _global_\n{text}", encoding="utf-8")
    assert run(words) == 0


@pytest.mark.parametrize(
    ("word", "extra"), [("hydra/sweeper=optuna", "optuna"), ("hydra/launcher=slurm_node", "slurm")]
)
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(
    word: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_help, "find_spec", lambda name: None)
    assert problems("-m", "seed=0,1", word)[0].endswith(f"type pip install 'apollo-train[{extra}]'")
