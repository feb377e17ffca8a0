"""Runs that begin with what another one ended with: its weights, its optimizer's state, its place in the corpus."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apollo_cli.config.config import Config
from apollo_cli.errors import ApolloError
from apollo_cli.growth.expanders import EXPANDERS
from apollo_cli.training.run import resume, train
from tests.conftest import RARELY, BuiltOnce, read_rows, without_clocks

EVEN = (  # a rate that knows of no length, and weights that begin alike at every depth
    "optim.schedule=constant",
    "optim.warmup=0",
    "log.every=6",
    "model.init_residual=plain",
)
WHOLE = ("schedule.layers=[4]", "schedule.ends=[1]", "sampler=shallow")
HALF = ("schedule.layers=[2]", "schedule.ends=[1]", "sampler=shallow", "model.layers=2")
GROWN = (
    "schedule.layers=[2,4]",
    "schedule.ends=[0.5,1]",
    "sampler=shallow",
    "expander=stack",
    "expander.moments=map",
)


@pytest.fixture(scope="session")
def halves(config: Callable[..., Config], built_once: BuiltOnce) -> dict[str, Path]:
    """Six steps of all layers and of half of them, to be gone on with; BERT, whose masks depend on the sample."""

    def build(folder: Path) -> None:
        for name, stages in (("whole", WHOLE), ("half", HALF)):
            words = (*RARELY, *EVEN, *stages, "budget.steps=6", "checkpoint.every=3")
            train(config("model=bert", *words), folder / name)

    folder = built_once("halves", build)
    return {name: folder / name for name in ("whole", "half")}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(("source", "stages"), [("whole", WHOLE), ("half", GROWN)])
def test_with_moments_and_rows_two_halves_are_one_run(
    source: str,
    stages: tuple[str, ...],
    halves: dict[str, Path],
    config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    """Without warmup and decay, and where growth comes between both halves, with the moments by its map."""
    train(config("model=bert", *RARELY, *EVEN, *stages), tmp_path / "straight")
    more = ("init_from.optimizer=true", "init_from.data=true", *stages, *WHOLE, "budget.steps=6")
    train(config("model=bert", *RARELY, *EVEN, *more, f"init_from.path={halves[source]}"), tmp_path / "second")
    ours, theirs = weights(tmp_path / "second"), weights(tmp_path / "straight")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_from_a_checkpoint_begins_at_its_loss_and_costs_what_it_had_cost(
    halves: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    """The run that the checkpoint is of need not be complete; resumed, it has the same rows."""
    shutil.copytree(halves["whole"], tmp_path / "source")
    for name in ("summary.json", "model"):
        path = tmp_path / "source" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = ("model=bert", *RARELY, *EVEN, *WHOLE, "budget.steps=2", f"init_from.path={tmp_path / 'source'}")
    with pytest.raises(
        ApolloError, match=r"not complete.*init_from\.checkpoint= and one of step_00000003, step_00000006"
    ):
        train(config(*words), tmp_path / "none")
    plan = train(config(*words, "init_from.checkpoint=step_00000006"), tmp_path / "new").plan
    end = read_rows(halves["whole"])[-1]
    assert read_rows(tmp_path / "new")[0]["eval/loss"] == pytest.approx(end["eval/loss"], abs=1e-6)
    assert plan.source.flops == end["flops"]


def test_a_run_that_goes_on_in_the_corpus_is_resumed_there(
    halves: dict[str, Path], config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("model=bert", *RARELY, *EVEN, *WHOLE, "budget.steps=6", "checkpoint.every=2", "init_from.data=true")
    shutil.copytree(halves["whole"], tmp_path / "source")
    settings = config(*words, f"init_from.path={tmp_path / 'source'}")
    train(settings, tmp_path / "straight")
    shutil.rmtree(tmp_path / "source")  # not needed after the first checkpoint
    shutil.copytree(tmp_path / "straight", tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000006")
    resume(tmp_path / "run")
    assert without_clocks(read_rows(tmp_path / "run")) == without_clocks(read_rows(tmp_path / "straight"))
    costs = [json.loads((tmp_path / run / "summary.json").read_text())["totals"] for run in ("run", "straight")]
    assert costs[0]["source_flops"] == costs[1]["source_flops"] == read_rows(halves["whole"])[-1]["flops"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("init_from.path=half/model", "init_from.data=true"),
            "no run directory, so it has nothing for init_from.data",
        ),
        (("init_from.path=half/model", "init_from.optimizer=true"), "nothing for init_from.optimizer"),
        (("init_from.path=half/model", "init_from.checkpoint=best"), "nothing for init_from.checkpoint"),
        (
            ("init_from.path=half/checkpoints/step_00000003",),
            r"it is a checkpoint; type init_from\.path=.*half init_",
        ),
        (("init_from.checkpoint=step_00000005",), "not in .*has step_00000003, step_00000006"),
        (("init_from.checkpoint=best",), "init_from.checkpoint=best: none is kept"),
        (("init_from.data=true", "seed=1"), "type seed=0"),
        (("init_from.data=true", "data.seq_len=15"), "trained on other rows"),
        (("init_from.optimizer=true", "optim=muon"), "it has the state of adamw; type optim=adamw_wsd"),
        (("init_from.optimizer=true", "optim.ema=0.9"), "its optim.ema is None"),
        (("init_from.optimizer=true", "expander.moments=reset"), "moments=reset drops it"),
        (("init_from.optimizer=true", "model.hidden=32", "model.heads=4"), "width grows, and moments have no rule"),
        (("init_from.optimizer=true", "data.seq_len=15"), "its rows have 16 tokens"),
        (("init_from.optimizer=true", "expander=ligo"), "learns a map, which has none for the optimizer's state"),
    ],
)
def test_what_cannot_come_from_there_is_refused_and_leaves_nothing(
    words: tuple[str, ...], said: str, halves: dict[str, Path], config: Callable[..., Config], tmp_path: Path
) -> None:
    words = tuple(word.replace("=half", f"={halves['half']}") for word in words)
    if not any(word.startswith("init_from.path=") for word in words):
        words = (*words, f"init_from.path={halves['half']}")
    with pytest.raises(ApolloError, match=said):
        train(config("model=bert", *RARELY, *WHOLE, *words), tmp_path)
    assert not list(tmp_path.glob("*"))


def test_a_model_as_large_as_its_source_is_a_copy_of_it(config: Callable[..., Config]) -> None:
    for kind in EXPANDERS:
        growth = (
            config(f"expander={kind}", "expander.moments=reset", "init_from.path=x").expander.build().growth(4, 4)
        )
        assert np.array_equal(growth.matrix, np.eye(4)), kind
        assert (growth.zero_init, growth.drawn, growth.gated) == ((), (), ()), kind
        assert set(growth.residual_scale.values()) <= {1.0}, kind
