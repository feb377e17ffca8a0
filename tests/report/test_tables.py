import json
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.report.comparison import Comparison, Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.runs import read_runs
from apollo_cli.report.tables import AVERAGE, compare_glue, glue_table
from tests.helpers.made_runs import Evaluation, scratch, write_run

FLAT: list[Evaluation] = [(0, 0, 0.0, 9.0), (100, 1000, 100.0, 3.0)]
GROWN: list[Evaluation] = [(50, 100, 10.0, 5.0), (100, 600, 80.0, 2.5)]


def fine_tuned(folder: Path, recipe: str = "one", rates: tuple[float, ...] = (2e-5,), **means: float) -> None:
    """Leaves what apollo-glue would."""
    (folder / "glue").mkdir()
    tasks = {name: {"mean": mean, "rates": rates} for name, mean in means.items()}
    (folder / "glue" / "results.json").write_text(json.dumps({"tasks": tasks, "recipe": recipe}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (0, 1):
        fine_tuned(
            scratch(tmp_path / f"base{seed}", FLAT, name="base", seed=seed), cola=0.1, rte=0.5 + seed / 10, wnli=0.3
        )
    grown = write_run(tmp_path / "grown", GROWN, [(50, 100, 10.0, 6.0)], name="grown")
    fine_tuned(grown, cola=0.2, rte=0.6, sst2=0.8)
    return tmp_path


def _comparison(folder: Path) -> Comparison:
    (comparison,) = compare(families(read_runs([str(folder)])[0])[0], Question())
    return comparison


def test_scores_are_means_over_seeds_and_averages_are_over_shared_tasks(folder: Path) -> None:
    comparison = _comparison(folder)
    glue = compare_glue(comparison)
    assert glue is not None
    assert glue.tasks == ("cola", "sst2", "rte", "wnli")
    assert glue.averaged == ("cola", "rte")
    base, grown = glue.scores["base"], glue.scores["grown"]
    base_average, grown_average = base[AVERAGE], grown[AVERAGE]
    assert base["rte"] is not None
    assert base["rte"].mean == pytest.approx(0.55)
    assert base["rte"].half == pytest.approx(12.7062 * 0.05, rel=1e-4)  # t(0.975, 1) s / sqrt(2), s = 0.1 / sqrt(2)
    assert base_average is not None
    assert base_average.mean == pytest.approx((0.3 + 0.35) / 2)
    assert grown_average is not None
    assert grown_average.mean == pytest.approx(0.4)
    assert grown["wnli"] is None
    (row,) = [row for row in glue_table(comparison, glue).rows if row[0] == "grown"]
    assert row == ["grown", "2.5000", "600.0", "20.0", "80.0", "60.0", "-", "40.0"]
    assert any("The average is that of CoLA, RTE." in note for note in glue.notes)
    assert any(note.startswith("WNLI is in no average") for note in glue.notes)


def test_the_frequent_label_is_a_row_where_it_was_recorded(folder: Path) -> None:
    for name, frequent in (("base0", {"cola": 0.0, "rte": 0.527}), ("grown", {"sst2": 0.509})):
        path = folder / name / "glue" / "results.json"
        found = json.loads(path.read_text())
        for task, score in frequent.items():
            found["tasks"][task]["frequent"] = score
        path.write_text(json.dumps(found))
    comparison = _comparison(folder)
    glue = compare_glue(comparison)
    assert glue is not None
    row = glue_table(comparison, glue).rows[0]
    assert row == ["always the frequent label", "-", "-", "0.0", "50.9", "52.7", "-", "26.4"]  # (0 + 52.7) / 2


def test_without_scores_there_is_no_table(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT)
    assert compare_glue(_comparison(tmp_path)) is None


@pytest.mark.parametrize(
    ("recipe", "rates", "task", "noted"),
    [
        ("another", (2e-5,), "cola", True),
        ("one", (2e-5, 3e-5), "cola", True),  # the best of two
        ("one", (2e-5, 3e-5), "mrpc", False),  # which nobody else has
        ("one", (2e-5,), "cola", False),
    ],
)
def test_different_recipes_are_noted(
    recipe: str, rates: tuple[float, ...], task: str, noted: bool, folder: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", GROWN, name="other", sampler__k=4)
    fine_tuned(other, recipe, rates, **{task: 0.3})
    glue = compare_glue(_comparison(folder))
    assert glue is not None
    assert any("same recipe" in note for note in glue.notes) == noted


def test_scores_of_other_weights_are_noted(folder: Path) -> None:
    def noted() -> list[str]:
        glue = compare_glue(_comparison(folder))
        assert glue is not None
        return [note for note in glue.notes if "other weights" in note]

    path = folder / "base1" / "glue" / "results.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(found | {"pretrained": {"eval/loss": FLAT[-1][-1]}}), encoding="utf-8")
    assert not noted()
    path.write_text(json.dumps(found | {"pretrained": {"eval/loss": 2.9}}), encoding="utf-8")
    assert noted() == [
        "The GLUE scores of 'base' belong to other weights than its runs: "
        "their validation loss is 2.9000, not 3.0000."
    ]


@pytest.mark.parametrize(
    "found",
    [
        *("{", "[]", {"tasks": {"colla": {"mean": 0.5}}}, {"tasks": {"cola": {"mean": 7}}}),
        *({"tasks": {"cola": {}}}, {"tasks": {}, "pretrained": {"eval/loss": "low"}}),
    ],
)
def test_a_run_with_damaged_glue_results_is_left_out(found: Any, tmp_path: Path) -> None:
    run_dir = scratch(tmp_path / "base", FLAT)
    (run_dir / "glue").mkdir()
    (run_dir / "glue" / "results.json").write_text(found if isinstance(found, str) else json.dumps(found))
    runs, (note,) = read_runs([str(tmp_path)])
    assert not runs
    assert "glue/results.json is damaged" in note


def test_fine_tuning_runs_are_not_compared(tmp_path: Path) -> None:
    scratch(tmp_path / "base", FLAT)
    (tmp_path / "glue" / "stamp").mkdir(parents=True)
    (tmp_path / "glue" / "stamp" / "glue.yaml").touch()
    scratch(tmp_path / "glue" / "stamp" / "cola" / "lr2e-05_seed0", FLAT)
    runs, _ = read_runs([str(tmp_path)])
    assert [Path(run.place).name for run in runs] == ["base"]
