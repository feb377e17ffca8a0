"""Every growth method in one sweep: equal FLOPs, one source for each seed, and names that tell them apart."""

import json
import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.help import groups
from apollo_cli.errors import ConfigError
from apollo_cli.sweeps import grid
from apollo_cli.train import STAMP, run
from benchmarks import method_cells
from tests.sweeps.test_ablations import jobs

GROWN = {*method_cells.GROWN, *method_cells.FROM_SOURCE, "net2net_width", "apollo_as_released"}


def small(tiny: tuple[str, ...]) -> list[str]:
    """Words for one seed of short rows; the models keep their sizes, which belong together."""
    kept = ("data.files", "data.cache_dir", "data=", "tracking", "device")
    rows = ["data.seq_len=16", "data.validation=0.1", "batch.size=4", "eval.rows=4", "eval.every=100"]
    return [*(word for word in tiny if word.startswith(kept)), *rows, "budget.flops=6e10", "seed=0"]


@pytest.fixture(autouse=True)
def _stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STAMP, "now")


def commands(*words: str) -> list[list[str]]:
    return grid.commands(CommandLine.parse(["-m", "experiment=all_methods", *words]))


def test_scratch_and_the_smaller_model_run_before_the_methods() -> None:
    scratch, source, methods_ = commands("seed=0,1", "model=gpt", "optim.clip=2")
    common = {
        "seed=0,1",
        "model=gpt",
        "optim.clip=2",
        "hydra.sweep.dir='outputs/${apollo_parent:${plan},all_methods}/now'",
    }
    assert {"name=scratch", "experiment=all_methods", "schedule=scratch"} | common <= set(scratch)
    assert {"experiment=[all_methods,_source]"} | common <= set(source)
    assert not [word for word in (*scratch, *source) if "gstack" in word]
    (swept,) = [word for word in methods_ if word.startswith("experiment=")]
    assert "[all_methods,gstack]," in swept
    assert common <= set(methods_)


def test_its_sentence_says_how_many_runs_it_is() -> None:
    parsed = [OverridesParser.create().parse_overrides(words) for words in commands()]
    runs = sum(
        len(grid.combinations([o for o in sweep if o.is_sweep_override()], is_grid=True)) for sweep in parsed
    )
    assert groups()["experiment"]["all_methods"].endswith(f"; {runs} runs")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.hidden=128", r"model\.hidden: experiment=all_methods has models and methods of its own"),
        ("schedule=stackbert", r"schedule: experiment=all_methods has models and methods of its own"),
        (
            "optim.lr=1e-3,2e-3",
            r"optim\.lr=1e-3,2e-3: experiment=all_methods has one source for each model and seed",
        ),
    ],
)
def test_what_would_part_methods_from_their_sources_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        commands("seed=0,1", "model=bert,gpt", "optim.clip=2", word)
    (problem,) = error.value.problems
    assert re.match(message, problem)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_each_is_its_own_preset_on_the_same_work_with_the_flops_of_scratch(kind: str) -> None:
    scratch, sources, grown = jobs(["experiment=all_methods", f"model={kind}", "seed=1"])
    assert [config.run.name for config in scratch] == ["scratch"]
    names = [config.run.name for config in grown]
    assert sorted(names) == sorted(GROWN)
    of_work = ("model", "data", "batch", "eval", "run")
    for config in grown:
        theirs, ours = ({name: dict(getattr(c, name)) for name in of_work} for c in (config, scratch[0]))
        theirs["run"]["name"] = "scratch"
        assert theirs == ours
        assert config.optim.lr == scratch[0].optim.lr
        assert config.optim.schedule == "wsd"
    (source,) = sources
    assert source.budget.flops == pytest.approx(
        method_cells.flops(kind, "source", method_cells.SOURCE_STEPS), rel=0.04
    )
    assert scratch[0].budget.flops == pytest.approx(
        method_cells.flops(kind, "scratch", method_cells.scratch_steps()), rel=0.02
    )
    for config in grown:
        took = source.budget.flops if config.run.name in method_cells.FROM_SOURCE else 0
        assert (config.budget.flops or 0) + (took or 0) == scratch[0].budget.flops


@pytest.mark.slow
def test_the_whole_sweep_runs_and_continues(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # at 80 a name is broken where the seconds have more digits
    words = ["-m", "experiment=all_methods", *small(tiny), f"hydra.sweep.dir={tmp_path}/sweep"]
    assert run(words) == 0
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert {summary["name"] for summary in summaries} == {*GROWN, "scratch", "source"}
    assert {s["name"] for s in summaries if s["totals"].get("source_flops")} == set(method_cells.FROM_SOURCE)
    table = capsys.readouterr().out.rpartition("Sweep of 17")[2]
    assert table.count("completed") == 17
    assert "gstack]" in table
    assert run(words) == 0
    assert capsys.readouterr().out.count(": completed before\n") == 17
