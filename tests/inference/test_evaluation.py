"""apollo-eval: the same loss as in training, and sums worked anew for everything else."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from tokenizers import Tokenizer

from apollo_cli.config.config import Config, parse
from apollo_cli.data.batches import EvaluationBatches
from apollo_cli.data.tokenizer import byte_tokenizer, special_ids
from apollo_cli.evaluate import run
from apollo_cli.glue.pretrained import Pretrained
from apollo_cli.growth.layer_maps import layers_to_run
from apollo_cli.inference.evaluation import bits_per_byte, measure, pseudo_perplexity, sliding_windows
from apollo_cli.inference.evaluation_command import _table
from apollo_cli.models.hf import load_model, load_model_config
from apollo_cli.run_directory import RunDirectory
from apollo_cli.sample import run as sample
from apollo_cli.tracking.console import Console
from apollo_cli.training.corpora import prepare_corpus
from apollo_cli.training.device import Device
from apollo_cli.training.planning import make_task
from apollo_cli.training.run import train

CPU = Device(torch.device("cpu"), bf16=False, compile=False)
Finished = Callable[[str], Path]


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_the_loss_is_that_of_the_end_of_training(
    kind: str, finished: Finished, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a run in fp32 on a CPU with bf16, too."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    folder = finished(kind)
    losses = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["losses"]
    of_run, of_model, of_checkpoint = (
        evaluated(capsys, f"run={folder}")[0],
        evaluated(capsys, f"run={folder}", f"run={folder}")[1],
        evaluated(capsys, f"run={folder}", "checkpoint=step_00000012")[0],
    )
    assert of_run["loss"] == pytest.approx(losses["eval/loss"], abs=1e-5)
    assert of_model["loss"] == of_run["loss"]
    assert of_checkpoint["loss"] == pytest.approx(of_run["loss"], abs=1e-6)
    assert of_run["perplexity"] == pytest.approx(math.exp(of_run["loss"]))
    assert (of_run["bits_per_byte"] is None) == (kind == "bert")
    early = evaluated(capsys, f"run={folder}", "checkpoint=step_00000004")[0]
    assert early["loss"] > of_run["loss"]
    assert early["depth"] == 2  # stored then


@pytest.mark.parametrize("of_run", [[], ["checkpoint=step_00000008"]])
def test_a_text_of_ones_own_is_measured_whole_in_bits_per_byte(
    of_run: list[str], finished: Finished, corpus_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of short documents, so that the tokens between them are many."""
    lines = [line[:12].strip() for line in corpus_file.read_text(encoding="utf-8").split("\n\n")]
    (tmp_path / "own.txt").write_text("\n".join(lines), encoding="utf-8")
    folder = finished("gpt")
    words = [f"run={folder}", *of_run, f"data.files={tmp_path}/own.txt", f"data.cache_dir={tmp_path}/cache"]
    words.append("data.document=line")
    (found,) = evaluated(capsys, *words)
    (facts,) = (json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("cache/*/corpus.json"))
    tokens = facts["packed"]["tokens"] + len(lines)
    size = len("".join(lines).encode())
    assert tokens > 1.1 * facts["packed"]["tokens"]
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2) * tokens / size, rel=0.01)
    assert (facts["training"]["rows"], facts["validation"]["rows"]) == (0, found["rows"])
    assert run(words) == 0
    assert "held out" not in capsys.readouterr().out  # all rows are measured


@pytest.mark.parametrize("repeats", [1, 4])
def test_a_short_text_and_one_of_copies_are_measured(
    repeats: int, finished: Finished, corpus_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    paragraph = corpus_file.read_text(encoding="utf-8").split("\n\n")[0][:60]
    (tmp_path / "own.txt").write_text("\n\n".join([paragraph] * repeats), encoding="utf-8")
    words = [f"run={finished('gpt')}", f"data.cache_dir={tmp_path}/cache"]
    (found,) = evaluated(capsys, *words, f"data.files={tmp_path}/own.txt")
    assert found["rows"] >= 1
    (tmp_path / "own.txt").write_text("a", encoding="utf-8")
    assert run([*words, f"data.files={tmp_path}/own.txt"]) == 2
    assert "own.txt fills no row of 16 tokens: give more text" in capsys.readouterr().err


def test_of_a_dataset_with_a_validation_split_that_is_measured_and_of_a_mixture_each_source(
    finished: Finished, corpus_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Text of other words has another number of bytes a token."""
    text = corpus_file.read_text(encoding="utf-8")
    for name, documents in (("train", text), ("test", text[:9000])):
        rows = (json.dumps({"text": document}) + "\n" for document in documents.split("\n\n"))
        (tmp_path / "hub").mkdir(exist_ok=True)
        (tmp_path / "hub" / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    (tmp_path / "own.txt").write_text(text[:9000], encoding="utf-8")
    words = [f"run={finished('gpt')}", f"data.cache_dir={tmp_path}/cache"]
    hub = ["data=hub", f"data.path=[{tmp_path}/hub]"]
    (own,) = evaluated(capsys, *words, f"data.files={tmp_path}/own.txt")
    (split,) = evaluated(capsys, *words, *hub, "data.validation_split=test")
    assert (split["rows"], split["loss"]) == (own["rows"], own["loss"])
    assert evaluated(capsys, *words, *hub, "data.validation_split=null")[0]["rows"] > 2 * own["rows"]
    parts = f"{{kind: text, files: [{tmp_path}/own.txt]}},{{kind: text, files: [{corpus_file}]}}"
    (mixed,) = evaluated(capsys, *words, "data=mixture", f"data.sources=[{parts}]", "rows=40")
    assert mixed["rows"] == 40
    assert mixed["loss"] != evaluated(capsys, *words, f"data.files={tmp_path}/own.txt", "rows=40")[0]["loss"]


def test_another_cache_alone_leaves_the_corpus_of_the_run(
    finished: Finished, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (f"run={finished('gpt')}",)
    assert evaluated(capsys, *words, f"data.cache_dir={tmp_path}/cache") == evaluated(capsys, *words)
    assert len(list((tmp_path / "cache").glob("*/corpus.json"))) == 1


@pytest.mark.parametrize("change", ["text", "rows"])
def test_a_run_is_not_measured_on_what_became_of_its_corpus(
    change: str,
    config: Callable[..., Config],
    corpus_file: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A tokenizer trained anew would have other tokens, and rows of the same tokenizer may be those of training."""
    text = corpus_file.read_text(encoding="utf-8")
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    of_rows = ["data.tokenizer=bytes"] if change == "rows" else []
    settings = config(f"data.files=[{tmp_path}/own.txt]", f"data.cache_dir={tmp_path}/cache", *of_rows)
    train(settings, tmp_path / "run")
    (tmp_path / "own.txt").write_text(text.upper() + "\n\nand more", encoding="utf-8")
    capsys.readouterr()
    for more in ([], ["checkpoint=step_00000012"]):
        assert run([f"run={tmp_path}/run", *more]) == 2
        assert "its corpus is not there as it was when it was trained" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "model")
    assert run([f"run={tmp_path}/run", "checkpoint=step_00000012"]) == 2
    assert "its corpus is not there as it was, so its tokenizer is not known" in capsys.readouterr().err


def test_overlapping_windows_predict_each_token_once(finished: Finished) -> None:
    """By hand: the first window whole, then the last 4 tokens of each, from the 12 before them."""
    model = load_model(finished("gpt") / "model").eval()
    rows = np.random.default_rng(0).integers(5, 300, size=(3, 16))
    tokens = torch.from_numpy(rows.flatten())
    losses = []
    with torch.no_grad():
        for start in range(0, 33, 4):
            window = tokens[start : start + 16]
            logits = model.logits(window[None], range(len(model.blocks)))[0]
            each = F.cross_entropy(logits[:-1], window[1:], reduction="none")
            losses.append(each if start == 0 else each[-4:])

    windows = sliding_windows(rows, 4)
    found = measure(model, windows, CPU, len(model.blocks))
    assert found["predictions"] == 47
    assert found["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_bits_a_byte_count_letters_that_rows_cut_and_tokens_between_documents() -> None:
    """18 bytes of 9 letters in rows of 5, and the token at the end of the text; one token for each byte."""
    tokenizer = byte_tokenizer("gpt")
    ids = [*tokenizer.encode("шестьдесят"[:9]).ids, special_ids("gpt", tokenizer)["eos"]]
    rows = np.array([*ids, ids[-1]]).reshape(4, 5)
    assert bits_per_byte(2 * math.log(2), rows, tokenizer) == pytest.approx(2 * 20 / 18)


@pytest.mark.parametrize(("stride", "windows"), [(1, 33), (5, 8), (15, 4)])
def test_windows_of_any_stride_predict_each_token_once(stride: int, windows: int) -> None:
    rows = np.arange(48).reshape(3, 16)
    found = list(sliding_windows(rows, stride))
    predicted = torch.cat([batch.targets[-counted:] for batch, counted in found])
    assert predicted.tolist() == list(range(1, 48))
    assert len(found) == windows
    for batch, _ in found:  # each from the token before it
        assert (batch.tokens[0][batch.positions] + 1 == batch.targets).all()


def test_pseudo_perplexity_masks_every_token_alone(finished: Finished) -> None:
    model = load_model(finished("bert") / "model").eval()
    row = np.random.default_rng(0).integers(5, 300, size=(1, 16))
    total = 0.0
    with torch.no_grad():
        for position in range(1, 15):
            tokens = torch.from_numpy(row.copy())
            tokens[0, position] = 4
            logits = model.logits(tokens, range(len(model.blocks)))[0, position]
            total -= logits.log_softmax(-1)[row[0, position]].item()
    assert pseudo_perplexity(model, row, 4, CPU, micro=5) == pytest.approx(math.exp(total / 14), rel=1e-4)


def test_a_run_directory_does_not_choose_the_cache(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "own"))
    shutil.copytree(finished("bert"), tmp_path / "theirs")
    path, mine = tmp_path / "theirs" / "config.yaml", tmp_path / "mine"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["data"]["cache_dir"] = str(mine)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    mine.mkdir()
    assert evaluated(capsys, f"run={tmp_path}/theirs")[0]["rows"] == 4
    assert not list(mine.iterdir())
    assert list((tmp_path / "own").iterdir())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_an_update_is_what_a_layer_adds(kind: str, finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the hidden states that the model has on its way, rotations by position included."""
    (found,) = evaluated(capsys, f"run={finished(kind)}", "per_layer=true", "rows=1")
    model, seen = load_model(finished(kind) / "model").eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda block, given, out: seen.append((given[0], out)))
    config = parse(RunDirectory(finished(kind)).config())
    corpus = prepare_corpus(config, Path(config.data.cache_dir or ""), Console(quiet=True), 1)
    (batch, _), *_ = EvaluationBatches(corpus.evaluation(1), make_task(config, corpus.tokenizer), 1)
    with torch.no_grad():
        model.logits(batch.tokens, range(len(model.blocks)))
    for layer, (before, after) in zip(found["layers"], seen, strict=True):
        expected = ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean().item()
        assert layer["update"] == pytest.approx(expected, rel=1e-4)


def test_each_layer_is_left_out_in_turn(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = evaluated(capsys, f"run={finished('gpt')}", "per_layer=true")
    assert len(found["layers"]) == 4
    for layer in found["layers"]:
        assert layer["more"] == pytest.approx(layer["loss_without"] - found["loss"], abs=1e-5) != 0
        assert layer["update"] > 0
    assert [layer["similarity"] is None for layer in found["layers"]] == [False, False, False, True]
    (shallow,) = evaluated(capsys, f"run={finished('gpt')}", "per_layer=true", "depth=2")
    assert shallow["loss"] != found["loss"]
    assert shallow["layers"] == found["layers"]  # of all that are stored
    assert run([f"run={finished('gpt')}", "per_layer=true"]) == 0
    assert "loss without it" in capsys.readouterr().out


def test_layers_of_a_model_that_stores_none_are_refused(
    config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("model=gpt", "sampler=shallow", "expander=fresh", "schedule.layers=[0,4]", "schedule.ends=[0.5,1]")
    train(config(*words, "checkpoint.every=4", "checkpoint.keep=9"), tmp_path)
    assert run([f"run={tmp_path}", "checkpoint=step_00000004", "per_layer=true"]) == 2
    assert "per_layer=true: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stored", "depth", "layers"), [(4, 2, (0, 1)), (4, 4, (0, 1, 2, 3)), (2, 4, (0, 0, 1, 1)), (4, 1, (0,))]
)
def test_a_depth_is_an_early_exit_or_shares_layers(stored: int, depth: int, layers: tuple[int, ...]) -> None:
    assert layers_to_run(stored, depth) == layers


def test_a_model_in_several_files_is_read_everywhere(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(finished("gpt"), tmp_path / "run"))
    whole = folder / "model" / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    save_torch_state_dict(tensors, folder / "model", max_shard_size=4000, metadata={"format": "pt"})
    assert len(list((folder / "model").glob("model-*.safetensors"))) > 3
    assert evaluated(capsys, f"run={folder}")[0]["loss"] == evaluated(capsys, f"run={finished('gpt')}")[0]["loss"]
    assert sample([f"run={folder}/model", "prompt=a", "tokens=3"]) == 0
    assert load_model_config(folder / "model").layers == 4  # init_from
    assert Pretrained.of_run(folder).num_parameters == load_model(folder / "model").num_parameters()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "run: missing"),
        (["run=nowhere", "data.files=x.txt"], "nowhere"),
        (["rum=x", "run=y"], "rum: no such key; did you mean run?"),
        (["run={bert}", "stride=8", "data.files=/nonexistent.txt"], "stride=8: BERT predicts masked tokens"),
        (
            ["run={gpt}", "stride=16"],
            "stride=16: windows of 16 tokens would leave tokens out",
        ),
        (["run={gpt}", "pseudo=2"], "pseudo=2: it is for BERT"),
        (["run={bert}", "checkpoint=step_7"], "checkpoint=step_7: not in"),
        (["run={bert}", "depth=deep"], "depth=deep"),
        (["run={bert}/model"], "type data.files=FILE"),
        (["run={bert}", "data.files=/nonexistent.txt"], "/nonexistent.txt"),
        (
            ["run={gpt}", "data.files=x.txt", "data.seq_len=8"],
            "data.seq_len=8: it is that of the model; leave it out",
        ),
        (["run={gpt}", "data.tokenizer=bytes"], "data.tokenizer=bytes: it is that of the model; leave it out"),
        (["run={gpt}", "data.validation=0.3"], "data.validation=0.3: nothing is held out here"),
        (["run={gpt}", "data.files=x.txt", "data.inspect=true"], "data.inspect=true: nothing is inspected here"),
        (
            ["run={gpt}", "data.files=x.txt", "data.fles=y"],
            "data.fles: no such key or group; did you mean data.files?",
        ),
        (["run={gpt}", "data.files=x.txt,y.txt"], "several values are a sweep; type a list as [a,b]"),
        (["run={gpt}", "data.document=line"], "data.document=line: it names no corpus; type data.files=FILE"),
    ],
)
def test_a_wrong_word_is_named(
    words: list[str], says: str, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {kind: finished(kind) for kind in ("bert", "gpt")}
    assert run([word.format(**folders) for word in words]) == 2
    assert says in capsys.readouterr().err


def test_what_was_measured_before_a_wrong_run_is_shown(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([f"run={finished('gpt')}", f"run={finished('bert')}", "stride=8"]) == 2
    out, err = capsys.readouterr()
    assert "bits per byte" in out
    assert "stride=8: BERT predicts masked tokens" in err


def test_a_tokenizer_of_another_model_is_refused(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished("gpt") / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["another"])
    tokenizer.save(str(path))
    for command, words in ((run, ["data.files=x.txt"]), (sample, ["prompt=a"])):
        assert command([f"run={tmp_path}/model", *words]) == 2
        assert "its tokenizer has 301 entries, the model 300: they do not belong" in capsys.readouterr().err


def test_a_table_has_the_part_of_a_path_in_which_runs_differ() -> None:
    def shown(*runs: str) -> tuple[Any, dict[str, list[str]]]:
        table = _table([{"run": run, "depth": 3, "rows": 8, "loss": 1.5} for run in runs])
        return table.title, {str(column.header): list(column.cells) for column in table.columns}  # type: ignore[arg-type]

    assert shown("outputs/a/1") == ("outputs/a/1", {"depth": ["3"], "rows": ["8"], "loss": ["1.5000"]})
    title, columns = shown("outputs/a/1", "outputs/a/2 step_00000100")
    assert (title, columns["run"]) == ("outputs/a", ["1", "2 step_00000100"])
    assert shown("outputs/a/1", "/elsewhere/b")[1]["run"] == ["outputs/a/1", "/elsewhere/b"]
    assert shown("a", "b") == (None, shown("a", "b")[1])
    assert shown("a", "b")[1]["run"] == ["a", "b"]
