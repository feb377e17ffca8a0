"""Runs that learn a map between two stages."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

from apollo_cli.config.config import Config
from apollo_cli.data.batches import TrainingBatches
from apollo_cli.errors import TrainingError
from apollo_cli.growth.layer_maps import mixing_matrix
from apollo_cli.growth.rng import Purpose, generator
from apollo_cli.models.transformer import Batch
from apollo_cli.signals import Interrupted
from apollo_cli.tracking.console import plan_totals
from apollo_cli.training import planning
from apollo_cli.training.init_from import transfer
from apollo_cli.training.init_from.learned_map import learn
from apollo_cli.training.run import resume, train
from tests.conftest import RARELY, read_rows
from tests.training.init_from.test_source import map_flops_by_hand
from tests.training.init_from.test_weights import GROWN, OFTEN, grown, moved, planned
from tests.training.test_methods import weights as weights_of
from tests.training.test_resume import assert_same, stop_after, terminate

SPAN = ("expander=ligo", "expander.steps=3", "sampler=shallow", "schedule.layers=[2,4]", "schedule.ends=[0.5,1]")
BOTH = (*SPAN, "schedule.widths=[0.5,1]")


def micro_step(h: int, f: int, layers: int) -> int:
    """GPT: 2 rows of 16 tokens, 15 predictions each, a vocabulary of 300; forward, and twice that backward."""
    return 3 * 2 * (16 * layers * (8 * h**2 + 4 * h * f + 4 * h * 16) + 15 * 2 * h * 300)


def test_planned_and_recorded_flops_are_those_by_hand(config: Callable[..., Config], tmp_path: Path) -> None:
    """From 2 layers of h = 8, f = 16 to 4 of h = 16, f = 32; 6 steps of 2 micro-steps each, and 3 of the map."""
    small, large = 12 * micro_step(8, 16, 2), 12 * micro_step(16, 32, 4)
    of_map = 3 * (micro_step(16, 32, 4) + map_flops_by_hand(8, 16, 16, 32, 300 + 16, 2, 4))
    plan = train(config("model=gpt", *BOTH), tmp_path).plan
    assert [(stage.flops, stage.map_flops) for stage in plan.stages] == [(small, 0), (large, of_map)]
    written = plan.as_dict()
    assert (written["map_flops"], written["flops"]) == (of_map, small + of_map + large)
    assert f"({of_map} of them to learn maps)" in plan_totals(plan)
    rows = read_rows(tmp_path)
    before, after = [row for row in rows if "growth/to" in row]
    assert (before["flops"], after["flops"]) == (small, small + of_map)
    assert after["train_seconds"] > before["train_seconds"]
    assert rows[-1]["flops"] == plan.flops


def test_a_source_and_every_growth_have_their_own_map(config: Callable[..., Config], tmp_path: Path) -> None:
    """1 layer of h = 4, f = 8 becomes 2 of h = 8, f = 16; those 2 of the whole width, and those 4."""
    small = ("model.layers=1", "model.hidden=4", "model.heads=1", "model.ffn=8", "schedule.layers=[1]")
    train(config("model=gpt", *small, "schedule.ends=[1]"), tmp_path / "source")
    words = (*SPAN, "model.heads=4", "schedule.layers=[2,2,4]", "schedule.ends=[0.25,0.5,1]",
             "schedule.widths=[0.5,1,1]", f"init_from.path={tmp_path / 'source'}")  # fmt: skip
    plan = train(config("model=gpt", *words), tmp_path / "run").plan
    assert [stage.map_flops for stage in plan.stages] == [
        3 * (micro_step(8, 16, 2) + map_flops_by_hand(4, 8, 8, 16, 300 + 16, 1, 2)),
        3 * (micro_step(16, 32, 2) + map_flops_by_hand(8, 16, 16, 32, 300 + 16, 2, 2)),
        3 * (micro_step(16, 32, 4) + map_flops_by_hand(16, 32, 16, 32, 300 + 16, 2, 4)),
    ]
    rows = read_rows(tmp_path / "run")
    assert all(row["total_seconds"] >= row["train_seconds"] for row in rows)
    assert (rows[0]["flops"], rows[-1]["flops"]) == (plan.stages[0].map_flops, plan.flops)
    assert plan.flops == plan.map_flops + sum(stage.flops for stage in plan.stages)


def test_rates_are_those_of_steps_without_the_map(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []

    def timed(*arguments: Any) -> Any:
        began = perf_counter()
        result = learn(*arguments)
        seconds.append(perf_counter() - began)
        return result

    monkeypatch.setattr(transfer, "learn", timed)
    train(config("model=gpt", *BOTH, *RARELY), tmp_path)
    rows = [row for row in read_rows(tmp_path) if "train/loss" in row]
    for before, row in pairwise(rows):
        of_map = seconds[0] if before["step"] == GROWN else 0
        spent = row["train_seconds"] - before["train_seconds"] - of_map
        tokens = row["tokens"] - before["tokens"]
        assert row["perf/tokens_per_second"] == pytest.approx(tokens / spent, rel=0.05)


def test_a_budget_of_seconds_pays_for_the_map(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A micro-step of the last stage takes a second, the three of the map a little more, and they count once."""
    monkeypatch.setattr(planning, "seconds_by_depth", lambda *_: lambda depth: depth / 4)
    plan = planned(config("model=gpt", *BOTH, "budget.steps=null", "budget.seconds=100"))
    of_map = plan.stages[1].map_flops / micro_step(16, 32, 4)
    assert 3 < of_map < 6
    assert plan.steps == 2 * int((100 - of_map) / 3)  # one of 2 micro-steps of half a second, one of a second each


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gpt", BOTH),
        pytest.param("bert", (*SPAN, "model.dropout=0.1"), marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_or_killed_around_the_growth_is_resumed_exactly(
    kind: str, words: tuple[str, ...], config: Callable[..., Config], tmp_path: Path
) -> None:
    settings, run = config(f"model={kind}", *RARELY, *words), tmp_path / "run"
    train(settings, tmp_path / "straight")

    def in_the_map(model: Any, learned: Any, batch: Callable[[int], Batch], *rest: Any) -> Any:
        def watched(step: int) -> Batch:
            if step == 2:
                terminate()
            return batch(step)

        return learn(model, learned, watched, *rest)

    def after_the_map(*arguments: Any) -> Any:
        learn(*arguments)
        raise KeyboardInterrupt

    for wrapped in (None, None, in_the_map, after_the_map, None):
        with pytest.MonkeyPatch.context() as patch:
            for step in (GROWN - 1, GROWN, GROWN + 1):
                stop_after(step, terminate, patch)
            if wrapped:
                patch.setattr(transfer, "learn", wrapped)
            with pytest.raises(Interrupted):
                resume(run) if run.exists() else train(settings, run)
        torch.manual_seed(999)
    assert read_rows(run)[-1]["step"] == GROWN
    resume(run)
    assert_same(run, tmp_path / "straight")


def test_the_map_is_learned_on_the_rows_of_the_stage(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    original = TrainingBatches.micro_batch

    def watched(batches: TrainingBatches, step: int, part: int) -> Batch:
        asked.append((step, part, batches.processes))
        return original(batches, step, part)

    monkeypatch.setattr(TrainingBatches, "micro_batch", watched)
    words = ("model=gpt", *BOTH, "batch.size=16", "batch.micro=16", "expander.steps=20", "expander.lr=2e-2")
    train(config(*words), tmp_path)
    steps = (0, *range(20), 0)  # measured on the first one before and after
    assert asked[GROWN : GROWN + 22] == [(GROWN + step, 0, 1) for step in steps]
    assert asked[GROWN + 22] == (GROWN, 0, 1)
    said = (tmp_path / "train.log").read_text(encoding="utf-8")
    (ends,) = re.findall(r"a map was learned in 20 steps, loss (\S+) -> (\S+)", said)
    first, last = map(float, ends)
    assert last < first - 0.05
    before, after = [row for row in read_rows(tmp_path) if "growth/to" in row]
    assert after["eval/loss"] < before["eval/loss"] - 0.05


def test_a_map_of_depth_alone_changes_nothing_else(config: Callable[..., Config], tmp_path: Path) -> None:
    """At a learning rate of 0 the map stays as initialized: stacking, with noise drawn module by module."""
    trainer, after = grown(("model=bert", *SPAN, *OFTEN, "expander.lr=1e-30"), config, tmp_path)
    before, rng = weights_of(tmp_path, GROWN), generator(0, Purpose.GROWTH, 1)
    modules = ("query", "key", "value", "attention_out", "attention_norm", "ffn_in", "ffn_out", "ffn_norm")
    drawn = {name: mixing_matrix("stack", 2, 4) + rng.uniform(0, 0.03, (4, 2)) for name in modules}
    mixed = {name: torch.from_numpy(w / w.sum(axis=1, keepdims=True)).float() for name, w in drawn.items()}
    for name in after:
        if not name.startswith("blocks."):
            assert torch.equal(after[name], before[name]), name
    for slot in range(4):
        for module in modules[3:]:
            name = f"{module}.weight"
            expected = sum(w * before[f"blocks.{j}.{name}"] for j, w in enumerate(mixed[module][slot]))
            torch.testing.assert_close(after[f"blocks.{slot}.{name}"], expected, rtol=0, atol=1e-6)
    assert set(trainer.optimizer.state) == set(trainer.model.parameters())
    assert {f"blocks.{slot}" for slot in range(4)} < moved(tmp_path, GROWN + 1)


@pytest.mark.parametrize(("steps", "where"), [(3, r"step \d"), (1, "the end")])
def test_a_map_that_is_not_finite_ends_the_run_with_one_message(
    steps: int, where: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    said = rf"expander\.lr=1e\+30: at {where} of the learned map .*a lower expander\.lr may help"
    with pytest.raises(TrainingError, match=said):
        train(config("model=gpt", *BOTH, f"expander.steps={steps}", "expander.lr=1e30"), tmp_path)
