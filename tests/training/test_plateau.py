"""Stages that end when the validation loss is on a plateau."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apollo_cli.config.config import Config
from apollo_cli.errors import ApolloError, ConfigError
from apollo_cli.growth.plan import Plan
from apollo_cli.signals import Interrupted
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, read_rows
from tests.training.test_early_end import made_losses, summary_of
from tests.training.test_resume import assert_same

RUN = ("model=gpt", *RARELY, "eval.every=2", "log.every=3")
RATE = ("optim.schedule=wsd", "optim.decay=0.25", "optim.warmup=0")
LATEST = ("schedule.ends=[0.5,0.75,1]", "budget.steps=24")  # after steps 12 and 18
PLATEAU = ("schedule.when=plateau", "schedule.window=2", "schedule.threshold=0.1")
AT_ONCE = ("schedule.when=plateau", "schedule.window=1", "schedule.threshold=0.99")  # no real loss falls by so much
# after step 8 two evaluations were not 10 % below the 4.0 after step 4; then the loss falls until the latest end
LOSSES = {2: 5.0, 4: 4.0, 6: 3.9, 8: 3.7, 10: 3.0, 12: 2.0, 14: 1.5, 16: 1.0, 18: 0.5}


def planned(config: Config, ended: tuple[int, ...] = ()) -> Plan:
    return make_plan(config, choose(config.run), ended=ended)


def stopped_after(step: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Trainer, "stop_signal", lambda trainer, stop: signal.SIGTERM * (trainer.state.step == step))


def test_a_stage_ends_on_a_plateau_or_at_its_latest_end(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is as in a run for which these ends were planned."""
    made_losses(monkeypatch, LOSSES)
    run, fixed = tmp_path / "run", tmp_path / "fixed"
    with_plateaus = config(*RUN, *RATE, *LATEST, *PLATEAU)
    result = train(with_plateaus, run)
    train(config(*RUN, *RATE, "budget.steps=24", f"schedule.ends=[{8 / 24},{18 / 24},1]"), fixed)
    assert_same(run, fixed)
    plan, summary = json.loads((run / "plan.json").read_text()), summary_of(run)
    assert summary["stage_ends"] == summary_of(fixed)["stage_ends"] == [8, 18]
    assert [growth["step"] for growth in summary["growths"]] == [8, 18]
    assert plan["stages"] == json.loads((fixed / "plan.json").read_text())["stages"]
    assert result.flops == result.plan.flops == plan["flops"]
    before = planned(with_plateaus)
    assert before.earliest
    assert before.flops < plan["flops"] < before.earliest.flops
    assert [stage.end_step for stage in before.earliest.schedule.stages] == [6, 12, 24]
    said = "step 8: stage 1 ends, for eval/loss fell by no more than 10.00% in 2 evaluations"
    assert said in (run / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("where", ["evaluate", "grow"])
def test_a_run_killed_around_its_decision_repeats_it(
    where: str, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is of before the decision, with losses of the stage, or of just before the growth."""
    made_losses(monkeypatch, LOSSES)
    config_of_run = config(*RUN, *RATE, *LATEST, *PLATEAU, "checkpoint.every=3")
    train(config_of_run, tmp_path / "straight")
    original = getattr(Trainer, where)

    def killed(trainer: Trainer, *args: Any) -> None:
        if trainer.state.step == 8:
            if where == "evaluate":
                original(trainer)
            raise ZeroDivisionError
        original(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, where, killed)
        with pytest.raises(ZeroDivisionError):
            train(config_of_run, tmp_path / "run")
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "straight")
    assert (tmp_path / "run" / "plan.json").read_text() == (tmp_path / "straight" / "plan.json").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("sampler=lvps", "model=bert"),
        ("schedule.layers=[0,2,4]", "expander=fresh", "sampler=shallow"),
        ("schedule.widths=[0.5,0.5,1]", "expander=ligo", "expander.steps=1"),
    ],
    ids=["lvps", "zero", "width"],
)
def test_a_budget_of_flops_is_filled_whenever_the_stages_end(
    words: tuple[str, ...], config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the one with these ends and as many steps as it allows; it is interrupted in its second stage."""
    budget = planned(config(*RUN, *LATEST, *words)).flops
    lengths = ("budget.steps=null", f"budget.flops={budget}")
    before = planned(config_of_run := config(*RUN, *RATE, *LATEST, *AT_ONCE, *lengths, *words))
    run, fixed = tmp_path / "run", tmp_path / "fixed"
    with monkeypatch.context() as patch:
        stopped_after(7, patch)
        with pytest.raises(Interrupted):
            train(config_of_run, run)
    assert resume(run).plan.schedule.ended(9) == (4, 8)
    assert before.earliest
    steps, flops = before.earliest.steps, before.earliest.flops
    assert steps < before.steps
    assert flops <= budget < flops + before.flops_of(before.steps - 1, 4)
    totals = summary_of(run)["totals"]
    assert (totals["steps"], totals["planned_steps"], totals["flops"]) == (steps, steps, flops)
    train(config(*RUN, *RATE, f"schedule.ends=[{4 / steps},{8 / steps},1]", f"budget.steps={steps}", *words), fixed)
    assert_same(run, fixed)


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_bounds_of_a_plan_hold_for_all_decisions(config: Callable[..., Config], data: st.DataObject) -> None:
    sampler = data.draw(st.sampled_from(["lvps", "uniform", "edge", "full", "shallow"]))
    length = data.draw(st.sampled_from(["budget.steps=60", "budget.flops=8e8", "budget.tokens=3e3"]))
    words = ("model=gpt", f"sampler={sampler}", "budget.steps=null", length, "eval.every=2", *RATE)
    first = plan = planned(config(*words, "schedule.when=plateau", "schedule.ends=[0.4,0.75,1]"))
    for index in range(2):
        stage = plan.schedule.stages[index]
        step = stage.first_step // 2 * 2 + 2 * data.draw(st.integers(4, 20))
        if step < stage.end_step:
            ended = (*plan.schedule.ended(stage.first_step), step)
            plan = planned(config(*words, "schedule.when=plateau", "schedule.ends=[0.4,0.75,1]"), ended)
    assert first.earliest
    assert first.earliest.steps <= plan.steps <= first.steps
    spans = (each.schedule.stages for each in (first.earliest, plan, first))
    for earliest, here, latest in zip(*spans, strict=True):
        assert earliest.end_step <= here.end_step <= latest.end_step
    if "flops" in length:
        assert plan.flops <= 8e8 < plan.flops + plan.step_cost.flops(4, 0) * plan.step_cost.accumulation
    else:
        assert first.flops <= plan.flops <= first.earliest.flops


def test_a_run_is_made_longer_once_its_last_stage_has_begun(config: Callable[..., Config], tmp_path: Path) -> None:
    config_of_run = config(*RUN, *LATEST, *AT_ONCE, "optim.schedule=constant")
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    train(config_of_run, run)
    plan = resume(run, {"budget": {"steps": 30}}).plan
    assert [stage.end_step for stage in plan.schedule.stages] == [4, 8, 30]
    assert read_rows(run)[-1]["flops"] == plan.flops
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(3, patch)
        with pytest.raises(Interrupted):
            train(config_of_run, stopped)
    with pytest.raises(ApolloError, match=r"budget\.steps=30: with schedule\.when=plateau .* in its last stage"):
        resume(stopped, {"budget": {"steps": 30}})


def test_evaluations_too_rare_for_a_plateau_are_refused(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"eval\.every=6: no stage has 3 evaluations.*type a smaller eval\.every"):
        planned(config(*RUN, *LATEST, *PLATEAU, "eval.every=6"))
