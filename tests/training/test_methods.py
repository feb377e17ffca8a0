"""Runs of the methods: exact FLOPs, losses that do not jump, and resumes around their stages."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from apollo_cli.config.config import Config
from apollo_cli.errors import CheckpointError
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import StopRequest
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.init_from.source import checkpoint_model
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, read_rows
from tests.training.test_resume import assert_same, interrupt

TWO = "schedule.ends=[0.5,1]"
METHODS = {  # each in four layers and twelve steps; a stage begins at steps 4, 6 or 8
    "mslt": ("expander=append", "sampler=shallow", "schedule.layers=[1,2,4,4]",
             "schedule.trained=[all,new,new,all]", "schedule.ends=[0.25,0.5,0.75,1]"),
    "raptr": ("sampler=subset", "sampler.sizes=[3,4]", "schedule.layers=[4,4]", TWO),
    "bert2bert": ("sampler=prefixes", "sampler.multiple=2", "sampler.trained=2", "schedule.layers=[4,4]", TWO),
    "msg": ("expander=msg", "expander.gate_duration=0.3", "sampler=shallow", "schedule.layers=[2,4]", TWO,
            "optim.at_growth=rewind"),
    "net2net": ("expander=net2net", "sampler=shallow", "schedule.layers=[2,4]", TWO),
    "gstack": ("expander=stack", "expander.moments=reset", "sampler=shallow", "schedule.layers=[1,4]", TWO,
               "optim.at_growth=restart"),
    "fresh": ("expander=fresh", "expander.output_scale=0.1", "sampler=shallow", "schedule.layers=[2,4]", TWO,
              "expander.lr_scale=1.5", "expander.lr_steps=3", "optim.ema=0.9"),
    "zero": ("expander=fresh", "sampler=shallow", "schedule.layers=[0,4]", TWO, "optim.ema=0.9"),
    "split": ("expander=split", "expander.moments=new", "sampler=shallow", "schedule.layers=[2,4]", TWO,
              "optim.kind=muon", "expander.lr_scale=0.5", "expander.lr_steps=2"),
    "midas": ("expander=middle", "expander.moments=map", "sampler=shallow", "schedule.layers=[2,4]", TWO),
    "lidas": ("expander=boundary", "expander.moments=map", "sampler=shallow", "schedule.layers=[2,4]", TWO),
}  # fmt: skip


def weights(run_dir: Path, step: int) -> dict[str, Tensor]:
    return load_file(run_dir / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (i + j) % 2 == 0 else pytest.mark.slow)
        for (i, name), (j, kind) in product(enumerate(METHODS), enumerate(["bert", "gpt"]))
    ],
)
def test_a_resume_across_its_stages_is_exact_and_so_are_the_planned_flops(
    name: str, kind: str, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(f"model={kind}", *RARELY, *METHODS[name])
    result = train(settings, tmp_path / "straight")
    assert read_rows(tmp_path / "straight")[-1]["flops"] == result.plan.flops
    interrupt(lambda: train(settings, tmp_path / "run"), 6, monkeypatch)  # where a stage ends
    interrupt(lambda: resume(tmp_path / "run"), 7, monkeypatch)  # within what enters slowly
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("kind", ["bert", "bert model.norm=pre", "gpt"])
def test_a_run_begins_without_layers(kind: str, config: Callable[..., Config], tmp_path: Path) -> None:
    """Nothing is shared, so there is no loss at full depth; the first layers change nothing."""
    words = (*f"model={kind}".split(), *RARELY, *METHODS["zero"], "checkpoint.keep=9")
    result = train(config(*words), tmp_path)
    first, before, after, *_, last = [row for row in read_rows(tmp_path) if "eval/loss" in row]
    assert not {"eval/loss_full_depth"} & (first.keys() | before.keys())
    assert "eval/loss_full_depth" in after
    for loss in ("eval/loss", "eval/loss_ema"):
        assert after[loss] == pytest.approx(before[loss], abs=1e-5)
    assert not any(name.startswith("blocks.") for name in weights(tmp_path, 6))
    assert last["eval/loss"] < after["eval/loss"] < first["eval/loss"]
    stage = result.plan.as_dict()["stages"][0]
    assert (stage["layers"], stage["depth_counts"], stage["depth_probabilities"]) == (0, {0: 6}, {0: 1.0})
    assert result.plan.as_dict()["stages"][1]["growth_map"] == [None] * 4
    grown = load_file(tmp_path / "checkpoints" / "step_00000012" / "optimizer.safetensors")
    assert {name.partition("/")[0] for name in grown} == set(weights(tmp_path, 12))


@pytest.mark.parametrize("kind", ["bert", "gpt", "llama"])
def test_no_loss_jumps_where_new_layers_are_gated(kind: str, config: Callable[..., Config], tmp_path: Path) -> None:
    trained = config(f"model={kind}", *RARELY, *METHODS["msg"], "checkpoint.every=1", "checkpoint.keep=12")
    train(trained, tmp_path)
    before, after = [row for row in read_rows(tmp_path) if "growth/to" in row]
    assert before["eval/loss"] == after["eval/loss"]
    assert (before["layers"], after["layers"]) == (2, 4)
    for step in (6, 10):  # 6 is of before the growth; gates open from there for 3.6 steps
        checkpoint_model(trained, RunDirectory(tmp_path), f"step_{step:08d}")
    for step in (7, 8, 9):
        with pytest.raises(CheckpointError, match=r"gates of new layers were still opening \(expander=msg\)"):
            checkpoint_model(trained, RunDirectory(tmp_path), f"step_{step:08d}")


@pytest.mark.parametrize("expander", ["net2net", "fresh"])
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_no_loss_jumps_with_zero_init(
    kind: str, expander: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    train(config(f"model={kind}", *RARELY, *METHODS["net2net"], f"expander={expander}"), tmp_path)
    before, after = [row for row in read_rows(tmp_path) if "growth/to" in row]
    assert before["eval/loss"] == pytest.approx(after["eval/loss"], abs=0 if kind == "gpt" else 1e-5)


@pytest.fixture
def rate_factors(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Collects the factors of the rate by layer, of each step of a run."""
    seen: list[dict[str, float]] = []
    original = AdamW.step

    def step(optimizer: AdamW, *blocked: Tensor) -> None:
        names = {id(p): name for name, p in trainers[0].model.named_parameters()}
        seen.append({names[id(p)].split(".")[1]: scale for p, scale in optimizer.lr_scales.items()})
        original(optimizer, *blocked)

    trainers: list[Trainer] = []
    run = Trainer.run

    def running(trainer: Trainer, stop: StopRequest) -> None:
        trainers.append(trainer)
        run(trainer, stop)

    monkeypatch.setattr(AdamW, "step", step)
    monkeypatch.setattr(Trainer, "run", running)
    return seen


def test_the_rate_of_new_layers_falls_to_that_of_the_others(
    rate_factors: list[dict[str, float]], config: Callable[..., Config], tmp_path: Path
) -> None:
    """1, 2 and 4 layers from steps 0, 3 and 6 on; two steps after a growth all rates are equal."""
    train(config("expander.lr_scale=3", "expander.lr_steps=2"), tmp_path)
    assert rate_factors == [
        {},
        {},
        {},
        {"1": 3.0},
        {"1": 2.0},
        {},
        {"1": 3.0, "3": 3.0},
        {"1": 2.0, "3": 2.0},
        *[{}] * 4,
    ]


def test_the_rate_of_new_layers_falls_on_in_a_stage_without_growth(
    rate_factors: list[dict[str, float]], config: Callable[..., Config], tmp_path: Path
) -> None:
    stages = ("schedule.layers=[2,4,4]", "schedule.ends=[0.5,0.75,1]", "budget.steps=8")
    train(config(*RARELY, *stages, "expander=append", "expander.lr_scale=5", "expander.lr_steps=4"), tmp_path)
    assert rate_factors == [{}] * 4 + [{"2": scale, "3": scale} for scale in (5.0, 4.0, 3.0, 2.0)]
