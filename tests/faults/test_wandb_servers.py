"""The real wandb with servers, keys and settings of every kind; a run is reduced to its rows."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import read_rows
from tests.helpers.stub_wandb import StubServer, unused_port
from tests.helpers.wandb_file import exit_codes, history, started

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for left processes in /proc"),
]

KEY = "5e7e" * 10
TIMEOUT = 4.0
ROOT = Path(__file__).parents[2]
NO_GATES, ROW, EXIT = 0.5, 0.1, 1.0  # seconds at most, on a machine that does other things too


class Bench:
    """Starts runs in an empty folder and checks what they leave.

    Attributes:
        timeout: `tracking.timeout` of the runs.
    """

    timeout = TIMEOUT

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir, self.mark = folder, folder / "run", uuid4().hex
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {
            "PYTHONPATH": str(ROOT),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CONFIG_DIR": str(folder.parent / "config"),
            "NETRC": str(folder.parent / "netrc"),
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",  # instead of 15 seconds
            "MARK": self.mark,
        }

    def start(
        self, mode: str = "auto", rows: int = 15, gap: float = 0.1, first: int = 0, **more: Any
    ) -> subprocess.Popen[str]:
        """A run; `more` is for its environment, or for Popen."""
        numbers = [str(self.timeout), str(rows), str(gap), str(first)]
        words = [sys.executable, "-m", "tests.helpers.mirrored", str(self.run_dir), mode, *numbers]
        options = {name: more.pop(name) for name in list(more) if name.islower()}
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        streams |= {"stderr": subprocess.STDOUT, "text": True} | options
        return subprocess.Popen(words, cwd=self.folder, env=self.environment | more, **streams)

    def run(self, *args: Any, **more: Any) -> str:
        """The output of a run from start to end, whose parts are within their time limits."""
        return self.end(self.start(*args, **more))

    def end(self, process: subprocess.Popen[str]) -> str:
        """Waits for a run and checks its times; without the line that names its page."""
        output, _ = process.communicate(timeout=60)
        now = time.monotonic()
        assert process.returncode == 0, output
        assert KEY not in output
        *lines, clocks = output.splitlines()
        seconds = json.loads(clocks)
        assert seconds["open"] < NO_GATES
        assert seconds["row"] < ROW
        assert seconds["close"] < self.timeout + 0.3
        assert now - seconds["ended"] < EXIT
        pages = [line for line in lines if line.startswith("W&B page: ")]
        assert len(pages) <= 1
        return "\n".join(line for line in lines if line not in pages)

    def left(self) -> list[str]:
        """Processes of this bench that are still there, as command lines."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK={self.mark}".encode() in (path / "environ").read_bytes():
                    found.append(f"{path.name} {(path / 'cmdline').read_bytes().decode()}")
            except OSError:
                continue
        return found

    def recordings(self) -> list[Path]:
        """The .wandb files."""
        return sorted(self.run_dir.glob("wandb/offline-run-*/*.wandb"))

    def check(self, rows: int, status: int = 0) -> None:
        """All rows in both files, the recording closed, no process left, no key and no file where none belongs."""
        _until(lambda: not self.left(), 10)
        assert [row["step"] for row in read_rows(self.run_dir)] == list(range(rows))
        (recording,) = self.recordings()
        assert list(history(recording)) == read_rows(self.run_dir)
        assert exit_codes(recording) == [status]
        self.check_places()

    def check_places(self) -> None:
        """Nothing but the run directory was written here, and the key is in no file."""
        assert [path.name for path in self.folder.iterdir()] == ["run"]
        for path in self.run_dir.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), path

    def sync(self, output: str, server: StubServer) -> None:
        """Runs the command to upload later that the output names."""
        (command,) = re.findall(r"wandb sync (.+)$", output, re.MULTILINE)
        words = [sys.executable, "-P", "-m", "wandb", "sync", *shlex.split(command)]
        environment = self.environment | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        subprocess.run(words, cwd=self.folder, env=environment, check=True, capture_output=True, timeout=60)


def _until(true: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    folder = tmp_path / "here"
    folder.mkdir()
    bench = Bench(folder)
    yield bench
    for line in bench.left():
        os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.fixture
def server() -> Iterator[StubServer]:
    server = StubServer()
    yield server
    server.die()


def _hints(output: str) -> int:
    return output.count("wandb sync run/wandb")


def test_a_working_server_gets_all_rows_without_a_message(bench: Bench, server: StubServer) -> None:
    assert bench.run(WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY) == "closing"
    assert server.steps() == list(range(15))
    assert server.complete
    bench.check(15)


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}"])
def test_white_space_around_the_key_is_stripped(key: str, bench: Bench, server: StubServer) -> None:
    assert bench.run(WANDB_BASE_URL=server.url, WANDB_API_KEY=key) == "closing"
    assert server.steps() == list(range(15))


@pytest.mark.parametrize("mode", ["auto", "online"])
@pytest.mark.parametrize("key", [None, "", "\n"])
def test_without_a_key_the_run_is_offline(mode: str, key: str | None, bench: Bench, server: StubServer) -> None:
    output = bench.run(mode, WANDB_BASE_URL=server.url, **({} if key is None else {"WANDB_API_KEY": key}))
    assert _hints(output) == 1
    assert ("wandb login" in output) == (mode == "online")
    assert server.paths == []
    bench.check(15)
    bench.sync(output, server)
    assert server.steps() == list(range(15))


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_wrong_key_is_reported_during_the_run(status: str, bench: Bench, server: StubServer) -> None:
    server.manner = status
    output = bench.run(rows=60, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    first, *_, last = output.splitlines()
    assert first.startswith("W&B upload ended: ")
    assert "user is not logged in" in first
    assert last == "closing"
    assert _hints(output) == 1
    bench.check(60)
    server.manner = "answer"
    bench.sync(output, server)
    assert server.steps() == list(range(60))


@pytest.mark.parametrize("key", ["short", "two\nlines" * 9])
def test_an_invalid_key_is_reported(key: str, bench: Bench, server: StubServer) -> None:
    output = bench.run(rows=30, WANDB_BASE_URL=server.url, WANDB_API_KEY=key)
    assert "W&B upload ended" in output
    assert key not in output
    assert _hints(output) == 1
    bench.check(30)


def _address(kind: str, server: StubServer) -> str:
    if kind == "refused":
        return f"http://127.0.0.1:{unused_port()}"
    if kind == "unresolved":
        return "http://nobody.invalid"
    server.manner = kind
    return server.url


@pytest.mark.parametrize("kind", ["refused", "unresolved", "hang", "500"])
def test_no_server(kind: str, bench: Bench, server: StubServer) -> None:
    output = bench.run(WANDB_BASE_URL=_address(kind, server), WANDB_API_KEY=KEY)
    assert output.startswith("closing\nW&B does not have all rows yet")
    assert _hints(output) == 1
    bench.check(15)
    server.manner = "answer"
    bench.sync(output, server)
    assert server.steps() == list(range(15))


def test_a_late_server_is_reported_during_the_run(bench: Bench, server: StubServer) -> None:
    server.manner = "hang"
    output = bench.run(rows=100, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    late = "W&B does not answer; it is asked again and again; to upload later: wandb sync run/wandb"
    assert output.splitlines() == [late, "closing", "W&B does not have all rows yet"]
    bench.check(100)


def test_a_slow_server(bench: Bench, server: StubServer) -> None:
    server.delay = 0.2
    output = bench.run(rows=30, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert output == "closing"
    assert server.steps() == list(range(30))
    bench.check(30)


@pytest.mark.parametrize("how", ["die", "hang", "500", "401"])
def test_a_server_that_fails_in_the_middle(how: str, bench: Bench, server: StubServer) -> None:
    process = bench.start(rows=60, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    _until(lambda: server.rows, 15)
    if how == "die":
        server.die()
    else:
        server.manner = how
    output = bench.end(process)
    assert 0 < len(server.rows) < 60
    assert ("W&B upload ended" if how == "401" else "W&B does not have all rows yet") in output
    assert _hints(output) == 1
    bench.check(60)
    later = StubServer()
    later.rows, later.lines = dict(server.rows), server.lines
    bench.sync(output, later)
    assert later.steps() == list(range(60))
    later.die()


def test_a_resumed_run_uploads_what_is_missing_first_and_no_row_twice(bench: Bench, server: StubServer) -> None:
    bench.run(rows=8, WANDB_BASE_URL=_address("refused", server), WANDB_API_KEY=KEY)
    time.sleep(1.1)  # wandb names recordings by the second
    bench.timeout = 15.0  # the default: two recordings are uploaded
    assert bench.run(rows=12, first=5, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY) == "closing"
    assert server.steps() == list(range(12))
    assert [row["_step"] for _, row in sorted(server.rows.items())] == list(range(12))
    assert [[row["step"] for row in history(path)] for path in bench.recordings()] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9, 10, 11],
    ]


def test_an_offline_run_that_was_resumed_syncs_to_one_run(bench: Bench, server: StubServer) -> None:
    """Both recordings begin at W&B's step 0; `wandb sync` appends the second to the first."""
    bench.run("offline", rows=8)
    time.sleep(1.1)  # wandb names recordings by the second
    output = bench.run("offline", rows=12, first=5)
    assert [started(path).run_id for path in bench.recordings()] == ["abc", "abc"]
    bench.sync(output, server)
    assert server.steps() == list(range(12))
    assert sorted(server.rows) == list(range(12))
    assert {run["name"] for run in server.runs} == {"abc"}


def test_the_stop_button_ends_the_run_as_sigterm_does(bench: Bench, server: StubServer) -> None:
    server.stopped = True
    process = bench.start(rows=2000, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    _until(lambda: not bench.left(), TIMEOUT + 5)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("online", None),
        ("run", None),
        ("shared", None),
        ("offline", "W&B offline"),
        ("dryrun", "W&B offline"),
        ("rubbish", "WANDB_MODE=rubbish: should be one of"),
    ],
)
def test_wandb_mode(mode: str, message: str | None, bench: Bench, server: StubServer) -> None:
    output = bench.run(WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY, WANDB_MODE=mode)
    assert (output == "closing") if message is None else (message in output and _hints(output) == 1)
    assert server.steps() == (list(range(15)) if message is None else [])
    bench.check(15)


def test_wandb_mode_disabled_starts_nothing(bench: Bench) -> None:
    assert bench.run(WANDB_API_KEY=KEY, WANDB_MODE="disabled") == "closing"
    assert [path.name for path in bench.run_dir.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("url", ["not a url", "http://", "ftp://host", "http://[::1", "localhost:8080"])
def test_an_invalid_address_is_reported(url: str, bench: Bench) -> None:
    output = bench.run(WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
    assert "WANDB_BASE_URL" in output
    assert _hints(output) == 1
    bench.check(15)


def test_a_wandb_that_cannot_be_imported(bench: Bench) -> None:
    broken = bench.folder.parent / "broken" / "wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no such thing')")
    output = bench.run(WANDB_API_KEY=KEY, PYTHONPATH=f"{broken.parent}:{ROOT}")
    assert "W&B cannot be used; metrics.jsonl has everything: no such thing" in output
    assert _hints(output) == 0
    assert len(read_rows(bench.run_dir)) == 15


@pytest.mark.parametrize("key", [None, KEY])
def test_nothing_prompts_on_a_terminal(key: str | None, bench: Bench, server: StubServer) -> None:
    server.manner = "401"
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    more: dict[str, Any] = {"WANDB_API_KEY": key} if key else {}
    process = bench.start("online", rows=30, WANDB_BASE_URL=server.url, **streams, **more)
    os.close(theirs)
    output = b""
    while select.select([ours], [], [], 20)[0]:
        try:
            output += os.read(ours, 4096)
        except OSError:  # the terminal's other end is closed
            break
    assert process.wait(5) == 0
    lines = output.decode().replace("\r", "").splitlines()
    assert len([line for line in lines if "wandb sync run/wandb" in line]) == 1
    assert all(line.startswith(("W&B", "tracking.wandb=online: no API key", "closing", "{")) for line in lines), (
        lines
    )
    bench.check(30)


def test_a_second_signal_while_closing_does_not_wait(bench: Bench, server: StubServer) -> None:
    server.manner = "hang"
    process = bench.start(WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert process.stdout is not None
    assert process.stdout.readline() == "closing\n"
    time.sleep(0.5)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(10)
    assert time.monotonic() - sent < 0.5
    bench.check(15)


def test_a_killed_run_leaves_a_closed_recording_and_no_process(bench: Bench, server: StubServer) -> None:
    server.manner = "hang"
    process = bench.start(rows=1000, gap=0.02, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    _until(bench.recordings, 15)
    process.kill()
    process.wait()
    _until(lambda: not bench.left(), TIMEOUT + 5)
    bench.check(len(read_rows(bench.run_dir)), status=1)


@pytest.mark.parametrize("victim", ["recorder.py", "wandb-core"])
def test_a_killed_recorder_does_not_stop_the_run(victim: str, bench: Bench, server: StubServer) -> None:
    process = bench.start(rows=60, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    _until(lambda: server.rows, 15)
    (first, *_) = (line for line in bench.left() if victim in line)
    os.kill(int(first.split()[0]), signal.SIGKILL)
    output = bench.end(process)
    assert "metrics.jsonl is complete" in output
    assert _hints(output) == 1
    assert len(read_rows(bench.run_dir)) == 60
    _until(lambda: not bench.left(), 10)


def test_a_stopped_recorder_does_not_block_the_run(bench: Bench, server: StubServer) -> None:
    process = bench.start(rows=3000, gap=0.001, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    _until(bench.recordings, 15)
    for line in bench.left():
        if "mirrored" not in line:
            os.kill(int(line.split()[0]), signal.SIGSTOP)
    output = bench.end(process)
    assert "W&B did not finish within 4 seconds" in output
    assert _hints(output) == 1
    assert len(read_rows(bench.run_dir)) == 3000
