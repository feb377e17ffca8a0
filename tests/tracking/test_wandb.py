import json
import struct
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.config import Config, Tracking
from apollo_cli.tracking import wandb as mirror
from apollo_cli.tracking.wandb import Identity, has_key, identify, open_mirror
from apollo_cli.training.run import train
from tests.conftest import read_rows

IDENTITY = Identity("abc", "name/run", None, ("bert", "lvps"))


def _tracking(mode: str) -> Tracking:
    return Tracking.model_validate({"wandb": mode, "project": "apollo", "timeout": 1.0})


class FakeRun:
    """What the mirror uses of a W&B run."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.settings = types.SimpleNamespace(sync_dir="somewhere/offline-run-1")

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, row: dict[str, Any]) -> None:
        self.logged.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeWandb(types.ModuleType):
    """A wandb whose server may be out of reach."""

    def __init__(self, reachable: bool) -> None:
        super().__init__("wandb")
        self.reachable, self.calls, self.run = reachable, [], FakeRun()  # type: ignore[var-annotated]

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 - the library's name
        return settings

    def init(self, **arguments: Any) -> FakeRun:
        self.calls.append(arguments)
        if arguments["mode"] == "online" and not self.reachable:
            raise TimeoutError("no answer")
        return self.run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], FakeWandb]:
    def install(reachable: bool) -> FakeWandb:
        module = FakeWandb(reachable)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


def _open(mode: str, said: list[str], skip: int = 0) -> mirror.Mirror | None:
    return open_mirror(_tracking(mode), IDENTITY, {"seed": 0}, Path("run"), skip, said.append)


def test_auto_without_a_key_is_offline_and_says_how_to_upload(fake: Callable[[bool], FakeWandb]) -> None:
    wandb, said = fake(True), []
    assert _open("auto", said) is not None
    assert [call["mode"] for call in wandb.calls] == ["offline"]
    assert said == ["W&B offline; to upload later: wandb sync somewhere/offline-run-1"]


def test_online_without_a_key_is_offline_and_never_a_prompt(fake: Callable[[bool], FakeWandb]) -> None:
    wandb, said = fake(True), []
    assert _open("online", said) is not None
    assert [call["mode"] for call in wandb.calls] == ["offline"]
    assert "wandb login" in said[0]


def test_auto_with_a_key_is_online(fake: Callable[[bool], FakeWandb], monkeypatch: pytest.MonkeyPatch) -> None:
    wandb, said = fake(True), []
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert _open("auto", said) is not None
    (call,) = wandb.calls
    assert call["mode"] == "online"
    assert call["id"] == "abc"
    assert call["resume"] == "allow"
    assert call["settings"]["init_timeout"] == 1.0
    assert said == []


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_server_out_of_reach_means_offline_with_one_warning(
    mode: str, fake: Callable[[bool], FakeWandb], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, said = fake(False), []
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert _open(mode, said) is not None
    assert [call["mode"] for call in wandb.calls] == ["online", "offline"]
    assert "no answer" in said[0]
    assert "wandb sync" in said[1]
    assert "k" * 40 not in "".join(said)


def test_disabled_does_not_touch_wandb(fake: Callable[[bool], FakeWandb], monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = fake(True)
    assert _open("disabled", []) is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert _open("auto", []) is None
    assert wandb.calls == []


def test_flops_are_the_axis_of_every_curve(fake: Callable[[bool], FakeWandb]) -> None:
    wandb = fake(True)
    _open("offline", [])
    assert {name for name, axis in wandb.run.metrics.items() if axis == "flops"} == {
        "train/*", "eval/*", "growth/*", "perf/*",
    }  # fmt: skip


def test_rows_and_summary_arrive_and_rows_from_before_a_resume_do_not_come_twice(
    fake: Callable[[bool], FakeWandb],
) -> None:
    wandb = fake(True)
    opened = _open("offline", [], skip=1)
    assert opened is not None
    for step in (1, 2):
        opened.row({"step": step, "flops": 10**18 + step, "train/loss": 1.0})
    opened.close("completed", {"eval/loss": 2.0})
    assert wandb.run.logged == [{"step": 2, "flops": float(10**18 + 2), "train/loss": 1.0}]
    assert wandb.run.summary == {"status": "completed", "eval/loss": 2.0}
    assert wandb.run.exit_code == 0


def test_a_mirror_that_breaks_is_left_out(fake: Callable[[bool], FakeWandb]) -> None:
    wandb, said = fake(True), []
    opened = _open("offline", said)
    assert opened is not None
    wandb.run.log = _broken  # type: ignore[method-assign]
    for step in (1, 2):
        opened.row({"step": step, "flops": 1})
    opened.close("completed", {})
    assert len([line for line in said if "pipe burst" in line]) == 1


def _broken(row: dict[str, Any]) -> None:
    raise OSError("pipe burst")


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
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert has_key()


def test_the_cells_of_a_sweep_share_a_group(tmp_path: Path) -> None:
    for job in ("0", "1"):
        (tmp_path / "stamp" / job).mkdir(parents=True)
    (tmp_path / "stamp" / "multirun.yaml").write_text("")
    first, second = (identify(tmp_path / "stamp" / job, "apollo", (), job) for job in ("0", "1"))
    assert first.group == second.group == "apollo/stamp"
    assert (first.id, second.id) == ("0", "1")
    assert identify(tmp_path / "alone", "apollo", (), "2").group is None


@pytest.mark.slow
def test_the_offline_file_holds_every_row(config: Callable[..., Config], tmp_path: Path) -> None:
    train(config("tracking=wandb", "tracking.wandb=offline"), tmp_path / "run")
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    rows = read_rows(tmp_path / "run")
    recorded = list(_history(path))
    assert len(recorded) == len(rows)
    for row, theirs in zip(rows, recorded, strict=True):
        ours = {key: value for key, value in theirs.items() if not key.startswith("_")}
        assert ours == row | {"flops": float(row["flops"])}


def _history(path: Path) -> Iterator[dict[str, Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format: 7 bytes of W&B's own, then blocks of 32 KiB; 1 whole, 2 first, 3 middle, 4 last."""
    block, position, parts = 32768, 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""
