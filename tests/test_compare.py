import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from apollo_cli.compare import run
from apollo_cli.config import Config
from apollo_cli.report import wandb_runs
from apollo_cli.report.runs import read
from apollo_cli.tracking.wandb import FACTS
from apollo_cli.training.run import train
from tests.faults.stub_wandb import StubServer, unused_port
from tests.report.made_runs import Evaluation, scratch, write_run

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
    assert "GPT: grown takes 50.0 ± 0.0% fewer FLOPs and 34.0 ± 0.0% fewer seconds than base" in out
    assert "report: outputs/compare/" in out


def test_the_report_is_whole(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep/*", "--out", "report"]) == 0
    names = {path.name for path in (tmp_path / "report").iterdir()}
    pictures = {
        f"gpt_{name}.png" for name in ("loss_against_flops", "loss_against_seconds", "growth", "depths", "lvps")
    }
    assert names == {"report.md", "report.html", "comparison.json", "comparison.csv"} | pictures
    for name in pictures:
        picture = matplotlib.image.imread(tmp_path / "report" / name)
        assert picture.shape[1] >= 1200
        assert len({tuple(pixel) for row in picture[::7] for pixel in row[::7].round(2).tolist()}) > 5
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| grown | n = 2 | 2.5000 ± 0.0000 | 500.0 ± 0.0 | 50.0 ± 0.0% |" in text
    for name in pictures:
        assert f"]({name})" in text
    assert run(["sweep", "--out", "report"]) == 0  # again, over itself


def test_json_and_csv_are_alone_on_standard_output(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(runs), "--json"]) == 0
    (family,) = json.loads(capsys.readouterr().out)["families"]
    assert family["baseline"] == "base"
    assert family["methods"][1]["saving_flops"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 2}
    assert family["methods"][1]["runs"][0]["to_target"] == {"flops": 500.0, "seconds": pytest.approx(66)}
    assert run([str(runs), "--csv", "--out", "report"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["method"] for line in lines] == ["base", "grown"]
    assert lines[1]["saving_flops_mean"] == "0.5"
    assert not Path("outputs").exists()


def test_a_hostile_name_is_text_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch(tmp_path / "0", FLAT, name="base")
    write_run(tmp_path / "<img src=x>", GROWN, [(50, 100, 10.0, 6.0)], name=HOSTILE[:50])
    write_run(tmp_path / "2", GROWN, name=HOSTILE[30:], optim__lr=1, status="</p><script>")
    assert run([str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    assert "<script>alert(1)</script>|" in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    text = (tmp_path / "report" / "report.md").read_text()
    assert "<" not in text
    for line in text.splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") == 10


@pytest.mark.parametrize("count", [1, 14])
def test_one_run_and_many_methods_are_drawn(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(count):
        write_run(tmp_path / "runs" / f"{i}", GROWN, [(50, 100, 10.0, 6.0)], sampler__k=i)
    assert run([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    assert "n = 1" in out
    assert "none trains all layers" in out


def test_a_run_that_has_only_begun_is_drawn(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", [], [(0, 0, 0.0, 9.0)], status=None)
    scratch(tmp_path / "runs" / "1", [(0, 0, 0.0, 9.0)], status=None)
    assert run([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no runs are given"),
        (["nowhere"], "'nowhere': no run directory there"),
        (["sweep", "--baseline", "x"], "--baseline x is none of the methods"),
        (["sweep", "--target-loss", "-1"], "--target-loss -1.0: should be a loss"),
        (["sweep", "--target-loss", "nan"], "--target-loss nan: should be a loss"),
        (["sweep", "--at-flops", "0"], "--at-flops 0.0: should be a number"),
        (["sweep", "--out", "sweep/0"], "--out sweep/0 is in the run directory"),
        (["sweep", "--out", "sweep/0/report"], "is in the run directory"),
        (["sweep", "--out", "file/report"], "--out file/report cannot be made"),
        (["sweep", "--json", "--csv"], "not allowed with"),
        (["sweep", "--target-loss", "x"], "invalid float value"),
        (["--wandb", "project"], "should be ENTITY/PROJECT"),
        (["--wandb", "me/project"], "there is no W&B key here"),
    ],
)
def test_what_can_be_mended_is_one_message(
    words: list[str], said: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert run(words) == 2
    assert said in capsys.readouterr().err
    assert not Path("report").exists()


def test_runs_without_rows_are_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "begun", [])
    assert run([str(tmp_path)]) == 2
    assert "no run is left to compare" in capsys.readouterr().err


def test_runs_on_other_data_are_loudly_marked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "other", GROWN, name="other", evaluation_rows=8)
    assert run([str(runs), "--out", "report"]) == 0
    assert "WARNING: these GPT runs are measured on different data" in capsys.readouterr().out
    assert 'class="warning"' in Path("report/report.html").read_text()


def test_real_runs(config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config("name=grown"), tmp_path / "0")
    train(config("schedule.layers=[4]", "schedule.ends=[1]", "name=base"), tmp_path / "1")
    capsys.readouterr()
    assert run([str(tmp_path), "--json"]) == 0
    (family,) = json.loads(capsys.readouterr().out)["families"]
    assert [method["method"] for method in family["methods"]] == ["base", "grown"]
    assert all(method["final_loss"]["mean"] > 0 for method in family["methods"])


class FakeRun:
    """As wandb.Api() gives a run that `recorder.py` recorded from `folder`."""

    def __init__(self, folder: Path, state: str = "finished") -> None:
        self.id, self.state, self.summary = f"id{folder.name}", state, {"status": "completed"}
        (run,) = read([str(folder)])[0]
        self.rows = run.rows
        config: dict[str, Any] = {}
        for key, value in run.config.items():
            section, _, name = key.rpartition(".")
            (config.setdefault(section, {}) if section else config)[name] = value
        plan = json.loads((folder / "plan.json").read_text())
        data = {"fingerprint": run.data, "evaluation_rows": run.evaluation_rows}
        self.config = config | {FACTS: {"data": data, "plan": plan}}

    def scan_history(self) -> list[dict[str, Any]]:
        return [
            row | {"flops": float(row["flops"]), "_step": i, "_runtime": 1.5} for i, row in enumerate(self.rows)
        ]


class FakeApi:
    """As wandb.Api, as far as it is used."""

    def __init__(self, runs: list[Any]) -> None:
        self.found = runs

    def runs(self, path: str, lazy: bool = True) -> list[Any]:
        assert (path, lazy) == ("me/apollo", False)
        return self.found


def test_runs_of_wandb_are_those_of_the_directories(runs: Path) -> None:
    folders = [runs / name for name in ("0", "2")]
    stranger = FakeRun(folders[0])
    stranger.config = {"lr": 1}
    found = list(wandb_runs.runs_of(FakeApi([*map(FakeRun, folders), stranger]), "me/apollo"))
    local, _ = read([str(folder) for folder in folders])
    assert [run.place for run in found] == ["me/apollo/id0", "me/apollo/id2"]
    for one, other in zip(found, local, strict=True):
        assert (one.rows, one.config, one.data, one.depth_counts, one.status, one.evaluation_rows) == (
            (other.rows, other.config, other.data, other.depth_counts, other.status, other.evaluation_rows)
        )


@pytest.mark.parametrize("manner", ["hang", "404", "401", "dead"])
def test_a_wandb_server_that_does_not_give_runs(
    manner: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = StubServer(manner) if manner != "dead" else None
    monkeypatch.setenv("WANDB_BASE_URL", server.url if server else f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_runs, "PATIENCE", 2)
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    assert run(["--wandb", "me/apollo"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("apollo-compare: --wandb me/apollo: ")
    assert KEY not in said
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
