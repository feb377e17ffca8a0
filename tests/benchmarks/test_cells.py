"""Cells of the reproduction: what they share, their names and their presets."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.config.config import Config
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan
from apollo_cli.training.run import train
from benchmarks import cells, gpu_cells
from benchmarks.cells import CONFIGS, KINDS, METHODS, SEARCH_PATH, TUNED, VARIANTS, ReproductionCell
from benchmarks.configs import config_of
from tests.conftest import read_rows

FREE = {
    "name",
    "optim",
    "schedule",
    "sampler",
    "expander",
    "init_from",
    "budget",
    "seed",
}  # in which methods may differ
PRESETS = sorted(path.stem for path in (CONFIGS / "experiment").glob("[!_]*.yaml"))


@cache
def config_of_cell(cell: ReproductionCell) -> Config:
    return config_of([*cell.words, "device=cpu"])


def fixed(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.raw.items() if key not in FREE}


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        ("gpt", METHODS),
        pytest.param("gpt", (*VARIANTS, "scratch_cosine"), marks=pytest.mark.slow),
        pytest.param("bert", (*METHODS, *VARIANTS, "scratch_cosine"), marks=pytest.mark.slow),
    ],
)
def test_methods_share_model_data_batch_and_evaluation(kind: str, methods: tuple[str, ...]) -> None:
    scratch = config_of_cell(ReproductionCell(kind, "scratch", "4e-3", 0))
    assert scratch.schedule.layers == (12,)
    for method in methods:
        config = config_of_cell(ReproductionCell(kind, method, "4e-3", 0))
        assert config.run.name == f"repro_{method}"
        assert fixed(config) == fixed(scratch)
        ours, theirs = (dict(c.raw)["optim"] | {"schedule": "", "decay": ""} for c in (config, scratch))
        assert ours == theirs
        assert make_plan(config, choose(config.run)).stages[-1].stage.layers == 12


def test_on_a_gpu_methods_keep_their_share_of_the_steps_and_nothing_else_differs() -> None:
    wanted = gpu_cells.gpu_cells("gpt", 2000)
    assert [cell.steps for cell in wanted] == [2000, 1800, 1800, 2933, 2867, 1120]
    assert [gpu_cells.preset_steps(method) for method in gpu_cells.METHODS] == [30000, 27000, 27000, 44000, 43000]
    scratch, *others = (config_of([*cell.words, "precision=fp32", "device=cpu"]) for cell in wanted[:-1])
    assert (scratch.model.layers, scratch.model.hidden) == (12, 512)
    assert all(fixed(config) == fixed(scratch) for config in others)


def test_every_preset_belongs_to_a_method() -> None:
    methods = {*METHODS, *VARIANTS, "scratch_cosine", *(f"gpu_{method}" for method in gpu_cells.METHODS)}
    assert {f"repro_{method}" for method in methods} == set(PRESETS)


def test_every_cell_has_a_name_and_a_run_of_its_own() -> None:
    wanted = cells.cells("pydocs")
    assert len({cell.name for cell in wanted}) == len(wanted) == len({cell.words for cell in wanted})
    assert set(cells.headline_cells("gpt")) <= set(wanted)
    assert all(TUNED[kind, method] in cells.RATES[kind] for kind in KINDS for method in METHODS)


def test_cells_on_other_text_compare_methods_alone() -> None:
    other = cells.cells("novels")
    own = [cell for cell in other if cell not in cells.steadier_cells()]
    assert len(other) - len(own) == 3
    assert set(own) < set(cells.cells("pydocs"))
    assert {cell.method for cell in own} == {"scratch", "stackbert", "apollo_late", "late_zero_init"}
    assert {cell.rate for cell in own} == {TUNED[kind, "scratch"] for kind in KINDS}
    for method in cells.COMPARED:
        assert {cell.seed for cell in other if cell.method == method} == {0, 1, 2}


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=[] if name == "repro_late_zero_init" else pytest.mark.slow) for name in PRESETS],
)
def test_every_preset_trains(preset: str, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """At its own depth and stages; only the width, the corpus and the length are small."""
    own = ("model.layers", "schedule.")
    words = [word for word in tiny if not word.startswith(own)]
    preset_words = [SEARCH_PATH, f"experiment={preset}", "precision=fp32"]
    config = config_of([*preset_words, *words, "budget.flops=null", "budget.steps=16"])
    result = train(config, tmp_path)
    assert read_rows(tmp_path)[-1]["flops"] == result.plan.flops
    assert read_rows(tmp_path)[-1]["layers"] == 12
