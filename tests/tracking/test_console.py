import io
import re
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest

from apollo_cli.config.config import Config
from apollo_cli.growth.plan import SourceCost
from apollo_cli.tracking import console as module
from apollo_cli.tracking.console import Console, duration, plan_table, plan_totals, summary_table
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan

ROW = {
    "step": 3, "micro_step": 6, "tokens": 192, "train_seconds": 2.0, "total_seconds": 3.0, "stage": 1, "layers": 1,
}  # fmt: skip
TRAINING = {
    "train/loss": 5.5, "train/lr": 1e-3, "train/grad_norm": 0.5, "train/depth": 2, "train/skipped_steps": 0,
}  # fmt: skip


def test_lines_have_stage_layers_depth_loss_flops_and_eta(
    config: Callable[..., Config], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = make_plan(config(), choose(config().run))
    console = Console()
    console.say("before the log is open")
    console.log_to(tmp_path / "train.log")
    console.start(plan)
    console.row(ROW | {"flops": plan.flops // 4} | TRAINING)
    console.row(ROW | {"flops": plan.flops // 4, "eval/loss": 5.0, "eval/loss_full_depth": 5.1})
    growth = {"growth/from": 1, "growth/to": 2, "eval/loss": 5.0, "eval/loss_full_depth": 5.1}
    console.row(ROW | {"flops": 0} | growth)
    console.row(ROW | {"flops": 0, "layers": 2} | growth | {"eval/loss": 5.03})
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "loss 5.5000" in line)
    for part in ("3/12", "stage 1/3", "layers  1", "depth  2", "ETA 0:00:06", "lr 1.00e-03"):
        assert part in line
    assert "FLOPs: validation loss 5.0000, full depth 5.1000" in out
    assert "before growth" not in out  # it was evaluated just now
    assert "grown 1 -> 2 layers, validation loss 5.0300 (+0.0300), full depth 5.1000" in out
    assert (tmp_path / "train.log").read_text() == out


def test_a_growth_in_width_is_printed(config: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> None:
    console, losses = Console(), {"eval/loss": 5.0, "eval/loss_full_depth": 5.0, "flops": 0}
    width = {"growth/width_from": 0.5, "growth/width_to": 1}
    for layers in (1, 2):
        growth = losses | {"growth/from": 1, "growth/to": layers} | width
        console.row(ROW | growth | {"width": 0.5})
        console.row(ROW | growth | {"width": 1, "layers": layers})
    lines = [line.partition("FLOPs: ")[2] for line in capsys.readouterr().out.splitlines()]
    after = ", validation loss 5.0000 (+0.0000)"
    assert lines == [
        "before growth, validation loss 5.0000",
        f"grown 0.5 -> 1 of the width{after}",
        "before growth, validation loss 5.0000",
        f"grown 1 -> 2 layers, 0.5 -> 1 of the width{after}",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("width", "there", "missing"),
    [
        (60, ["3/12", "loss 5.5000", "ETA"], ["validation", "stage"]),
        (80, ["3/12", "stage 1/3", "loss 5.5000", "validation 5.0000", "ETA"], ["layers", "FLOPs"]),
        (
            140,
            ["3/12", "stage 1/3", "layers  1", "depth  2", "loss 5.5000", "validation 5.0000", "FLOPs", "ETA"],
            [],
        ),
    ],
)
def test_the_live_bar_fits_the_terminal_with_what_matters_most(
    width: int, there: list[str], missing: list[str], config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    plan, console = make_plan(config(), choose(config().run)), Console()
    console.start(plan)
    try:
        console.row(ROW | {"flops": plan.flops // 4, "eval/loss": 5.0, "eval/loss_full_depth": 5.1})
        console.row(ROW | {"flops": plan.flops // 4} | TRAINING)
        console.step(ROW | {"flops": plan.flops // 4} | TRAINING)
        assert console.bar
        (task,) = console.bar.tasks
        assert len(task.description) + 16 + 1 < width
        assert all(part in task.description for part in there), task.description
        assert not any(part in task.description for part in missing), task.description
        console.evaluating(38, 128)
        assert task.description == "evaluating 38/128"
        console.row(ROW | {"flops": plan.flops // 4, "eval/loss": 4.5, "eval/loss_full_depth": 5.1})
        assert "ETA" in task.description
    finally:
        console.stop()


def test_lines_break_between_words_on_a_narrow_terminal(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    console = Console()
    console.say(plan_totals(make_plan(config(), choose(config().run))), in_words=True)
    console.row(ROW | {"flops": 10**12, "eval/loss": 5.25, "eval/loss_full_depth": 5.125})
    lines = out.getvalue().splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40
    assert {"micro-steps,", "fewer", "1.000e+12", "5.2500,", "5.1250"} <= set(out.getvalue().split())


def test_totals_name_the_cost_of_the_source_and_no_saving_of_scratch(config: Callable[..., Config]) -> None:
    plan = make_plan(config(), choose(config().run))
    begun = plan_totals(replace(plan, source=SourceCost(10**18)))
    assert f"{plan.flops} FLOPs, after 1.0000e+18 of the model that it begins with; scratch at equal steps" in begun
    settings = config("schedule.layers=[4]", "schedule.ends=[1]")
    assert plan_totals(make_plan(settings, choose(settings.run))).endswith(" FLOPs")


def test_the_plan_table_marks_narrow_stages(config: Callable[..., Config]) -> None:
    words = ("expander=bert2bert", "schedule.widths=[0.5,1,1]")
    table = plan_table(make_plan(config(*words), choose(config().run)), estimated=False)
    assert list(table.columns[0].cells) == ["1 x 0.5", "2", "4"]


def test_the_plan_table_holds_the_plan(config: Callable[..., Config]) -> None:
    from rich.console import Console as RichConsole

    plan = make_plan(config(), choose(config().run))
    out = RichConsole(width=80, file=io.StringIO(), record=True)
    out.print(plan_table(plan, estimated=False))
    text = out.export_text()
    for stage in plan.stages:
        assert f"{stage.parameters:,}" in text
        assert f"{stage.flops:.3e}" in text
    assert "…" not in text
    assert "an estimate" not in text
    assert re.search(rf"{plan.flops} FLOPs.*{plan.scratch_flops} FLOPs", plan_totals(plan))


@pytest.mark.parametrize(
    ("last", "best", "shown"),
    [
        (2.0, {"step": 4, "eval/loss": 1.5}, True),
        (2.0, {"step": 8, "eval/loss": 2.0}, False),
        (2.0, None, False),
        (nan, None, False),
    ],
)
def test_the_summary_names_a_best_loss_that_is_not_the_last(
    last: float, best: dict[str, float] | None, shown: bool
) -> None:
    numbers = dict.fromkeys(("steps", "planned_steps", "flops", "scratch_flops", "tokens", "layers"), 8)
    totals = numbers | {"train_seconds": 2.0, "total_seconds": 3.0}
    summary = {"status": "completed", "totals": totals, "losses": {"eval/loss": last}, "best": best}
    names, values = summary_table(summary | {"device": "cpu", "run_dir": "run"}).columns
    cells = dict(zip(names.cells, values.cells, strict=True))
    assert cells.get("best validation loss") == ("1.5000 after step 4" if shown else None)
    assert cells["training time"] == "0:00:02 (4 tokens/s)"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (61, "0:01:01"), (90061, "1 day, 1:01:01")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_step_prints_the_remaining_time_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every half minute, and not before a hundredth is done: what is left of that is no guess."""
    clock = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    with Console().progress("packing") as at:
        for seconds, share in [(40, 0.0001), (60, 0.25), (70, 0.3), (100, 0.5), (140, None), (200, 1.0)]:
            clock[0] = seconds
            at(share)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["packing: 25%, ETA 0:03:00", "packing: 50%, ETA 0:01:40", "packing: 100%, ETA 0:00:00"]
