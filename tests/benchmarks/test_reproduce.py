"""The cells of the reproduction, how they are kept, and what the kept ones of the repository say."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.config import parse
from apollo_cli.overrides import compose_values
from apollo_cli.report import plots
from apollo_cli.report.comparison import Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.runs import RunFiles, read
from benchmarks import reproduce, results, saved
from benchmarks.reproduce import KINDS, METHODS, TUNED, Cell, Corpus, cells, headline_cells, main

FREE = {"name", "optim", "schedule", "sampler", "expander", "budget", "seed"}  # in which methods may differ


def composed(cell: Cell) -> dict[str, Any]:
    return dict(parse(compose_values(list(cell.words))).raw)


@pytest.mark.parametrize("kind", KINDS)
def test_methods_share_model_data_batch_and_evaluation(kind: str) -> None:
    scratch = composed(Cell(kind, "scratch", "3e-3", 0))
    assert scratch["schedule"]["layers"] == [scratch["model"]["layers"]]
    for method in METHODS:
        raw = composed(Cell(kind, method, "3e-3", 0))
        assert raw["name"] == f"repro_{method}"
        assert {key: raw[key] for key in raw if key not in FREE} == {
            key: scratch[key] for key in scratch if key not in FREE
        }
        assert raw["optim"] | {"schedule": "", "decay": ""} == scratch["optim"] | {"schedule": "", "decay": ""}


def test_every_cell_has_a_name_and_a_run_of_its_own() -> None:
    assert len({cell.name for cell in cells()}) == len(cells()) == len({cell.words for cell in cells()})
    assert set(headline_cells("gpt")) <= set(cells())
    assert all(TUNED[kind, method] in reproduce.RATES[kind] for kind in KINDS for method in METHODS)


@pytest.fixture
def tiny_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]) -> Corpus:
    """Two cells of a few steps."""
    monkeypatch.setattr(reproduce, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(reproduce, "RUNNING", tmp_path / "running")
    monkeypatch.setattr(saved, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(plots, "pictures", lambda comparison: [])  # they take their time, and have their tests
    pair = [Cell("gpt", "scratch", "3e-3", 0), Cell("gpt", "apollo", "3e-3", 0)]
    monkeypatch.setattr(reproduce, "cells", lambda: pair)
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
    for cell in reproduce.cells():
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
    assert not any(tiny_cells.kept(cell).exists() for cell in reproduce.cells())


def test_parts_of_the_results_stay_when_another_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    results.put("One", ["first", "", "## part", "x"])
    results.put("Two", results.table(("a", "b"), [("1", "2")]))
    results.put("One", ["changed"])
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert text == "# One\n\nchanged\n\n# Two\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"


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


def test_the_readme_says_what_the_kept_rows_say() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    corpus = Corpus("pydocs", ())
    labels = {
        "scratch, one cosine": "scratch", "scratch, `wsd`": "scratch_wsd", "StackBERT, 3-6-12": "stackbert",
        "Apollo as released, 1-3-6-12, k = 2": "apollo", "one late growth, 3-12, `wsd`": "late",
        "the same growth after LVPS, k = 3": "late_lvps",
        "Apollo, later stages 3-6-12, k = 4, `wsd`": "apollo_late",
    }  # fmt: skip
    cell_of = {method: Cell("gpt", method, "3e-3", 0) for method in labels.values()}
    runs, _ = read([str(corpus.kept(cell)) for cell in cell_of.values()])
    (comparison,) = compare(families(runs)[0], Question("repro_scratch"))
    methods = {method.label.removeprefix("repro_"): method for method in comparison.methods}
    for label, name in labels.items():
        saving, final = methods[name].saving("flops"), methods[name].final
        said = "the baseline" if name == "scratch" else "not reached" if saving is None else f"{saving.mean:.0%}"
        flops = RunFiles(corpus.kept(cell_of[name])).summary["totals"]["flops"]
        assert final
        row = f"| {label} | {final.mean:.3f} | {flops / 1e13:.2f}e13 | {said.replace('%', ' %')} |"
        assert row in readme.replace("**", "")
    shallow = [corpus.kept(cell) for cell in reproduce.depth_cells("gpt")]
    losses = [f"{RunFiles(folder).summary['losses']['eval/loss']:.3f}" for folder in shallow]
    assert f"{', '.join(losses[:3])} and {losses[3]} nats" in readme
    costs = {
        name: [
            f"{g['eval/loss_after'] - g['eval/loss_before']:.2f}"
            for g in RunFiles(corpus.kept(cell)).summary["growths"]
        ]
        for name, cell in cell_of.items()
    }
    assert f"{costs['late'][0]} nats without sampling and {costs['late_lvps'][0]} after LVPS" in readme
    assert f"(k = 4) {costs['apollo_late'][0]} each" in readme
    assert costs["apollo_late"][0] == costs["apollo_late"][1]
    assert f"{min(costs['apollo'])} to {max(costs['apollo'])}" in readme
    assert f"{' and '.join(costs['stackbert'])} in StackBERT" in readme
