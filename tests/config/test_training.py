"""Optimizer, budget, batch and what happens every so often: what may be typed, and what goes with what."""

from typing import Any

import pytest

from apollo_cli.config import training
from apollo_cli.config.config import parse
from apollo_cli.config.training import TrackingArgs
from tests.helpers.config_values import changed, refuses


def piecewise(knots: Any) -> dict[str, Any]:
    return {"optim.schedule": "piecewise", "optim.knots": knots}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch.size": 10**25}, ["batch.size=10000000000000000000000000", "less than or equal"]),
        ({"batch.size": 0}, ["batch.size=0", "greater than 0"]),
        ({"batch.size": 2.5}, ["batch.size=2.5", "integer"]),
        ({"batch.micro": 5}, ["batch.micro=5", "batch.size=32", "divide"]),
        ({"batch.micro": 64}, ["batch.micro=64", "batch.size=32"]),
        ({"eval.every": 0}, ["eval.every=0", "greater than 0"]),
        ({"checkpoint.keep": 0}, ["checkpoint.keep=0", "greater than 0"]),
        ({"optim.lr": 0}, ["optim.lr=0", "greater than 0"]),
        ({"optim.lr": float("nan")}, ["optim.lr=nan"]),
        ({"optim.lr": float("inf")}, ["optim.lr=inf"]),
        ({"optim.warmup": 1}, ["optim.warmup=1", "less than 1"]),
        ({"optim.schedule": "step"}, ["optim.schedule=step", "cosine", "linear", "wsd", "constant"]),
        ({"optim.betas": [0.9]}, ["optim.betas=", "0.9"]),
        (
            {"optim.schedule": "wsd", "optim.warmup": 0.6, "optim.decay": 0.5},
            ["optim.warmup=0.6", "optim.decay=0.5", "more than the whole run"],
        ),
        (
            {"optim.schedule": "piecewise"},
            ["optim.schedule=piecewise", "optim.knots is missing", "'optim.knots=[[0.5,0.3],[1,0]]'"],
        ),
        (
            {"optim.knots": [[1, 0]]},
            [
                "optim.knots is set and optim.schedule=wsd",
                "type optim.schedule=piecewise, or optim.knots=null",
            ],
        ),
        (piecewise(0.5), ["optim.knots=0.5", "pairs [share of all steps, share of the peak]"]),
        (piecewise([]), ["optim.knots=[]", "pairs"]),
        (piecewise([0.5, 1]), ["optim.knots=[0.5, 1]", "pairs", "'optim.knots=[[0.5,0.3],[1,0]]'"]),
        (piecewise([[0.5, 0.3, 0.1], [1, 0]]), ["optim.knots=[[0.5, 0.3, 0.1], [1, 0]]", "pairs"]),
        (piecewise([[0.5, "half"], [1, 0]]), ["optim.knots=[[0.5, 'half'], [1, 0]]", "pairs"]),
        (piecewise([[0.5, 1.5], [1, 0]]), ["optim.knots=[[0.5, 1.5], [1, 0]]", "from 0 to 1"]),
        (piecewise([[-0.5, 0.5], [1, 0]]), ["optim.knots=[[-0.5, 0.5], [1, 0]]", "from 0 to 1"]),
        (piecewise([[0.5, float("nan")], [1, 0]]), ["optim.knots=[[0.5, nan], [1, 0]]", "from 0 to 1"]),
        (piecewise([[0.5, 0.3], [0.5, 0.2], [1, 0]]), ["optim.knots=[[0.5, 0.3], [0.5, 0.2]", "rise to 1"]),
        (piecewise([[0.6, 0.3], [0.5, 0.2], [1, 0]]), ["optim.knots=[[0.6, 0.3], [0.5, 0.2]", "rise to 1"]),
        (piecewise([[0.5, 0.3]]), ["optim.knots=[[0.5, 0.3]]", "rise to 1"]),
        (
            {**piecewise([[0.1, 0.9], [1, 0]]), "optim.warmup": 0.1},
            ["optim.knots=[[0.1, 0.9], [1.0, 0.0]]", "after optim.warmup=0.1"],
        ),
        ({**piecewise([[1, 0.1]]), "optim.final_lr": 0.1}, ["optim.final_lr=0.1", "the last of optim.knots"]),
        (
            {**piecewise([[1, 0]]), "optim.at_growth": "rewind"},
            ["optim.at_growth=rewind", "cannot start again", "optim.at_growth=continue or rewarm"],
        ),
        (
            {"optim.at_growth": "rewind", "optim.decay": 0.25},
            ["optim.at_growth=rewind", "growth after 0.8", "optim.decay=0.25", "rewarm or continue"],
        ),
        (
            {"optim.at_growth": "rewarm", "optim.warmup": 0.3},
            ["optim.warmup=0.3", "growth at 0.8", "before the run ends", "shorter than 0.2"],
        ),
        ({"tracking.wandb": "yes"}, ["tracking.wandb=yes", "auto", "online", "offline", "disabled"]),
        ({"tracking.project": "me/apollo"}, ["tracking.project=me/apollo", "refuses /", "leave it out"]),
        ({"tracking.project": "p" * 129}, ["tracking.project=", "1 to 128 characters"]),
        ({"tracking.entity": "a:b"}, ["tracking.entity=a:b", "refuses :"]),
        ({"tracking.group": "g" * 129}, ["tracking.group=", "1 to 128 characters"]),
        ({"tracking.tags": ["a", "t" * 65]}, ["tracking.tags=", "1 to 64 characters"]),
        ({"tracking.tags": ["a", " "]}, ["tracking.tags=", "1 to 64 characters"]),
        ({"budget.tokens": 100}, ["exactly one budget", "budget.steps and budget.tokens", "null"]),
        ({"budget.steps": None}, ["exactly one budget", "none", "budget.steps, budget.tokens, budget.flops"]),
        ({"budget.steps": -5}, ["budget.steps=-5", "greater than 0"]),
        ({"budget.steps": None, "budget.seconds": 0}, ["budget.seconds=0", "greater than 0"]),
        ({"budget.steps": None, "budget.patience": 3}, ["exactly one budget", "none"]),
        ({"budget.patience": 0}, ["budget.patience=0", "greater than 0"]),
        ({"budget.target_loss": -1}, ["budget.target_loss=-1", "greater than 0"]),
        ({"init_from.optimizer": True}, ["init_from.optimizer=true", "init_from.path is null"]),
        ({"init_from.checkpoint": "best"}, ["init_from.checkpoint=best", "init_from.path is null"]),
    ],
)
def test_an_invalid_value_is_refused_with_key_value_and_remedy(
    composed: dict[str, Any], changes: dict[str, Any], says: list[str]
) -> None:
    refuses(composed, changes, says)


def test_tensorboard_without_its_package_is_refused(
    composed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "find_spec", lambda package: None)
    refuses(composed, {"tracking.tensorboard": True}, ["tracking.tensorboard=true", "apollo-train[tensorboard]"])


def test_trackers_of_an_older_config_have_the_defaults_of_the_file(composed: dict[str, Any]) -> None:
    older = {key: composed["tracking"][key] for key in ("wandb", "project", "timeout")}
    assert TrackingArgs.model_validate(older) == TrackingArgs.model_validate(composed["tracking"])


@pytest.mark.parametrize(("micro", "size", "steps"), [(None, 32, 1), (4, 4, 8), (32, 32, 1), (1, 1, 32)])
def test_a_step_is_as_many_micro_steps_as_fill_the_batch(
    composed: dict[str, Any], micro: int | None, size: int, steps: int
) -> None:
    batch = parse(changed(composed, {"batch.micro": micro})).batch
    assert (batch.micro_size, batch.accumulation) == (size, steps)
