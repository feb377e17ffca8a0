"""Every growth method in one sweep: equal FLOPs, one source for each seed, and names that tell them apart."""

import json
import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from apollo_cli.cli import experiment_grid
from apollo_cli.cli.help import groups
from apollo_cli.train import run
from benchmarks import method_cells
from tests.sweeps.test_ablations import cells

GROWN = {*method_cells.GROWN, *method_cells.FROM_SOURCE, "net2net_width", "apollo_as_released"}


def small(tiny: tuple[str, ...]) -> list[str]:
    """Words for one seed of short rows; the models keep their sizes, which belong together."""
    kept = ("data.files", "data.cache_dir", "data=", "tracking", "device")
    rows = ["data.seq_len=16", "data.validation=0.1", "batch.size=4", "eval.rows=4", "eval.every=100"]
    return [*(word for word in tiny if word.startswith(kept)), *rows, "budget.flops=6e10", "seed=0"]


def test_scratch_and_the_source_model_run_before_the_grid() -> None:
    typed = ["experiment=[all_methods,gstack],[all_methods,lemon]", "seed=0,1", "model=gpt", "sampler.k=3"]
    scratch, source = experiment_grid.before("all_methods", OverridesParser.create().parse_overrides(typed))
    assert {"name=scratch", "experiment=all_methods", "schedule=scratch", "seed=0,1", "model=gpt"} <= set(scratch)
    assert {"experiment=[all_methods,_source]", "seed=0,1", "model=gpt"} <= set(source)
    assert not [word for word in (*scratch, *source) if "gstack" in word or "sampler" in word]


def test_its_description_has_the_number_of_runs() -> None:
    typed = OverridesParser.create().parse_overrides(["experiment=all_methods"])
    swept = experiment_grid.grid("all_methods", typed)
    assert swept is not None
    sweeps = [*experiment_grid.before("all_methods", swept), [o.input_line or "" for o in swept]]
    runs = sum(experiment_grid.num_cells(words) or 0 for words in sweeps)
    assert groups()["experiment"]["all_methods"].endswith(f"; {runs} runs")
    assert len(sweeps) == 3


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
def test_overrides_that_methods_and_sources_do_not_share_are_refused(word: str, message: str) -> None:
    parser = OverridesParser.create()
    typed = parser.parse_overrides(["experiment=all_methods", "seed=0,1", "model=bert,gpt", "optim.clip=2", word])
    swept = parser.parse_overrides(["experiment=[all_methods,gstack],[all_methods,lemon]"])
    (problem,) = experiment_grid.problems("all_methods", typed, swept)
    assert re.match(message, problem)
    assert experiment_grid.problems("ablation/k", typed, parser.parse_overrides(["sampler.k=0,1"])) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_every_method_is_its_preset_on_the_same_work_with_the_flops_of_scratch(kind: str) -> None:
    scratch, sources, grown = cells(["experiment=all_methods", f"model={kind}", "seed=1"])
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
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
