"""What Python and notebooks call."""

import ast
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from apollo_cli.api import OverridesError, compare, load, train
from apollo_cli.errors import ApolloError, CheckpointError
from apollo_cli.signals import STOP_SIGNALS
from tests.conftest import RARELY
from tests.test_readme import REPOSITORY


def test_runs_are_trained_loaded_and_compared(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in one process; no handler and no folder is left."""
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(each) for each in STOP_SIGNALS]
    words = [word for word in tiny if not word.startswith(("eval.every", "checkpoint.every", "batch.micro"))]
    grown = train([*words, *RARELY, "model=gpt", "name=grown"])
    scratch = train(
        [*words, *RARELY, "model=gpt", "schedule.layers=[4]", "schedule.ends=[1]"], run_dir="here/scratch"
    )
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == handlers
    assert grown.run_dir.parent == Path("outputs/grown")
    summary = json.loads((grown.run_dir / "summary.json").read_text(encoding="utf-8"))
    assert grown.losses == summary["losses"]
    assert grown.flops == summary["totals"]["flops"] == grown.plan.flops < scratch.flops
    model, tokenizer = load(grown.run_dir)
    ids = torch.tensor([tokenizer.encode("some words").ids])
    assert model.logits(ids, range(4)).shape == (1, ids.shape[1], 300)
    assert len(load(grown.run_dir, "step_00000012")[0].blocks) == 4
    found = compare(["outputs", scratch.run_dir], at_flops=1e6)
    rows: dict[bool, dict[str, Any]] = {row["is_baseline"]: row for row in found.rows}
    assert rows[True]["final_loss_mean"] == pytest.approx(scratch.losses["eval/loss"])
    assert rows[False]["final_loss_mean"] == pytest.approx(grown.losses["eval/loss"])
    assert {"loss_against_flops", "growth"} <= set(found.figures)
    found.figures["loss_against_flops"].savefig(tmp_path / "loss.png")


def test_a_typed_run_directory_is_that_of_the_command(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that Hydra takes for a number, and an interpolation."""
    monkeypatch.chdir(tmp_path)
    words = [*tiny, "plan=true", "name=mine"]
    assert train([*words, "hydra.run.dir=2026_11_29"]).run_dir == Path("2026_11_29")
    assert train([*words, "++hydra.run.dir=plans/${name}"]).run_dir == Path("plans/mine")
    assert {path.name for path in tmp_path.iterdir()} >= {"2026_11_29", "plans"}


def test_a_folder_of_its_own_is_made_whatever_the_command_has_named(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APOLLO_STAMP", "2026-11-29_00-00-00-000000")
    folders = {train([*tiny, "plan=true"]).run_dir for _ in range(2)}
    assert len(folders) == 2
    assert not any("2026-11-29" in folder.name for folder in folders)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optim.lr=-1", "modle=gpt"], ["optim.lr=-1: should be greater than 0", "modle: no such key or group"]),
        (["-m", "seed=1,2"], ["-m: flags are for the command"]),
        (["seed=1,2"], ["seed=1,2: several values are a sweep; for sweeps type apollo-train -m in a shell"]),
        (["experiment=ablation/k"], ["experiment=ablation/k: it is a sweep; for sweeps type apollo-train -m"]),
        (["hydra/launcher=joblib"], ["hydra/launcher=joblib: it is for the jobs of a sweep; for sweeps type"]),
        (["budget.steps"], ["budget.steps: not understood"]),
        (["hydra.run.dir=made/here", "data.files=[/nonexistent.txt]"], ["/nonexistent.txt"]),
    ],
)
def test_a_wrong_word_is_a_value_error_and_leaves_nothing(
    words: list[str], says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ApolloError) as caught:
        train([*words, f"data.cache_dir={tmp_path}/cache"])
    assert isinstance(caught.value, OverridesError if "data.files" not in words[-1] else ApolloError)
    assert isinstance(caught.value, ValueError) or "data.files" in words[-1]
    assert all(part in str(caught.value) for part in says)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a BERT, GPT-2 or LLaMA model"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="not a run directory"):
        train([f"resume={tmp_path}"])
    with pytest.raises(OverridesError, match=r"should be a list of words; type \['model=gpt', 'seed=1'\]"):
        train("model=gpt seed=1")
    with pytest.raises(OverridesError, match="run_dir=elsewhere: resume= names the folder"):
        train([f"resume={tmp_path}"], run_dir="elsewhere")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell; the last expression of a cell is what a notebook shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    cells = json.loads((REPOSITORY / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    shown = []
    for cell in cells:
        if cell["cell_type"] == "code":
            *body, last = ast.parse("".join(cell["source"])).body
            is_value = isinstance(last, ast.Expr)
            exec(compile(ast.Module([*body, *([] if is_value else [last])], []), "cell", "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
            assert cell["outputs"] == []
    assert len(names["found"].rows) == 2
    assert len(shown[-1]) == 5
