"""Views, Reports and published runs: the model that is sent, and that a server of our own gets it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.compare import run
from apollo_cli.errors import DataError
from apollo_cli.report import plots, publishing, workspace
from apollo_cli.report.comparison import Comparison, Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.runs import read_runs
from apollo_cli.report.wandb_runs import within
from apollo_cli.report.workspace import SECTIONS, Chart
from tests.helpers.made_runs import scratch, write_run
from tests.helpers.stub_wandb import StubServer
from tests.test_compare import FLAT, GROWN, KEY, RunsServer

DATA = "f" * 64  # fingerprint of the runs that are made


class PublishServer(RunsServer):
    """A server that also takes views, Reports, summaries and a run of its own.

    Attributes:
        views: what was saved as a view (`project-view`) or a Report (`runs`).
        summaries: of the runs, by name.
        history: rows of the run of the comparison.
    """

    def __init__(self, folders: list[Path]) -> None:
        super().__init__(folders)
        self.views: list[dict[str, Any]] = []
        self.summaries: dict[str, dict[str, Any]] = {}
        self.history: list[dict[str, Any]] = []

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        query, asked = body.get("query", ""), body.get("variables") or {}
        project: dict[str, Any] = {"id": "p", "name": "apollo", "entityName": "me", "internalId": "1"}
        if path.endswith("/file_stream"):
            rows = (body.get("files") or {}).get("wandb-history.jsonl", {"content": []})["content"]
            self.history += map(json.loads, rows)
            return {"exitcode": None, "limits": {}}
        if "upsertView" in query:
            self.views.append(asked)
            view = {"id": "v1", "name": asked["name"], "displayName": asked["displayName"], "description": ""}
            view |= {"type": asked["type"], "project": project, "spec": asked["spec"]}
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        if "ProjectInternalId" in query:
            return {"data": {"project": project}}
        if "models(" in query:
            page = {"endCursor": "", "hasNextPage": False}
            project |= {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
            return {"data": {"models": {"edges": [{"node": project, "cursor": "c"}], "pageInfo": page}}}
        if "query Run(" in query:
            run = self._node(asked["name"], self.configs[asked["name"]])
            return {"data": {"project": {"internalId": "1", "run": run}}}
        if "ArtifactType(" in query:
            return {"data": {"project": {"artifact": {"artifactType": {"name": "run_table"}}}}}
        if "upsertBucket" in query and asked.get("summaryMetrics"):
            self.summaries[asked.get("name") or asked["id"]] = json.loads(asked["summaryMetrics"])
        if any(name in query for name in ("upsertBucket", "createArtifact", "createRunFiles")):
            return StubServer.answer(self, path, body)
        return super().answer(path, body)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two seeds of a baseline and of a method that saves half of the FLOPs."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        scratch(tmp_path / f"{seed}", FLAT, name="base", seed=seed)
        write_run(tmp_path / f"{seed + 2}", GROWN, [(50, 100, 10.0, 6.0)], name="grown", seed=seed)
    return [tmp_path / name for name in "0123"]


@pytest.fixture
def server(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[PublishServer]:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(plots, "draw_comparison", lambda comparison: [])
    server = PublishServer(runs)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield server
    server.die()


def _compared(runs: list[Path]) -> list[Comparison]:
    return compare(families(read_runs(list(map(str, runs)))[0])[0], Question())


def test_the_view_has_its_sections_and_their_axes() -> None:
    assert list(SECTIONS) == ["Saving", "Growth", "Training", "Speed", "System"]
    loss, seconds, *bars = SECTIONS["Saving"]
    assert (loss.metrics, loss.x, loss.log) == (("eval/loss",), "flops", True)
    assert (seconds.metrics, seconds.x, seconds.log) == (("eval/loss",), "train_seconds", True)
    assert [bar.x for bar in bars] == ["", ""]
    assert bars[0].metrics == ("saving/flops", "saving/low", "saving/high")
    growth = {metric for chart in SECTIONS["Growth"] for metric in chart.metrics}
    assert {"layers", "width", "growth/last_jump", "train/grad_norm"} <= growth


def test_the_savings_of_the_runs_in_wandb_are_those_of_their_methods(runs: list[Path]) -> None:
    """The method needs 500 of 1000 FLOPs with both seeds; the baseline has none; others are not touched."""
    found = publishing.savings(_compared(runs), {str(runs[0]), str(runs[2])} | {"0", "2"})
    assert found == {
        "0": {"saving/flops": None, "saving/low": None, "saving/high": None},
        "2": {"saving/flops": 0.5, "saving/low": 0.5, "saving/high": 0.5},
    }


@pytest.mark.parametrize("option", [["--workspace", "mine"], ["--publish"]])
def test_without_the_package_or_a_project_it_is_one_message(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workspace, "find_spec", lambda name: None)
    assert run(["--wandb", "me/apollo", *option]) == 2
    message = f"{option[0]}: needs the package wandb-workspaces; type pip install 'apollo-train[wandb]'"
    assert message in capsys.readouterr().err
    assert run(["outputs", *option]) == 2
    assert f"{option[0]}: no project of W&B is named; type --wandb ENTITY/PROJECT too" in capsys.readouterr().err


def test_the_model_of_a_view_groups_by_method_and_keeps_one_corpus() -> None:
    pytest.importorskip("wandb_workspaces")
    section = workspace.make_view("me/apollo", "mine", DATA)._to_model().spec.section.model_dump(by_alias=True)
    (runset,) = section["runSets"]
    assert [(key["section"], key["name"]) for key in runset["grouping"]] == [("config", "method.value")]
    (only,) = runset["filters"]["filters"]
    assert only["key"] == {"section": "config", "name": "apollo.value.data.fingerprint"}
    assert (only["op"], only["value"]) == ("=", DATA)
    first, *_ = section["panelBankConfig"]["sections"]
    assert [each["name"] for each in section["panelBankConfig"]["sections"]] == list(SECTIONS)
    loss = first["panels"][0]["config"]
    assert (loss["xAxis"], loss["metrics"], loss["xLogScale"]) == ("flops", ["eval/loss"], True)
    assert (loss["groupBy"], loss["groupAgg"], loss["groupArea"]) == ("method.value", "mean", "minmax")
    assert first["panels"][2]["viewType"] == "Bar Chart"


def test_without_a_fingerprint_all_runs_are_shown() -> None:
    pytest.importorskip("wandb_workspaces")
    section = workspace.make_view("me/apollo", "mine", None)._to_model().spec.section.model_dump(by_alias=True)
    assert section["runSets"][0]["filters"]["filters"] == []
    assert workspace.make_panel(Chart("t", ("a",), ""))._to_model().config.metrics == ["a"]


def test_a_view_is_saved_and_its_address_printed(server: PublishServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--wandb", "me/apollo", "--workspace", "mine", "--json"]) == 0
    (view,) = server.views
    assert (view["type"], view["displayName"], view["entityName"]) == ("project-view", "mine", "me")
    assert DATA in view["spec"]
    out, err = capsys.readouterr()
    assert json.loads(out)["families"]
    assert f"W&B view: {server.url}/me/apollo?nw=" in err


def test_a_report_and_savings_are_published(
    server: PublishServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "_log_run", lambda *_: "https://wandb.example/run")
    assert run(["--wandb", "me/apollo", "--publish", "--out", "report"]) == 0
    (report,) = server.views
    assert (report["type"], report["displayName"]) == ("runs", "What was saved")
    assert "GPT: grown saves 50.0 ± 0.0% of the FLOPs" in report["spec"]
    assert "| grown | n = 2 |" in report["spec"]
    assert "https://wandb.example/run" in report["spec"]
    assert f"W&B report: {server.url}/me/apollo/reports/What-was-saved--v1" in capsys.readouterr().out
    saved = [summary for summary in server.summaries.values() if summary.get("saving/flops")]
    assert [(s["saving/flops"], s["saving/low"], s["saving/high"]) for s in saved] == [(0.5, 0.5, 0.5)] * 2
    assert all(summary["status"] == "completed" for summary in server.summaries.values())  # what was there stays


def test_a_server_that_fails_or_does_not_answer_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")  # as `within` does, for good

    def fail() -> None:
        raise ValueError("no such project\nand more")

    with pytest.raises(DataError, match=r"--publish: no such project$"):
        within(5, "--publish", fail)
    with pytest.raises(DataError, match=r"--publish: the server does not answer for 0\.01 seconds"):
        within(0.01, "--publish", lambda: time.sleep(0.2))


@pytest.mark.slow
def test_the_run_of_a_comparison_has_the_table_and_the_page(server: PublishServer) -> None:
    words = ["--wandb", "me/apollo", "--publish", "--out", "report"]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}  # in a process of its own, for wandb keeps its first server
    subprocess.run([sys.executable, "-m", "apollo_cli.compare", *words], env=os.environ | path, check=True)
    announced = [each for each in server.runs if each.get("jobType")]
    assert {each["jobType"] for each in announced} == {"compare"}
    (row,) = server.history
    assert row["comparison"]["_type"] == "table-file"
    assert row["comparison"]["nrows"] == 2
    assert row["report"]["_type"] == "html-file"
    assert {"pictures/gpt_loss_against_flops", "pictures/gpt_growth"} <= set(row)
    assert len(server.views) == 1
