"""GLUE of the reproduction's models: which models, which results are kept, and what is missing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apollo_cli.glue.tasks import TASKS
from benchmarks import cells, glue_cells
from benchmarks.cells import ReproductionCell
from benchmarks.glue_cells import GlueGroup, GlueUnit


def test_every_model_is_a_cell_of_the_reproduction() -> None:
    models = {cell for seed in cells.SEEDS for cell in glue_cells.models(seed).values()}
    assert models <= set(cells.cells("pydocs"))
    assert len(models) == 15
    assert {name for group in glue_cells.GROUPS for name in group.tasks} <= set(TASKS)


@pytest.fixture
def fine_tuned(no_results: None, tmp_path: Path) -> Callable[..., ReproductionCell]:
    """Keeps results of SST-2, and of a task of no group, at some rates and of some weights."""
    cell, path = glue_cells.models(0)["scratch"], tmp_path / "glue" / "results.json"
    path.parent.mkdir()

    def keep(*rates: float, weights: str = "mine") -> ReproductionCell:
        task = {"mean": 0.5, "best": 0.5, "rates": rates}
        pretrained = {"run_dir": "/mine", "flops": 1, "weights": weights}
        path.write_text(json.dumps({"pretrained": pretrained, "tasks": {"sst2": task, "qnli": task}}), "utf-8")
        glue_cells.keep(cell, tmp_path)
        return cell

    return keep


def test_only_tasks_and_rates_of_the_groups_are_kept(fine_tuned: Callable[..., ReproductionCell]) -> None:
    """The best rate counts, so another one is refused; and no path of this machine is kept."""
    kept = glue_cells.kept(fine_tuned(3e-4))
    assert set(kept["tasks"]) == {"sst2"}
    assert kept["pretrained"] == {"flops": 1, "weights": "mine"}
    with pytest.raises(RuntimeError, match=r"sst2 was fine-tuned at \[0.001\], too"):
        fine_tuned(3e-4, 1e-3)


def test_results_of_two_models_are_not_mixed(fine_tuned: Callable[..., ReproductionCell]) -> None:
    cell = fine_tuned(3e-4)
    before = glue_cells.kept(cell)
    with pytest.raises(RuntimeError, match=r"results\.json is of other weights than"):
        fine_tuned(3e-4, weights="another's")
    assert glue_cells.kept(cell) == before


def test_a_task_is_missing_until_every_rate_was_tried(
    fine_tuned: Callable[..., ReproductionCell], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = GlueGroup(("sst2",), ("1e-4", "3e-4"))
    monkeypatch.setattr(glue_cells, "GROUPS", (group,))
    assert GlueUnit(fine_tuned(3e-4), group).missing == ("sst2",)
    assert GlueUnit(fine_tuned(1e-4, 3e-4), group).missing == ()
