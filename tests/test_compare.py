import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml

from apollo_cli.compare import run
from apollo_cli.config.config import Config
from apollo_cli.report import plots, style, wandb_runs
from apollo_cli.report.runs import read_runs
from apollo_cli.run_directory import FORMAT
from apollo_cli.tracking.wandb import FACTS, LABELS
from apollo_cli.training import pretraining
from apollo_cli.training.run import train
from tests.helpers.made_runs import Evaluation, scratch, write_run
from tests.helpers.stub_wandb import StubServer, unused_port
from tests.report.test_tables import fine_tuned

FLAT: list[Evaluation] = [(0, 0, 0.0, 9.0), (50, 500, 50.0, 4.0), (100, 1000, 100.0, 3.0)]
GROWN: list[Evaluation] = [(50, 100, 10.0, 5.0), (100, 600, 80.0, 2.5)]
KEY = "0123456789" * 4
HOSTILE = "<script>alert(1)</script>|`x`\n# $\\frac$ [a](javascript:b) [red]"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of a baseline with two seeds and a method with two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for seed in (0, 1):
        scratch(tmp_path / "sweep" / f"{seed}", FLAT, name="base", seed=seed)
        write_run(tmp_path / "sweep" / f"{seed + 2}", GROWN, [(50, 100, 10.0, 6.0)], name="grown", seed=seed)
    return tmp_path / "sweep"


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr(plots, "draw_comparison", lambda comparison: [])


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "SETTINGS", [*style.SETTINGS, {"figure.dpi": 25}])


@pytest.mark.usefixtures("no_pictures")
def test_the_table_has_every_method_and_fits(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(runs), "--at-flops", "400"]) == 0
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if "FLOPs  " in line or line.startswith((" base", " grown", " n ="))]
    assert max(map(len, table)) <= 100
    (line,) = [line for line in table if line.startswith(" grown")]
    assert line.split() == [
        "grown",
        "2.5000",
        "±",
        "0.0000",
        "500.0",
        "±",
        "0.0",
        "FLOPs",
        *["50.0", "±", "0.0%"],
        *["100.0", "±", "0.0%"],
    ]
    assert "GPT: grown saves 50.0 ± 0.0% of the FLOPs and 34.0 ± 0.0% of the seconds of base at" in out
    assert "report: outputs/compare/" in out


def test_the_report_is_complete(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["sweep/*", "--out", "report"]) == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    drawn = {f"gpt_{name}" for name in ("loss_against_flops", "loss_against_seconds", "growth", "depths", "lvps")}
    pictures = {f"{name}.png" for name in drawn}
    others = {"report.md", "report.html", "comparison.json", "comparison.csv"}
    assert names == others | pictures | {f"{name}.svg" for name in drawn}
    for name in pictures:
        picture = matplotlib.image.imread(tmp_path / "report" / name)
        assert picture.shape[1] >= 1200
        assert len({tuple(pixel) for row in picture[::7] for pixel in row[::7].round(2).tolist()}) > 5
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "<title>grown\nvalidation loss: 2.5\nmodel FLOPs (units of 1e3): 0.6</title>" in page
    assert set(re.findall(r"https?://[^\"]+", page)) == {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    (script,) = re.findall("<script>(.*?)</script>", page, re.S)
    assert "<details><summary>Commands of the runs</summary>" in page
    assert "GPT, grown, seed 1: sweep/3" in page
    assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in page
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| grown | n = 2 | 2.5000 ± 0.0000 | 500.0 ± 0.0 | 50.0 ± 0.0% |" in text
    assert "Settings that differ" in text
    assert "| grown | lvps | 2 | interpolate | 2-4 |" in text
    for name in pictures:
        assert f"]({name})" in text
    monkeypatch.setattr(plots, "draw_comparison", lambda comparison: [])
    assert run(["sweep", "--out", "report"]) == 0  # replaces the first


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("columns", [80, 100])
def test_the_table_fits_a_terminal(
    columns: int, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, end in enumerate((2.5, 2.7, 3.5)):
        write_run(runs / f"k{seed}", [(0, 0, 0.0, 5.0), (9, 4e14, 5e4, end)], seed=seed, optim__lr=0.00123)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run([str(runs)]) == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.startswith(" method")]
    table = lines[head : next(i for i in range(head, len(lines)) if not lines[i].strip())]
    assert max(map(len, table)) <= columns
    assert ("speedup" in table[0]) == (columns == 100)
    assert any(line.startswith(" grown  ") for line in table)
    assert any("2 of 3 reach it" in line for line in table)


@pytest.mark.usefixtures("no_pictures")
def test_json_and_csv_are_alone_on_standard_output(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(runs), "--json"]) == 0
    (family,) = json.loads(capsys.readouterr().out)["families"]
    assert family["baseline"] == "base"
    assert family["methods"][1]["saving_flops"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 2}
    assert family["methods"][1]["settings"]["sampler.k"] == 2
    assert family["methods"][1]["runs"][0]["saving_flops"] == 0.5
    assert family["methods"][1]["runs"][0]["to_target"] == {"flops": 500.0, "seconds": pytest.approx(66)}
    assert run([str(runs), "--csv", "--out", "report"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["method"] for line in lines] == ["base", "grown"]
    assert lines[1]["saving_flops_mean"] == "0.5"
    assert not Path("outputs").exists()


@pytest.mark.usefixtures("no_pictures")
def test_no_text_of_a_csv_is_a_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "a=1"]
    scratch(tmp_path / "base", FLAT, name="base")
    for number, name in enumerate(names):
        write_run(tmp_path / str(number), [(0, 0, 0.0, 9.0), (9, 2000, 9.0, 3.0)], name=name, sampler__k=number)
    assert run([str(tmp_path), "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {line["method"] for line in lines} == {"base", "'=1+1", "'+1", "'-1", "'@SUM(A1)", "a=1"}
    assert {line["saving_flops_mean"] for line in lines} == {"", "-1.0"}  # a number stays one


@pytest.mark.usefixtures("no_pictures")
def test_what_is_no_sound_run_is_named_and_the_rest_compared(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "0" / "summary.json").write_bytes(bytes(100))
    shutil.copytree(runs / "3", runs / "a copy")
    (runs.parent / "other" / "0").mkdir(parents=True)
    (runs.parent / "other" / "0" / "config.yaml").write_text("lr: 1\n")
    (runs.parent / "other" / "0" / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    assert run(["sweep", "other/0", "nowhere", "--out", "report"]) == 0
    out = capsys.readouterr().out
    for text in ("left out: 'nowhere'", "left out: other/0/config.yaml", "left out: sweep/0/summary.json"):
        assert f"WARNING: {text}" in out
        assert text.replace("_", r"\_") in Path("report/report.md").read_text()
    assert "seed 1 is there 2 times; left out: sweep/a copy" in out
    assert "GPT: grown saves 50.0" in out


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "values",
    [
        "x: [{2020-01-01: 1}]",
        "x: !!binary aGVsbG8=",
        "x: [1, [2, {null: 3}]]",
        "x: .nan",
        "x: !!set {a, b}",
        "seed: [1]",
    ],
)
def test_any_value_of_yaml_may_stand_in_a_config(
    values: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (runs / "3" / "config.yaml").open("a") as file:
        file.write(f"{values}\n")
    assert run(["sweep", "--json"]) == 0
    assert sum(m["n"] for m in json.loads(capsys.readouterr().out)["families"][0]["methods"]) == 4


@pytest.mark.usefixtures("small_pictures")
def test_many_methods_are_drawn_and_untrusted_text_is_never_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch(tmp_path / "runs" / "base", FLAT, name="base")
    write_run(tmp_path / "runs" / "<img src=x>", GROWN, [(50, 100, 10.0, 6.0)], name=HOSTILE[:26])
    write_run(tmp_path / "runs" / "2", GROWN, name=HOSTILE[26:46], optim__lr=1, status="</p><script>")
    write_run(tmp_path / "runs" / "3", GROWN, name=HOSTILE[46:], optim__lr=2)
    for i in range(14):
        write_run(tmp_path / "runs" / f"k{i}", GROWN, [(50, 100, 10.0, 6.0)], sampler__k=10 + i)
    assert run([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    assert "<script>alert(1)</script>|" in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<script") == 1  # ours
    assert "<img src=x" not in page
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Shown are 16 of 18 methods" in text
    assert "<" not in text
    columns = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ")]
    assert columns == [10] * 20 + [15] * 20  # results; settings


@pytest.mark.usefixtures("small_pictures")
def test_a_run_alone_is_drawn_without_the_pictures_of_invalid_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad: dict[str, Any] = {"sampler__lower": "x", "sampler__k": float("nan"), "optim__betas": [float("inf")]}
    folder = write_run(tmp_path / "runs" / "0", GROWN, [(50, 100, 10.0, 6.0)], **bad)
    stages = [{"layers": 2, "depth_counts": {"2": 0, "4": 0}}, {"layers": 4, "depth_counts": {"4": 0, "3": 1}}]
    (folder / "plan.json").write_text(json.dumps({"stages": stages}))
    assert run([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    assert "n = 1" in out
    assert "is the only method here" in out
    assert not (tmp_path / "report" / "gpt_lvps.png").exists()


@pytest.mark.usefixtures("small_pictures")
def test_a_run_that_has_only_begun_is_drawn(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", [], [(0, 0, 0.0, 9.0)], status=None)
    scratch(tmp_path / "runs" / "1", [(0, 0, 0.0, 9.0)], status=None)
    assert run([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no runs are given"),
        (["nowhere"], "'nowhere': no run directory there"),
        (["sweep", "--baseline", "x"], "--baseline x is none of the methods"),
        (["sweep", "--target-loss", "-1"], "--target-loss: -1: should be a number above 0"),
        (["sweep", "--target-loss", "nan"], "--target-loss: nan: should be a number above 0"),
        (["sweep", "--at-flops", "0"], "--at-flops: 0: should be a number above 0"),
        (["sweep", "--out", "file/report"], "--out file/report cannot be made"),
        (["sweep", "--json", "--csv"], "not allowed with"),
        (["sweep", "--target-loss", "x"], "--target-loss: x: should be a number above 0"),
        (["--wandb", "project"], "should be ENTITY/PROJECT"),
        (["--wandb", "me/project"], "there is no W&B key here"),
        (["--wandb-filter", "tag=a"], "type --wandb ENTITY/PROJECT too"),
    ],
)
def test_user_errors_are_one_message(
    words: list[str], message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert run(words) == 2
    assert message in capsys.readouterr().err
    assert not Path("report").exists()


def test_runs_without_rows_are_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "begun", [])
    assert run([str(tmp_path)]) == 2
    assert "no run is left to compare" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_runs_on_other_data_are_a_warning(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "other", GROWN, name="other", evaluation_rows=8)
    assert run([str(runs), "--out", "report"]) == 0
    assert "WARNING: these GPT runs are not measured on the same data" in capsys.readouterr().out
    assert "<blockquote>\n<p><strong>Warning:</strong> these GPT runs" in Path("report/report.html").read_text()


def test_real_runs(
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(pretraining, "open_mirror", lambda tracking, identity, config, *_: told.append(config))
    train(config("name=grown"), tmp_path / "0")
    train(config("schedule.layers=[4]", "schedule.ends=[1]", "name=base"), tmp_path / "1")
    capsys.readouterr()
    assert run([str(tmp_path), "--json"]) == 0
    (family,) = json.loads(capsys.readouterr().out)["families"]
    assert [method["method"] for method in family["methods"]] == ["base", "grown"]
    assert all(method["final_loss"]["mean"] > 0 for method in family["methods"])
    for folder, config_of_wandb in zip(("0", "1"), told, strict=True):
        expected, shown = _recorded_config(tmp_path / folder), json.loads(json.dumps(config_of_wandb))
        labels = {key: shown.pop(key) for key in LABELS}
        assert expected.pop("made_with").items() <= labels["made_with"].items()
        assert labels["scratch"] == (folder == "1")
        growing = "grown: lvps k=2 expander=interpolate layers=1-2-4"
        assert labels["method"] == ("base: scratch" if folder == "1" else growing)
        assert shown == {key: value for key, value in expected.items() if key != "method"}


class RunsServer(StubServer):
    """A server that has the runs of these folders, as `recorder.py` records them, and a stranger's."""

    def __init__(self, folders: list[Path]) -> None:
        super().__init__()
        self.found = {folder.name: read_runs([str(folder)])[0][0] for folder in folders}
        self.configs = {folder.name: _recorded_config(folder) for folder in folders} | {"stranger": {"lr": 1}}

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        query, asked = body.get("query", ""), body.get("variables", {})
        run = self.found.get(asked.get("runName") or asked.get("run") or asked.get("name"))
        if "viewer" in query:
            return {"data": {"viewer": {"id": "1", "username": "me", "entity": "me", "teams": {"edges": []}}}}
        if asked.get("project") != "apollo":
            return {"data": {"project": None}}
        if "query Runs(" in query:
            self.filters = json.loads(asked["filters"])
            edges = [{"node": self._node(name, config), "cursor": name} for name, config in self.configs.items()]
            page = {"edges": edges, "pageInfo": {"endCursor": "", "hasNextPage": False}}
            return {
                "data": {"project": {"internalId": "1", "runCount": len(edges), "readOnly": True, "runs": page}}
            }
        assert run, body
        rows = [row | {"flops": float(row["flops"]), "_step": i, "_runtime": 1.5} for i, row in enumerate(run.rows)]
        found = {
            "historyKeys": {"lastStep": len(rows) - 1, "keys": {}},
            "parquetHistory": {"parquetUrls": [], "liveData": [{"_step": row["_step"]} for row in rows]},
            "history": [json.dumps(row) for row in rows[asked.get("minStep", 0) : asked.get("maxStep")]],
        }
        return {"data": {"project": {"run": found}}}

    def _node(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        texts = {
            "config": json.dumps({key: {"value": value} for key, value in config.items()}),
            "summaryMetrics": json.dumps({"status": "completed"}),
            "systemMetrics": "{}",
        }
        return {"id": name, "name": name, "displayName": name, "projectId": "1", "state": "finished"} | texts


def _recorded_config(folder: Path) -> dict[str, Any]:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    summary, plan = (json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "plan"))
    made_with = {key: summary[key] for key in ("device", "precision", "git_commit") if key in summary}
    return config | {"method": "m", "made_with": made_with, FACTS: {"data": summary["data"], "plan": plan}}


@pytest.fixture
def wandb_server(runs: Path, monkeypatch: pytest.MonkeyPatch) -> RunsServer:
    server = RunsServer([runs / name for name in "0123"])
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return server


def test_runs_of_wandb_are_those_of_the_directories(wandb_server: RunsServer, runs: Path) -> None:
    (found, notes), (local, _) = wandb_runs.fetch_runs("me/apollo"), read_runs([str(runs)])
    assert notes == []
    assert [run.place for run in found] == [f"me/apollo/{name}" for name in "0123"]
    for one, other in zip(found, local, strict=True):
        assert one.rows == other.rows
        assert one.config == other.config
        assert (one.data, one.evaluation_rows, one.status) == (other.data, other.evaluation_rows, other.status)
        assert one.depth_counts == other.depth_counts
        assert one.made_with == other.made_with


def test_a_run_of_wandb_of_a_newer_format_is_left_out(
    wandb_server: RunsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb_server.configs["1"]["format"] = FORMAT + 1
    assert run(["--wandb", "me/apollo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [method["n"] for method in found["families"][0]["methods"]] == [1, 2]
    assert found["warnings"][0].startswith("left out: me/apollo/1: a newer apollo-train wrote this run")


def test_runs_of_wandb_are_compared(wandb_server: RunsServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--wandb", "me/apollo", "--json"]) == 0
    (family,) = json.loads(capsys.readouterr().out)["families"]
    assert [method["n"] for method in family["methods"]] == [2, 2]
    assert family["methods"][1]["saving_flops"]["mean"] == 0.5


def test_runs_of_wandb_are_filtered_by_the_server(
    wandb_server: RunsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--wandb", "me/apollo", "--json", "--wandb-filter", "tag=a", "tag=b", "state=finished"]) == 0
    assert wandb_server.filters == {"tags": {"$in": ["a", "b"]}, "state": {"$in": ["finished"]}}
    capsys.readouterr()
    assert run(["--wandb", "me/apollo", "--wandb-filter", "tags=a"]) == 2
    assert "--wandb-filter tags=a: should be KEY=VALUE; keys are group, tag, state" in capsys.readouterr().err


def test_a_project_that_is_not_there(wandb_server: RunsServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--wandb", "me/other"]) == 2
    assert "--wandb me/other: Could not find project other" in capsys.readouterr().err
    wandb_server.configs = {"stranger": {"lr": 1}}
    assert run(["--wandb", "me/apollo"]) == 2
    assert "no run of apollo-train with rows is in it" in capsys.readouterr().err


@pytest.mark.parametrize("manner", ["hang", "404", "401", "dead"])
def test_a_wandb_server_that_does_not_give_runs(
    manner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = StubServer(manner) if manner != "dead" else None
    monkeypatch.setenv("WANDB_BASE_URL", server.url if server else f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_runs, "TIMEOUT", 20 if manner.isdecimal() else 0.5)
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    assert run(["--wandb", "me/apollo"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("apollo-compare: --wandb me/apollo: ")
    assert KEY not in message
    assert time.monotonic() - started < 10


def test_help_comes_within_a_second_and_needs_none_of_the_heavy_packages() -> None:
    code = (
        "import sys, apollo_cli.compare\n"
        "assert apollo_cli.compare.run(['--help']) == 0\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'wandb', 'numpy', 'scipy', 'matplotlib', 'pydantic', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--target-loss" in done.stdout
    assert time.perf_counter() - started < 2  # the machine may be busy; alone it takes a tenth of that


@pytest.mark.usefixtures("no_pictures")
def test_glue_scores_are_shown_beside_loss_and_flops(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, score in enumerate((0.25, 0.75, 0.5, 0.5)):
        fine_tuned(runs / f"{number}", rte=score)
    assert run([str(runs), "--out", "report"]) == 0
    out = capsys.readouterr().out
    (head,) = [line for line in out.splitlines() if "RTE" in line and "method" in line]
    assert head.split() == ["method", "final", "loss", "(nats)", "FLOPs", "RTE", "average"]
    assert "50.0 ± 317.7" in out  # t(0.975, 1) 0.3536 / sqrt(2)
    assert "GLUE: development scores x 100" in out
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "### GLUE" in report
    methods = json.loads((tmp_path / "report" / "comparison.json").read_text())["families"][0]["methods"]
    assert {method["method"]: method["glue"]["rte"]["mean"] for method in methods} == {"base": 0.5, "grown": 0.5}
    lines = list(csv.DictReader(io.StringIO((tmp_path / "report" / "comparison.csv").read_text())))
    assert [line["glue_average_mean"] for line in lines] == ["0.5", "0.5"]
