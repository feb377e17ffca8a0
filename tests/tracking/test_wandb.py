import json
import os
import shutil
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.config.config import Config
from apollo_cli.config.training import TrackingArgs
from apollo_cli.errors import ConfigError
from apollo_cli.tracking import recorder
from apollo_cli.tracking import wandb as mirror
from apollo_cli.tracking.recorder import Recording
from apollo_cli.tracking.wandb import Identity, check_variables, final_numbers, has_key, identify, open_mirror
from apollo_cli.training.run import train
from tests.conftest import read_rows
from tests.helpers.stub_wandb import StubServer, unused_port
from tests.helpers.wandb_file import exit_codes, history, printed, started, summary

IDENTITY = Identity("abc", "name/run", "name", ("bert", "lvps"))
SUMMARY: dict[str, Any] = {
    "totals": {"steps": 10, "flops": 60, "source_flops": 15, "scratch_flops": 100},
    "losses": {"train/loss": 2.5, "eval/loss": 2.0},
    "growths": [{"step": 5, "from": 1, "to": 2, "eval/loss_before": 3.0, "eval/loss_after": 3.25}],
    "data": {"fingerprint": "f00d"},
    "git_commit": None,
}
KEY = "k" * 40


def _tracking(mode: str, timeout: float = 1.0, **more: Any) -> TrackingArgs:
    return TrackingArgs.model_validate({"wandb": mode, "project": None, "timeout": timeout, **more})


class FakeRun:
    """What the recorder uses of a W&B run."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.metrics: dict[str, dict[str, Any]] = {}
        self.exit_code: int | None = None
        self.id, self.artifacts = "abc", list[tuple[FakeArtifact, list[str]]]()

    def log_artifact(self, artifact: "FakeArtifact", aliases: list[str]) -> None:
        self.artifacts.append((artifact, aliases))

    def define_metric(self, name: str, **options: Any) -> None:
        self.metrics[name] = options

    def log(self, row: dict[str, Any]) -> None:
        self.logged.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeArtifact:
    """An artifact that keeps what it is given."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.metadata: dict[str, Any] = {}
        self.folders: list[Path] = []
        self.references: list[str] = []

    def add_dir(self, folder: str, **_: Any) -> None:
        self.folders.append(Path(folder))

    def add_reference(self, place: str, *, name: str, checksum: bool) -> None:
        assert not checksum  # which would read the data
        self.references.append(place)


class FakeWandb(types.ModuleType):
    """A wandb without processes."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls, self.run = [], FakeRun()  # type: ignore[var-annotated]

    Artifact = FakeArtifact

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 - the library's name
        return settings

    def init(self, **arguments: Any) -> FakeRun:
        self.calls.append(arguments)
        return self.run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(recorder.signal, "alarm", lambda seconds: None)
    return module


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    return path


def _order(metrics: Path, skip: int = 0) -> dict[str, Any]:
    run = {"id": "abc", "project": "apollo"}
    log = metrics.with_name("train.log")
    log.touch()
    paths = {"metrics": str(metrics), "log": str(log), "log_from": 0, "folder": str(metrics.parent / "wandb")}
    paths |= {"checkpoints": str(metrics.parent / "checkpoints"), "seen": [], "corpus": None}
    return paths | {"skip": skip, "argv": ["apollo-train", "seed=1"], "pid": 7, "run": run, "stages": []}


def _row(step: int) -> dict[str, Any]:
    return {"step": step, "flops": 10**18 + step, "train/loss": 1.0}


def _append(metrics: Path, text: str) -> None:
    with metrics.open("a") as file:
        file.write(text)


def _mode(mode: str, lines: list[str]) -> str:
    return mirror._mode(_tracking(mode), lines.append)


def test_auto_without_a_key_is_offline() -> None:
    lines: list[str] = []
    assert _mode("auto", lines) == "offline"
    assert lines == []


def test_online_without_a_key_is_offline_with_a_message() -> None:
    lines: list[str] = []
    assert _mode("online", lines) == "offline"
    assert "wandb login" in lines[0]


@pytest.mark.parametrize(
    ("asked", "variable", "mode"),
    [
        ("auto", None, "online"),
        ("auto", "", "online"),
        ("auto", "online", "online"),
        ("auto", "run", "online"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("online", "offline", "online"),
        ("offline", "online", "offline"),
        ("disabled", "online", "disabled"),
    ],
)
def test_with_a_key_auto_follows_the_environment(
    asked: str, variable: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert _mode(asked, lines) == mode
    assert lines == []


def test_an_unknown_mode_and_an_invalid_address_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "Offline")
    assert _mode("auto", lines) == "offline"
    assert "WANDB_MODE=Offline" in lines[0]
    assert "dryrun" in lines[0]
    monkeypatch.setenv("WANDB_BASE_URL", "example.org")
    assert _mode("online", lines) == "offline"
    assert "WANDB_BASE_URL" in lines[1]


def test_disabled_starts_no_process(metrics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "WandbProcess", None)  # would be called
    assert open_mirror(_tracking("disabled"), IDENTITY, {}, metrics.parent, 0, print) is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert open_mirror(_tracking("auto"), IDENTITY, {}, metrics.parent, 0, print) is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WANDB_PROJECT", "team/growth", "WANDB_PROJECT=team/growth: W&B refuses / in this name; leave it out"),
        ("WANDB_ENTITY", "e" * 129, f"WANDB_ENTITY={'e' * 129}: W&B takes names of 1 to 128 characters"),
        ("WANDB_RUN_GROUP", " ", "WANDB_RUN_GROUP= : W&B takes names of 1 to 128 characters"),
    ],
)
def test_invalid_names_of_the_environment_are_refused_where_they_count(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as refused:
        check_variables(_tracking("offline"))
    assert refused.value.problems == [message]
    check_variables(_tracking("offline", project="p", entity="e", group="g"))
    check_variables(_tracking("disabled"))


@pytest.mark.parametrize("value", ["true", "1", "True", "yes"])
def test_wandb_disabled_is_honoured_by_auto_alone(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setenv("WANDB_DISABLED", value)
    assert _mode("auto", lines) == "disabled"
    assert lines == ["WANDB_DISABLED is set: nothing is recorded for W&B"]
    assert _mode("offline", lines) == "offline"


def test_a_recording_is_offline_and_of_the_run_not_of_the_recorder(fake: FakeWandb, metrics: Path) -> None:
    Recording(_order(metrics), print)
    (call,) = fake.calls
    assert (call["mode"], call["id"], call["project"]) == ("offline", "abc", "apollo")
    assert call["resume"] == "allow"  # or the steps of a resumed run would begin at 0 again
    assert (call["settings"]["program"], call["settings"]["x_stats_pid"]) == ("apollo-train", 7)


def test_flops_are_the_axis_of_every_curve(fake: FakeWandb, metrics: Path) -> None:
    """Tokens and seconds stay axes to choose; counters have no panels; the summary has the lowest loss."""
    Recording(_order(metrics), print)
    assert fake.run.metrics["*"] == {"step_metric": "flops"}
    assert fake.run.metrics["eval/loss"] == {"step_metric": "flops", "summary": "min,last"}
    assert all(fake.run.metrics[name] == {"hidden": True} for name in ("tokens", "train_seconds", "step", "flops"))


def test_complete_rows_are_logged_once_without_those_that_wandb_has(fake: FakeWandb, metrics: Path) -> None:
    recording = Recording(_order(metrics, skip=2), print)
    _append(metrics, json.dumps(_row(1)) + "\n")
    recording.take_rows()
    assert fake.run.logged == []
    _append(metrics, json.dumps(_row(2)) + "\n" + json.dumps(_row(3)) + "\n" + json.dumps(_row(4))[:20])
    recording.take_rows()
    assert [row["step"] for row in fake.run.logged] == [3]
    _append(metrics, json.dumps(_row(4))[20:] + "\n")
    recording.take_rows()
    recording.take_rows()
    assert fake.run.logged == [
        {"step": 3, "flops": float(10**18 + 3), "train/loss": 1.0},
        {"step": 4, "flops": float(10**18 + 4), "train/loss": 1.0},
    ]


def _checkpoint(folder: Path, step: int, loss: float, *aliases: str) -> None:
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "flops": 10 * step, "losses": {"eval/loss": loss}, "data": "f00d"}
    (path / "meta.json").write_text(json.dumps({"state": state}))
    (path / "model.safetensors").write_bytes(b"weights")
    for alias in aliases:
        (folder / alias).write_text(f"{path.name}\n")


def test_each_checkpoint_is_an_artifact_even_when_the_run_drops_it(fake: FakeWandb, metrics: Path) -> None:
    """It keeps its files by links; one is logged again where it becomes the best later."""
    recording, folder = Recording(_order(metrics), print), metrics.parent / "checkpoints"
    recording.take_checkpoints()
    for step, loss, aliases in ((4, 3.0, ["latest"]), (4, 3.0, ["best"]), (8, 3.5, ["latest"])):
        _checkpoint(folder, step, loss, *aliases)
        recording.take_checkpoints()
        recording.take_checkpoints()
    shutil.rmtree(folder)
    assert [(a.name, a.kind, aliases) for a, aliases in fake.run.artifacts] == [
        ("checkpoint-abc", "checkpoint", ["latest"]),
        ("checkpoint-abc", "checkpoint", ["latest", "best"]),
        ("checkpoint-abc", "checkpoint", ["latest"]),
    ]
    (path,) = fake.run.artifacts[1][0].folders
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert fake.run.artifacts[2][0].metadata == {"step": 8, "flops": 80, "eval/loss": 3.5, "data": "f00d"}


def test_a_resumed_run_logs_new_checkpoints_alone(fake: FakeWandb, metrics: Path) -> None:
    folder = metrics.parent / "checkpoints"
    _checkpoint(folder, 4, 3.0, "latest", "best")
    seen = [(name, alias) for name, aliases in recorder.named_checkpoints(folder) for alias in aliases]
    recording = Recording(_order(metrics) | {"seen": seen}, print)
    recording.take_checkpoints()
    assert fake.run.artifacts == []
    _checkpoint(folder, 8, 3.0, "latest")
    recording.take_checkpoints()
    assert [aliases for _, aliases in fake.run.artifacts] == [["latest"]]


@pytest.mark.parametrize("problem", ["no link", "no space"])
def test_a_checkpoint_that_cannot_be_taken_is_a_line(
    problem: str, fake: FakeWandb, metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    recording = Recording(_order(metrics), lines.append)
    _checkpoint(metrics.parent / "checkpoints", 4, 3.0, "latest")
    if problem == "no link":
        (metrics.parent / "wandb").write_text("a file")
    else:
        usage = types.SimpleNamespace(free=100)
        monkeypatch.setattr(recorder.shutil, "disk_usage", lambda path: usage)
    recording.take_checkpoints()
    recording.take_checkpoints()
    recording.close("completed", {})
    (line,) = lines
    assert line.startswith("artifact checkpoint-abc cannot be uploaded: ")
    assert fake.run.artifacts == []
    assert fake.run.exit_code == 0


def test_the_corpus_is_referred_to_by_its_fingerprint_and_not_read(
    fake: FakeWandb, metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    facts = {mirror.FACTS: {"data": {"fingerprint": "0123456789abcdef", "training_rows": 7}}}
    sources = [{"files": ["*.txt"], "weight": 1}, {"path": "allenai/c4", "weight": 2}, {"kind": "pydocs"}]
    corpus = mirror._corpus(facts | {"data": {"sources": sources}})
    Recording(_order(metrics) | {"corpus": corpus}, print)
    ((artifact, _),) = fake.run.artifacts
    assert (artifact.name, artifact.kind) == ("corpus-0123456789ab", "dataset")
    assert artifact.references == [(tmp_path / "a.txt").as_uri(), "https://huggingface.co/datasets/allenai/c4"]
    assert artifact.metadata == {"fingerprint": "0123456789abcdef", "training_rows": 7}
    assert mirror._corpus(facts | {"data": {"kind": "pydocs"}}) is None
    assert mirror._corpus({"data": {"files": "*.txt"}}) is None  # of GLUE


@pytest.mark.parametrize(("status", "exit_code"), [("completed", 0), ("interrupted", 1), ("failed", 1)])
def test_the_end_has_the_final_numbers(status: str, exit_code: int, fake: FakeWandb, metrics: Path) -> None:
    Recording(_order(metrics), print).close(status, {"eval/loss": 2.0})
    assert fake.run.summary == {"status": status, "eval/loss": 2.0}
    assert fake.run.exit_code == exit_code


def test_the_saving_and_the_last_jump_are_numbers_of_the_run() -> None:
    """Of 100 FLOPs from scratch, 60 and 15 of the source were spent; the growth raised the loss from 3 to 3.25."""
    found = final_numbers(SUMMARY)
    assert found["saving/flops_at_equal_steps"] == 0.25
    assert found["growth/last_jump"] == 0.25
    assert found["train/loss"] == 2.5
    assert "eval/loss" not in found  # whose minimum W&B keeps


def test_a_loss_that_is_not_finite_is_no_jump() -> None:
    growth = {"eval/loss_before": 3.0, "eval/loss_after": None}
    assert final_numbers(SUMMARY | {"growths": [growth]})["growth/last_jump"] is None
    assert "growth/last_jump" not in final_numbers(SUMMARY | {"growths": []})


@pytest.mark.parametrize(
    ("log", "marked", "problem"),
    [
        ("wandb: Syncing\nwandb: Finished\n", True, ""),
        ("wandb: Syncing\nwandb: ERROR some data\nwandb: Finished\n", True, "some data"),
        (f"wandb: Syncing\nwandb: ERROR key {KEY} is unknown\nwandb: bye\n", False, "key *** is unknown"),
        ("Trace\nan end without the word\n\n", False, "an end without the word"),
        ("", False, "it printed nothing"),
    ],
)
def test_an_upload_is_complete_or_has_a_problem_and_no_mark(
    log: str, marked: bool, problem: str, tmp_path: Path
) -> None:
    folder = tmp_path / "offline-run-1"
    folder.mkdir()
    upload = recorder.Upload(tmp_path, {"WANDB_API_KEY": f"{KEY}\n"}, 1.0)
    upload.log.write(log.encode())
    upload.log.flush()
    if marked:
        (folder / "run-abc.wandb.synced").touch()
    assert upload._problem() == problem
    assert any(folder.iterdir()) == (problem == "")


def _mirrored(run_dir: Path, timeout: float, rows: int, **tracking: Any) -> list[str]:
    """Rows with the real wandb beside them; the lines of the recorder."""
    lines: list[str] = []
    (run_dir / "train.log").write_text("begins\n")
    stages = [{"layers": 1, "flops": 20}, {"layers": 2, "flops": 40}]
    args = _tracking("auto", timeout, **tracking)
    opened = open_mirror(args, IDENTITY, {"seed": 0}, run_dir, 0, lines.append, stages)
    assert opened is not None
    for step in range(rows):
        _append(run_dir / "metrics.jsonl", json.dumps(_row(step)) + "\n")
        opened.row(_row(step))
    if tracking.get("upload") == "checkpoints":
        _checkpoint(run_dir / "checkpoints", 4, 3.0, "latest", "best")
    opened.close("completed", SUMMARY)
    return lines


def _recorded(run_dir: Path) -> list[int]:
    (path,) = run_dir.glob("wandb/offline-run-*/run-abc.wandb")
    assert exit_codes(path) == [0]
    return [row["step"] for row in history(path)]


def test_the_real_wandb_records_offline(metrics: Path) -> None:
    lines = _mirrored(metrics.parent, 30, 5)
    assert lines == [f"W&B offline; to upload later: wandb sync {metrics.parent}/wandb"]
    assert _recorded(metrics.parent) == [0, 1, 2, 3, 4]
    (path,) = metrics.parent.glob("wandb/offline-run-*/run-abc.wandb")
    run = started(path)
    assert (run.project, run.entity, run.run_group, list(run.tags)) == ("apollo", "", "name", ["bert", "lvps"])
    assert printed(path) == "begins\n"
    final = summary(path)
    assert (final["status"], final["growth/last_jump"]) == ("completed", 0.25)
    assert (final["plan/stages"]["_type"], final["plan/stages"]["nrows"]) == ("table-file", 2)
    (table,) = path.parent.glob("files/media/table/growth/*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["step", "from", "to", "eval/loss_before", "eval/loss_after", "jump"],
        "data": [[5, 1, 2, 3.0, 3.25, 0.25]],
    }


def test_rows_of_before_wandb_was_asked_for_are_recorded_too(metrics: Path) -> None:
    """And a checkpoint of then; where it was asked for before, it has them."""
    for step in range(3):
        _append(metrics, json.dumps(_row(step)) + "\n")
    _checkpoint(metrics.parent / "checkpoints", 2, 3.0, "latest")
    lines: list[str] = []
    orders: list[dict[str, Any]] = []
    (metrics.parent / "train.log").write_text("begins\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "WandbProcess", lambda order, say: orders.append(order))
        for _ in range(2):
            args = _tracking("auto", 1, upload="checkpoints")
            open_mirror(args, IDENTITY, {"seed": 0}, metrics.parent, 2, lines.append, [])
            (metrics.parent / "wandb").mkdir(exist_ok=True)
    first, second = ({key: order[key] for key in ("skip", "seen", "log_from")} for order in orders)
    assert first == {"skip": 0, "seen": [], "log_from": 0}
    assert second == {"skip": 5, "seen": [("step_00000002", "latest")], "log_from": 7}


def test_names_of_the_environment_and_of_the_config_are_recorded(
    metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typed key is before the variable; tags add up; `wandb agent` gives the sweep."""
    names = {"PROJECT": "p", "ENTITY": "team", "RUN_GROUP": "theirs", "TAGS": "a,bert", "NOTES": "why"}
    for name, value in (names | {"SWEEP_ID": "s1", "RUN_ID": "stray"}).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    _mirrored(metrics.parent, 30, 1, group="mine", tags=["b"])
    (path,) = metrics.parent.glob("wandb/offline-run-*/run-abc.wandb")
    run = started(path)
    assert (run.run_id, run.sweep_id) == ("abc", "s1")
    assert (run.project, run.entity, run.run_group, run.notes) == ("p", "team", "mine", "why")
    assert list(run.tags) == ["bert", "lvps", "b", "a"]


def test_the_real_wandb_uploads(metrics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is printed; the exported model and the checkpoint are artifacts with what they cost."""
    server = StubServer()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    (metrics.parent / "model").mkdir()
    (metrics.parent / "model" / "model.safetensors").write_bytes(b"weights")
    assert _mirrored(metrics.parent, 30, 5, upload="checkpoints") == [f"W&B page: {server.url}/me/apollo/runs/abc"]
    assert server.steps() == [0, 1, 2, 3, 4]
    assert server.complete
    model = server.artifacts["model-abc"]
    assert {alias["alias"] for alias in model["aliases"]} == {"latest", "final"}
    assert json.loads(model["metadata"]) == {
        "flops": 60, "eval/loss": 2.0, "data": "f00d", "git_commit": None,
    }  # fmt: skip
    checkpoint = server.artifacts["checkpoint-abc"]
    assert {alias["alias"] for alias in checkpoint["aliases"]} == {"latest", "best"}
    assert json.loads(checkpoint["metadata"]) == {"step": 4, "flops": 40, "eval/loss": 3.0, "data": "f00d"}
    assert not (metrics.parent / "wandb" / "checkpoints").exists()  # uploaded
    server.die()


def test_an_upload_to_a_dead_server_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    monkeypatch.setattr(recorder.signal, "alarm", lambda seconds: None)
    server = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{unused_port()}"}
    upload, lines = recorder.Upload(tmp_path / "wandb", os.environ | server, 1.0), list[str]()
    start = time.monotonic()
    upload.finish(start + 0.3, lines.append)
    assert time.monotonic() - start < 1.3
    assert lines == ["does not have all rows yet"]
    assert upload.process is not None
    assert upload.process.poll() is not None


def test_a_recorder_that_does_not_end_costs_the_timeout_and_no_more(
    metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(recorder, "__file__", str(tmp_path / "endless.py"))
    lines: list[str] = []
    opened = open_mirror(_tracking("auto", 0.3), IDENTITY, {}, metrics.parent, 0, lines.append)
    assert opened is not None
    process, start = opened.process, time.monotonic()
    opened.close("completed", SUMMARY)
    assert time.monotonic() - start < 1.3
    assert lines == ["W&B did not finish within 0.3 seconds"]
    assert process is not None
    assert process.wait(10) == -signal.SIGTERM


def test_a_key_is_found_in_the_environment_or_the_netrc_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not has_key()
    netrc = tmp_path / "netrc"
    netrc.write_text("machine wandb.example login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert not has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    assert not has_key()
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("WANDB_API_KEY", "\n")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert has_key()


def test_the_key_is_looked_for_where_wandb_login_stored_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine wandb.example login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert not has_key()
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example\n")
    assert has_key()
    (tmp_path / "settings").write_text("rubbish")
    assert not has_key()


def test_the_jobs_of_a_sweep_share_a_group(tmp_path: Path) -> None:
    """The group is the folder of the sweep, whatever the names of its jobs are."""
    sweep = tmp_path / "apollo" / "stamp"
    for job in ("0", "1"):
        (sweep / job).mkdir(parents=True)
    (sweep / "multirun.yaml").write_text("")
    first, second = identify(sweep / "0", "apollo", (), "0"), identify(sweep / "1", "scratch", (), "1")
    assert first.group == second.group == "apollo/stamp"
    assert (first.name, second.name) == ("apollo/stamp/0", "apollo/stamp/1")
    assert (first.id, second.id) == ("0", "1")
    assert identify(tmp_path / "alone", "apollo", (), "2").group == "apollo"


def test_names_are_not_longer_than_wandb_takes(tmp_path: Path) -> None:
    """The end of a name stays, which tells the jobs of a sweep apart."""
    one, other = (identify(tmp_path / ("x" * 200 + end), "n" * 200, (), "0") for end in "12")
    assert len(one.name) == len(one.group) == 128
    assert one.name != other.name


@pytest.mark.slow
def test_the_offline_file_holds_every_row(config: Callable[..., Config], tmp_path: Path) -> None:
    train(config("tracking=wandb", "tracking.wandb=offline"), tmp_path / "run")
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert list(history(path)) == [row | {"flops": float(row["flops"])} for row in read_rows(tmp_path / "run")]


@pytest.mark.slow
def test_summary_json_has_the_page(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = StubServer()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    train(config("tracking=wandb", "tracking.timeout=60", "tracking.csv=true", "name=n"), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["wandb"] == f"{server.url}/me/apollo/runs/abc"  # as the server named it
    assert server.runs[0]["name"] == summary["run_id"]
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + len(server.rows)
    shown = json.loads(server.runs[0]["config"])
    assert shown["method"]["value"] == "n: lvps k=2 expander=interpolate layers=1-2-4"
    assert shown["size"]["value"] == "4x16"
    assert server.runs[0]["tags"] == ["bert", "lvps", "interpolate", "layers=1-2-4", "4x16"]
    server.die()
