"""The cells of the reproduction, how they are kept, and what the kept ones of the repository say."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.report import plots, savings
from apollo_cli.report.runs import RunFiles
from benchmarks import gpu, ladder, methods, report, reproduce, results, saved
from benchmarks.reproduce import KINDS, METHODS, TUNED, VARIANTS, Cell, Corpus, cells, headline_cells, main

FREE = {"name", "optim", "schedule", "sampler", "expander", "budget", "seed"}  # in which methods may differ


def composed(cell: Cell) -> dict[str, Any]:
    return dict(parse(compose_values(list(cell.words))).raw)


@pytest.mark.parametrize("kind", KINDS)
def test_methods_share_model_data_batch_and_evaluation(kind: str) -> None:
    scratch = composed(Cell(kind, "scratch", "4e-3", 0))
    assert scratch["schedule"]["layers"] == [scratch["model"]["layers"]]
    for method in (*METHODS, *VARIANTS):
        raw = composed(Cell(kind, method, "4e-3", 0))
        assert raw["name"] == f"repro_{method}"
        assert {key: raw[key] for key in raw if key not in FREE} == {
            key: scratch[key] for key in scratch if key not in FREE
        }
        assert raw["optim"] | {"schedule": "", "decay": ""} == scratch["optim"] | {"schedule": "", "decay": ""}


def test_on_a_gpu_methods_keep_their_share_of_the_steps_and_nothing_else_differs() -> None:
    cells = gpu.cells("gpt", 2000)
    assert [cell.steps for cell in cells] == [2000, 1800, 1800, 2933, 2867, 1120]
    assert [gpu.shipped(method) for method in gpu.METHODS] == [30000, 27000, 27000, 44000, 43000]
    scratch, *others = (composed(cell) for cell in cells)
    assert (scratch["model"]["layers"], scratch["model"]["hidden"], scratch["precision"]) == (12, 512, "bf16")
    for raw in others:
        assert {key: raw[key] for key in raw if key not in FREE} == {
            key: scratch[key] for key in scratch if key not in FREE
        }


def test_every_cell_has_a_name_and_a_run_of_its_own() -> None:
    every = cells("pydocs")
    assert len({cell.name for cell in every}) == len(every) == len({cell.words for cell in every})
    assert set(headline_cells("gpt")) <= set(every)
    assert all(TUNED[kind, method] in reproduce.RATES[kind] for kind in KINDS for method in METHODS)


def test_text_of_another_kind_is_for_what_is_saved_alone() -> None:
    other = cells("novels")
    own = [cell for cell in other if (cell.kind, cell.method, cell.rate) != ("bert", "scratch", "1e-3")]
    assert len(other) - len(own) == 3
    assert set(own) < set(cells("pydocs"))
    assert {cell.method for cell in own} == {"scratch", "stackbert", "apollo_late", "late_zero_init"}
    assert {cell.rate for cell in own} == {TUNED[kind, "scratch"] for kind in KINDS}
    assert all({cell.seed for cell in other if cell.method == m} == {0, 1, 2} for m in reproduce.COMPARED)


@pytest.fixture
def tiny_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]) -> Corpus:
    """Two cells of a few steps."""
    monkeypatch.setattr(reproduce, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(reproduce, "RUNNING", tmp_path / "running")
    monkeypatch.setattr(saved, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(plots, "pictures", lambda comparison: [])  # they take their time, and have their tests
    pair = [Cell("gpt", "scratch", "4e-3", 0), Cell("gpt", "apollo", "4e-3", 0)]
    monkeypatch.setattr(reproduce, "cells", lambda corpus: pair)
    own = ("model.layers", "schedule.", "optim.lr", "size=", "data.vocab_size")
    small = tuple(word for word in tiny if not word.startswith(own))
    layers = {"scratch": ["schedule.layers=[4]", "schedule.ends=[1]"], "apollo": ["schedule.layers=[1,2,4]"]}
    more = {"scratch": [], "apollo": ["schedule.ends=[0.25,0.5,1]"]}
    words = Cell.words.fget  # type: ignore[attr-defined]

    def of(cell: Cell) -> tuple[str, ...]:
        return (*words(cell), *small, "model.layers=4", *layers[cell.method], *more[cell.method])

    monkeypatch.setattr(Cell, "words", property(of))
    return Corpus("tiny", ())


def test_cells_are_trained_kept_without_weights_reported_and_not_trained_again(
    tiny_cells: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["tiny"])
    said = capsys.readouterr().out
    assert "2 cells on tiny, 2 to train" in said
    for cell in reproduce.cells("tiny"):
        folder = tiny_cells.kept(cell)
        assert {path.name for path in folder.iterdir()} == {
            "config.yaml", "plan.json", "summary.json", "metrics.jsonl.gz",
        }  # fmt: skip
        run = RunFiles(folder)
        assert run.summary["status"] == "completed"
        assert "run_dir" not in run.summary
        assert run.rows[-1]["flops"] == run.plan["flops"]
    text = results.RESULTS.read_text(encoding="utf-8")
    assert "# What is saved: tiny" in text
    assert "| repro_scratch | n = 1 |" in text
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    main(["tiny"])
    assert "2 cells on tiny, 0 to train" in capsys.readouterr().out
    assert results.RESULTS.read_text(encoding="utf-8") == text


def test_a_cell_that_fails_stops_the_rest_and_names_its_log(
    tiny_cells: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cell, "words", ("experiment=nothing",))
    monkeypatch.setattr(reproduce, "_announce", lambda *_: None)
    with pytest.raises(SystemExit, match=r"exit code 2: see .*\.log\); `make reproduce` goes on"):
        main(["tiny"])
    assert not any(tiny_cells.kept(cell).exists() for cell in reproduce.cells("tiny"))


def test_parts_of_the_results_stay_when_another_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    results.put("One", ["first", "", "## part", "x"])
    results.put("Two", results.table(("a", "b"), [("1", "2")]))
    results.put("One", ["changed"])
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert text == "# One\n\nchanged\n\n# Two\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_sections_without_new_figures_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    sections = ["## The start", "", "| x |", "", "## Text to rows", "", "old", "", "## On a GPU", "y"]
    results.put("How fast", ["first", "", *sections])
    results.put("Other", ["## The start", "of another"])
    monkeypatch.setitem(report.__dict__, "_data", lambda figures: [figures])
    report.write({"data": "new"})
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    kept, new, other = (
        "## The start\n\n| x |\n\n",
        r"## Text to rows\n\n.*, fp32\.\n\nnew\n\n",
        "## On a GPU\ny\n\n# Other",
    )
    assert re.search(re.escape(kept) + new + re.escape(other), text), text


def test_what_is_kept_in_the_repository_is_whole_and_small() -> None:
    folders = [path.parent for path in reproduce.KEPT.glob("*/*/summary.json")]
    assert folders
    for folder in folders:
        run = RunFiles(folder)
        assert run.summary["status"] == "completed"
        assert run.rows[-1]["flops"] == run.plan["flops"] == run.summary["totals"]["flops"]
        assert not re.search(r'": "[/~]', json.dumps(run.summary) + json.dumps(run.config))  # no path of a machine
    files = [path for path in reproduce.KEPT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6


def test_the_report_says_what_the_kept_rows_say_and_the_readme_has_its_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plots, "pictures", lambda comparison: [])
    text = Path(results.RESULTS).read_text(encoding="utf-8")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for folder in set(reproduce.KEPT.iterdir()) - {gpu.FOLDER, reproduce.KEPT / methods.NAME}:
        part = text.partition(f"# What is saved: {folder.name}\n")[2].partition("\n# ")[0]
        without_pictures = [line for line in part.splitlines() if line and not line.startswith("![")]
        said = [line for line in saved.lines(folder.name) if line]
        assert without_pictures == said
    part = text.partition(f"# {gpu.TITLE}\n")[2].partition("\n# ")[0]
    assert [line for line in part.splitlines() if line and not line.startswith("![")] == [
        *filter(None, gpu.lines())
    ]
    for kind in KINDS:
        for rows in (saved.on_depth(Corpus("pydocs", ()), kind), ladder.beside(Corpus("pydocs", ()), kind)):
            assert "\n".join(rows) in readme


def line(*losses: float) -> savings.Curve:
    """Scratch runs of 1, 2, 3, ... FLOPs."""
    points = enumerate(losses, 1)
    return savings.curve(savings.Point(step, savings.Cost(float(step), 1.0), loss) for step, loss in points)


@pytest.mark.parametrize(
    ("loss", "flops"),
    [(3.0, 1.0), (2.5, 1.5), (2.0, 2.0), (1.25, 2.75), (1.0, 3.0), (3.1, None), (0.9, None)],
)
def test_what_a_loss_costs_from_scratch_is_never_extrapolated(loss: float, flops: float | None) -> None:
    assert ladder.from_scratch(line(3.0, 2.0, 1.0), loss) == flops
    assert ladder.from_scratch(line(), loss) is None
