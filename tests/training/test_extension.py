"""A run that is made longer than it was planned."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from apollo_cli.config.config import Config, parse
from apollo_cli.errors import ApolloError
from apollo_cli.training.device import choose
from apollo_cli.training.extension import first_changed_rate
from apollo_cli.training.planning import make_plan
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import RARELY, STEPS, read_rows
from tests.training.test_resume import assert_same, interrupt

CONSTANT = ("model=gpt", *RARELY, "optim.schedule=constant", "optim.warmup=0.25")


def extended(config: Config, *lengths: int) -> Config:
    """The config of a run that was planned with these numbers of steps, one after the other."""
    budget = config.raw["budget"] | {"steps": lengths[-1], "extended_from": list(lengths[:-1])}
    return parse({**config.raw, "budget": budget})


def test_a_finished_run_goes_on_with_its_stages_and_its_warmup_and_is_resumed_exactly(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, run, straight = config(*CONSTANT), tmp_path / "run", tmp_path / "straight"
    for folder in (run, straight):
        train(first, folder)
    with pytest.raises(ApolloError, match=r"complete.*budget\.steps=N.*init_from\.path="):
        resume(run)
    resume(straight, {"budget": {"steps": 20}})
    interrupt(lambda: resume(run, {"budget": {"steps": 20}}), 15, monkeypatch)
    resume(run, {"budget": {"steps": 20}})  # the same command once more
    rows = read_rows(straight)
    assert_same(run, straight)
    plan, summary = (json.loads((run / name).read_text()) for name in ("plan.json", "summary.json"))
    assert [stage["end_step"] for stage in plan["stages"]] == [3, 6, 20]  # 0.25 and 0.5 of 12
    assert plan["extended_from"] == summary["extended_from"] == [STEPS]
    assert (summary["status"], summary["totals"]["steps"], rows[-1]["flops"]) == ("completed", 20, plan["flops"])
    saved = yaml.safe_load((run / "config.yaml").read_text())["budget"]
    assert (saved["steps"], saved["extended_from"]) == (20, [STEPS])
    rates = {row["step"]: row["train/lr"] for row in rows if "train/lr" in row}
    assert rates[3] == rates[18] == 3e-3  # a warmup of 3 steps, as before


def test_a_run_that_is_killed_while_it_is_made_longer_continues(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.yaml is replaced before plan.json, and no new checkpoint is there."""
    train(config(*CONSTANT), tmp_path)
    plan = (tmp_path / "plan.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", lambda trainer, **_: None)
        interrupt(lambda: resume(tmp_path, {"budget": {"tokens": 16 * 4 * 15}}), STEPS + 1, patch)
    (tmp_path / "plan.json").write_text(plan)
    (tmp_path / "summary.json").unlink()
    assert resume(tmp_path).plan.steps == 15
    assert json.loads((tmp_path / "plan.json").read_text())["steps"] == 15


@pytest.mark.parametrize(
    ("words", "budget", "said"),
    [
        (
            ("optim.schedule=cosine",),
            {"steps": 20},
            r"optim\.schedule=cosine the rate of steps 1 to 11.*init_from\.path=",
        ),
        (("optim.schedule=constant",), {"steps": 11}, r"budget\.steps=11: the run is planned with 12 steps"),
        (("optim.schedule=constant",), {"flops": 10}, r"budget\.flops=10: .* is too small: 13 steps"),
    ],
)
def test_a_length_that_the_run_cannot_have_is_refused_and_changes_nothing(
    words: tuple[str, ...], budget: dict[str, float], said: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    train(config(*RARELY, "optim.warmup=0", *words), tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(ApolloError, match=said):
        resume(tmp_path, {"budget": budget})
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == files


@pytest.mark.parametrize(
    ("words", "done", "changed"),
    [
        (("optim.schedule=constant",), 100, None),
        (("optim.schedule=wsd", "optim.decay=0.2"), 81, None),  # of step 80 it is still the peak
        (("optim.schedule=wsd", "optim.decay=0.2"), 82, 81),
        (("optim.schedule=cosine",), 10, None),  # its warmup, and the step at the peak
        (("optim.schedule=cosine",), 12, 11),
        (("optim.schedule=constant", "optim.at_growth=rewarm"), 100, None),
    ],
)
def test_a_longer_run_must_leave_the_rates_of_its_steps_as_they_were(
    words: tuple[str, ...], done: int, changed: int | None, config: Callable[..., Config]
) -> None:
    before = config("budget.steps=100", "optim.warmup=0.1", *words)
    after = extended(before, 100, 300)
    planned, longer = (make_plan(each, choose(each.run)) for each in (before, after))
    assert first_changed_rate(before, planned, longer, done) == changed


def test_every_unit_makes_it_longer(config: Callable[..., Config]) -> None:
    steps = extended(config(), STEPS, 20)
    plan = make_plan(steps, choose(steps.run))
    for key, value in (("tokens", plan.tokens), ("flops", plan.flops)):
        other = parse({**steps.raw, "budget": steps.raw["budget"] | {"steps": None, key: value}})
        assert make_plan(other, choose(other.run)).schedule == plan.schedule


def test_gates_keep_their_steps(config: Callable[..., Config]) -> None:
    words = ("expander=msg", "sampler=shallow", "expander.gate_duration=0.25")
    plans = [make_plan(each, choose(each.run)) for each in (config(*words), extended(config(*words), STEPS, 40))]
    gates = [[plan.gates(step) for step in range(STEPS)] for plan in plans]
    assert any(gates[0])
    assert gates[0] == gates[1]


def test_a_run_whose_corpus_is_gone_stays_complete(
    config: Callable[..., Config], corpus_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_bytes(corpus_file.read_bytes())
    own = (f"data.files=[{tmp_path}/own.txt]", f"data.cache_dir={tmp_path}/cache")
    train(config(*CONSTANT, *own), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    (tmp_path / "own.txt").rename(tmp_path / "away.txt")
    with pytest.raises(ApolloError, match=r"no file matches"):
        resume(tmp_path / "run", {"budget": {"steps": 20}})
    (tmp_path / "own.txt").write_text("another text\n\n" * 2_000)
    with pytest.raises(ApolloError, match=r"corpus"):
        resume(tmp_path / "run", {"budget": {"steps": 20}})
    assert {path: path.read_bytes() for path in before} == before
