"""A tiny campaign: cells are trained, kept without weights, reported, packed and not trained again."""

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from apollo_cli import train
from apollo_cli.report import plots
from apollo_cli.run_directory import RunDirectory
from benchmarks import archives, campaign, results_page, run_reproduction
from benchmarks.campaign import Campaign
from benchmarks.cells import ReproductionCell

CELLS = [ReproductionCell("gpt", "scratch", "4e-3", 0), ReproductionCell("gpt", "apollo", "4e-3", 0)]


class OneAfterTheOther:
    """An executor of the main thread, where a run handles signals."""

    def __init__(self, at_once: int) -> None: ...

    def __enter__(self) -> "OneAfterTheOther":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(work(*arguments))
        return future


@pytest.fixture
def two_cells(no_results: None, monkeypatch: pytest.MonkeyPatch, tiny: tuple[str, ...]) -> None:
    """Two cells of a few steps."""
    monkeypatch.setattr(plots, "draw_comparison", lambda comparison: [])  # they have tests of their own
    monkeypatch.setattr(run_reproduction, "cells", lambda corpus: CELLS)
    own = ("model.layers", "schedule.", "optim.lr", "size=", "data.vocab_size")
    small = tuple(word for word in tiny if not word.startswith(own))
    stages = {
        "scratch": ["schedule.layers=[4]", "schedule.ends=[1]"],
        "apollo": ["schedule.layers=[1,2,4]", "schedule.ends=[0.25,0.5,1]"],
    }
    words = ReproductionCell.words.fget  # type: ignore[attr-defined]

    def tiny_words(cell: ReproductionCell) -> tuple[str, ...]:
        return (*words(cell), *small, "model.layers=4", *stages[cell.method])

    monkeypatch.setattr(ReproductionCell, "words", property(tiny_words))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started and no time is predicted."""

    def run(campaign: Campaign, module: str, words: list[str], *_: Any) -> None:
        assert train.run(list(words)) == 0

    monkeypatch.setattr(campaign, "ThreadPoolExecutor", OneAfterTheOther)
    monkeypatch.setattr(Campaign, "run", run)
    monkeypatch.setattr(run_reproduction, "seconds", lambda *_: 60)


def check_campaign(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_reproduction.main(["tiny"])
    assert "2 cells on tiny, 2 to train" in capsys.readouterr().out
    assert [path.name for path in archives.RESULTS.iterdir()] == ["tiny_gpt.tar.bz2"]
    for cell in CELLS:
        folder = archives.BenchmarkCorpus("tiny").kept(cell)
        assert {path.name for path in folder.iterdir()} == {
            "config.yaml", "plan.json", "summary.json", "metrics.jsonl",
        }  # fmt: skip
        run = RunDirectory(folder)
        assert run.summary()["status"] == "completed"
        assert "run_dir" not in run.summary()
        assert json.loads(run.metrics_file.read_text().splitlines()[-1])["flops"] == run.plan()["flops"]
    text = results_page.page_of("What is saved: tiny").read_text(encoding="utf-8")
    assert "# What is saved: tiny" in text
    assert "| repro_scratch | n = 1 |" in text
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started
    monkeypatch.setattr(Campaign, "run", None)
    run_reproduction.main(["tiny"])
    assert "2 cells on tiny, 0 to train" in capsys.readouterr().out
    assert results_page.page_of("What is saved: tiny").read_text(encoding="utf-8") == text


def test_cells_are_trained_kept_reported_and_not_trained_again(
    two_cells: None, in_this_process: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_campaign(capsys, monkeypatch)


@pytest.mark.slow
def test_cells_are_trained_beside_each_other_in_predicted_time(
    two_cells: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_campaign(capsys, monkeypatch)


def test_a_command_that_fails_stops_the_rest_and_names_its_log(no_results: None) -> None:
    tiny = Campaign("tiny")
    campaign.RUNNING.mkdir()

    def fail(number: int, threads: int) -> None:
        tiny.run("benchmarks.nothing", [], campaign.RUNNING / f"{number}.log", threads)

    with pytest.raises(SystemExit, match=r"[12] ended with exit code 1: see .*\.log\); `make it` continues"):
        tiny.run_all([1, 2], fail, 2, "make it")
    assert "No module named benchmarks.nothing" in (campaign.RUNNING / "1.log").read_text()
    assert not tiny.running
