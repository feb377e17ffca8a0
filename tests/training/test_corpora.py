"""Runs on mixtures, streams and other tokenizers, and the inspection of a corpus without a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.data import cache_folder
from apollo_cli.errors import ApolloError, CheckpointError
from apollo_cli.signals import Interrupted
from apollo_cli.train import run
from apollo_cli.training.run import resume, train
from tests.conftest import STEPS, TINY, read_rows, without_clocks
from tests.training.test_resume import raises, stop_after


@pytest.fixture
def streamed(corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Makes the config of a tiny run on a dataset that is streamed, whose files are in tmp_path/hub."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    texts = corpus_file.read_text(encoding="utf-8").split("\n\n")
    (tmp_path / "hub").mkdir()
    rows = [{"text": f"{i} {text}"} for i in range(2) for text in texts]
    (tmp_path / "hub" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rest = [word for word in TINY if word != "data=text"]
    words = ["data=hub", *rest, f"data.path={tmp_path}/hub", "data.streaming=true", "data.tokenizer=bytes"]
    words = [word for word in words if not word.startswith("data.vocab_size")]
    cache_folder.make(tmp_path / "cache")
    return lambda *more: parse(compose_values([*words, f"data.cache_dir={tmp_path}/cache", *more]))


@pytest.mark.parametrize("forgotten", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stream_is_resumed_at_its_exact_position(
    streamed: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    """Also if the packed rows were deleted meanwhile, so that the stream is read again."""
    train(streamed(), tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_after(7, lambda: raises(KeyboardInterrupt()), patch)
        with pytest.raises(Interrupted):
            train(streamed(), tmp_path / "run")
    if forgotten:
        for folder in (tmp_path / "cache").glob("*/"):
            shutil.rmtree(folder)
    resume(tmp_path / "run")
    assert without_clocks(read_rows(tmp_path / "run")) == without_clocks(read_rows(tmp_path / "straight"))
    (packed,) = (tmp_path / "cache").glob("*/training.bin")
    assert packed.stat().st_size == STEPS * 4 * 16 * 2  # steps, rows, tokens, bytes: not one more


def test_a_stream_that_changed_is_not_resumed(
    streamed: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(7, lambda: raises(KeyboardInterrupt()), patch)
        with pytest.raises(Interrupted):
            train(streamed(), tmp_path / "run")
    for folder in (tmp_path / "cache").glob("*/"):
        shutil.rmtree(folder)
    lines = (tmp_path / "hub" / "a.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "hub" / "a.jsonl").write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="the corpus is not the one that this run began with"):
        resume(tmp_path / "run")


def test_streamed_runs_of_other_lengths_have_the_same_validation_rows(
    streamed: Callable[..., Config], tmp_path: Path
) -> None:
    found = []
    for steps in (8, 12):
        train(streamed(f"budget.steps={steps}"), tmp_path / str(steps))
        found.append(json.loads((tmp_path / str(steps) / "summary.json").read_text())["data"])
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    assert found[0]["evaluation_rows"] == found[1]["evaluation_rows"] == 4
    assert (found[0]["training_rows"], found[1]["training_rows"]) == (32, 48)


def test_a_mixture_trains_and_is_resumed_exactly(
    tiny: tuple[str, ...], corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text("".join(json.dumps({"text": f"{i} other words"}) + "\n" for i in range(400)), encoding="utf-8")
    sources = f"data.sources=[{{kind:text,files:{corpus_file},weight:3}},{{kind:text,files:[{other}],weight:1}}]"
    words = ["data=mixture", sources, "model=gpt", *(w for w in tiny if not w.startswith(("data=", "data.files")))]
    assert run([*words, f"hydra.run.dir={tmp_path}/straight"]) == 0
    with monkeypatch.context() as patch:
        stop_after(7, lambda: raises(KeyboardInterrupt()), patch)
        assert run([*words, f"hydra.run.dir={tmp_path}/run"]) == 130
    assert run([f"resume={tmp_path}/run"]) == 0
    assert without_clocks(read_rows(tmp_path / "run")) == without_clocks(read_rows(tmp_path / "straight"))


def test_a_corpus_can_be_inspected_without_a_run(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*tiny, "data.inspect=true", "model.whole_word_masking=true", "seed=7"]) == 0
    shown = capsys.readouterr().out
    for said in (
        "The corpus",
        "documents",
        "bytes per token",
        "exact copies",
        "→[MASK]⟧",
        "fingerprint ",
        "packed rows in ",
    ):
        assert said in shown
    assert "Plan:" not in shown
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [
        ("bert", "unigram"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("bert", "bpe"), ("gpt", "unigram")]),
    ],
)
def test_other_tokenizers_are_trained_exported_and_read_by_transformers(
    tiny: tuple[str, ...], tmp_path: Path, kind: str, tokenizer: str
) -> None:
    from transformers import AutoTokenizer

    entries = 270 if tokenizer == "unigram" else 300
    words = [*tiny, f"model={kind}", f"data.tokenizer={tokenizer}", f"data.vocab_size={entries}"]
    words += ["model.whole_word_masking=true"] * (kind == "bert")
    assert run([*words, f"hydra.run.dir={tmp_path}/run"]) == 0
    exported = tmp_path / "run" / "model"
    theirs, ours = AutoTokenizer.from_pretrained(exported), Tokenizer.from_file(str(exported / "tokenizer.json"))
    for text in ("some words", "Ünïcode 日本 😀", "  odd \n space "):
        assert theirs(text)["input_ids"] == ours.encode(text).ids


@pytest.mark.parametrize(
    "data",
    [
        ["data=text", "data.files=[/nonexistent/x.txt]"],
        ["data=text", "data.files={corpus}", "data.validation_files=/nonexistent/x.txt"],
        ["data=mixture", "data.sources=[{{kind:pydocs}},{{kind:text,files:/nonexistent/x.txt}}]"],
        ["data=text", "data.files={corpus}", "data.tokenizer=/nonexistent/x.txt"],
    ],
)
def test_a_plan_names_a_missing_file(
    data: list[str], corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(corpus=corpus_file) for word in data]
    assert run([*words, "plan=true", f"hydra.run.dir={tmp_path}/run"]) == 2
    assert "/nonexistent/x.txt" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("data", "key"), [("text", "files"), ("hub", "path"), ("mixture", "sources")])
def test_a_plan_without_a_corpus_is_refused(
    data: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([f"data={data}", "plan=true", f"hydra.run.dir={tmp_path}/run"]) == 2
    assert f"apollo-train: data.{key} is empty: name" in capsys.readouterr().err


def test_a_stream_is_not_made_longer_and_nothing_of_the_run_changes(
    streamed: Callable[..., Config], tmp_path: Path
) -> None:
    """A longer run would pack more rows and read them in another order."""
    constant = ("schedule=scratch", "optim.schedule=constant", "optim.warmup=0")
    train(streamed(*constant), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(ApolloError, match=r"budget\.steps=20: of a stream .*init_from\.path="):
        resume(tmp_path / "run", {"budget": {"steps": 20}})
    with pytest.raises(ApolloError, match="this run is complete, there is nothing to resume; a new run begins"):
        resume(tmp_path / "run")
    assert {path: path.read_bytes() for path in before} == before
    more = (f"init_from.path={tmp_path}/run", "init_from.data=true")
    with pytest.raises(ApolloError, match=r"init_from\.data=true: of a stream"):
        train(streamed(*constant, *more), tmp_path / "second")
