"""Every choice of the command line trains."""

from collections.abc import Callable
from itertools import product
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apollo_cli.cli.help import groups
from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.growth.schedule import min_steps
from apollo_cli.run_directory import RunDirectory
from apollo_cli.tracking.console import Console
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan
from apollo_cli.training.run import _show_corpus, train
from tests.conftest import RARELY, read_rows

SAMPLERS = ["lvps", "uniform", "edge", "full", "shallow"]
EXPANDERS = [
    ("expander=stack",),
    *((f"expander={kind}",) for kind in ("net2net", "append", "middle", "boundary")),
    ("expander=interpolate", "expander.mode=nearest"),
    ("expander=interpolate", "expander.mode=linear"),
]
SCHEDULES = {
    "apollo": ["schedule.layers=[1,2,4]", "schedule.ends=[0.25,0.5,1]"],
    "scratch": ["schedule=scratch", "schedule.layers=[4]", "schedule.ends=[1]"],
    "stackbert": ["schedule=stackbert", "schedule.layers=[1,2,4]", "schedule.ends=[0.2,0.4,1]"],
}


def _choices() -> list[Any]:
    """All combinations; the fast ones have every expander with every schedule that grows, and every sampler."""
    choices = []
    numbered = enumerate(SAMPLERS), enumerate(EXPANDERS), enumerate(SCHEDULES)
    for (i, sampler), (j, expander), (k, schedule) in product(*numbered):
        is_fast = i == (j + k) % len(SAMPLERS) and (schedule != "scratch" or j == 0)
        marks = [] if is_fast else [pytest.mark.slow]
        choices.append(
            pytest.param(sampler, expander, schedule, marks=marks, id=f"{sampler}-{expander[-1]}-{schedule}")
        )
    return choices


@pytest.mark.parametrize(("sampler", "expander", "schedule"), _choices())
def test_every_sampler_trains_with_every_expander_and_schedule(
    sampler: str, expander: tuple[str, ...], schedule: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    kind = "gpt" if sampler in ("uniform", "full") else "bert"
    words = [f"model={kind}", f"sampler={sampler}", *expander, *SCHEDULES[schedule], *RARELY, "budget.steps=8"]
    result = train(config(*words), tmp_path)
    rows = read_rows(tmp_path)
    assert rows[-1]["flops"] == result.plan.flops
    assert rows[-1]["layers"] == 4
    assert isfinite(rows[-1]["eval/loss"])
    assert rows[-1]["eval/loss"] != rows[0]["eval/loss"]


_RULES = [*product(("keep", "map", "reset"), ("continue", "rewarm", "restart", "rewind"))]
_APART = {("keep", "continue"), ("map", "rewarm"), ("reset", "restart"), ("map", "rewind")}  # each rule once


@pytest.mark.parametrize(
    ("moments", "at_growth"),
    [pytest.param(*pair, marks=[] if pair in _APART else pytest.mark.slow) for pair in _RULES],
)
def test_every_rule_at_growth_trains(
    moments: str, at_growth: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    train(config(f"expander.moments={moments}", f"optim.at_growth={at_growth}", *RARELY), tmp_path)
    rows = read_rows(tmp_path)
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"]


FROM_SOURCE = ("bert2bert", "ligo", "lemon")  # see test_source.py
SMALL_EXPERIMENTS = [
    name for name in sorted(groups()["experiment"]) if not name.startswith(("paper/", "ablation/", *FROM_SOURCE))
]


@pytest.mark.parametrize("experiment", SMALL_EXPERIMENTS)
def test_every_small_experiment_trains(experiment: str, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """With its own depth and stages; only the width, the corpus and the length are small."""
    own = ("model.layers", "schedule.", "batch.micro", "eval.every", "checkpoint.every")
    words = [word for word in tiny if not word.startswith(own)]
    composed = compose_values([f"experiment={experiment}", *words, *RARELY, "budget.flops=null"])
    composed["budget"]["steps"] = max(6, min_steps(composed["schedule"]["ends"]))
    result = train(parse(composed), tmp_path)
    assert read_rows(tmp_path)[-1]["flops"] == result.plan.flops
    assert read_rows(tmp_path)[-1]["layers"] == 12


@pytest.mark.parametrize(("experiment", "million_parameters"), [("paper/bert_base", 109.5), ("paper/gpt2", 124.4)])
def test_the_paper_presets_compose_and_plan(experiment: str, million_parameters: float) -> None:
    config = parse(compose_values([f"experiment={experiment}", "device=cpu"]))
    plan = make_plan(config, choose(config.run))
    assert [stage.stage.layers for stage in plan.stages] == [1, 3, 6, 12]
    assert [stage.stage.end_step / plan.steps for stage in plan.stages] == [0.05, 0.1, 0.25, 1]
    assert plan.stages[-1].parameters / 1e6 == pytest.approx(million_parameters, abs=0.1)
    assert plan.flops < plan.scratch_flops


def test_a_run_learns(config: Callable[..., Config], tmp_path: Path) -> None:
    train(config(*RARELY, "budget.steps=60", "batch.size=16", "batch.micro=16", "optim.lr=1e-2"), tmp_path)
    rows = read_rows(tmp_path)
    assert rows[-1]["eval/loss"] < rows[0]["eval/loss"] - 0.5


def test_a_run_of_wandb_agent_has_the_id_that_it_gives(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    for sweep, given in (("s1", True), ("", False)):  # of a sweep, or of a shell in which an id was exported
        monkeypatch.setenv("WANDB_SWEEP_ID", sweep)
        train(config(*RARELY), tmp_path / sweep / "run")
        assert (RunDirectory(tmp_path / sweep / "run").summary()["run_id"] == "abc123") == given


@pytest.mark.parametrize(("rows", "shown"), [(7, "879"), (500, "12"), (4000, "1.5")])
def test_the_times_that_a_corpus_is_read_are_a_plain_number(
    rows: int, shown: str, config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config("budget.steps=1538")
    plan = make_plan(settings, choose(settings.run))
    corpus: Any = SimpleNamespace(packed=SimpleNamespace(documents={"a": 1}, tokens=9), training=range(rows))
    _show_corpus(corpus, plan, settings, Console())
    assert f"the budget reads its {rows:,} training rows {shown} times" in capsys.readouterr().out
