import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apollo_cli.signals import STOP_SIGNALS, Interrupted, StopRequest


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_recorded_and_the_handlers_are_restored(signum: int) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert stop.signum is None
        signal.raise_signal(signum)
        assert stop.signum == signum
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_stops_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_all_handlers_are_restored_though_a_signal_comes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = [signal.getsignal(s) for s in STOP_SIGNALS], signal.signal

    def set_handler(signum: int, handler: Any) -> Any:
        replaced = real(signum, handler)
        if handler == before[0] and signum == signal.SIGINT:  # which raises, as of now
            signal.raise_signal(signal.SIGINT)
        return replaced

    with StopRequest():
        monkeypatch.setattr(signal, "signal", set_handler)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before


def test_the_error_names_the_signal() -> None:
    assert str(Interrupted(signal.SIGTERM)) == "stopped by SIGTERM"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("exec('signal.raise_signal(signal.SIGINT)')", 130),  # python -m would die of a KeyboardInterrupt, with -2
        ("exec('signal.raise_signal(signal.SIGTERM)')", 143),
        ("atexit.register(signal.raise_signal, signal.SIGHUP)", 0),
        ("atexit.register(signal.raise_signal, signal.SIGINT)", 0),
    ],
)
def test_a_command_ends_with_its_own_exit_code_whenever_a_signal_comes(
    body: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "command.py").write_text(
        "import atexit, signal\n"
        "from apollo_cli.cli.program import Program\n"
        "def action(words):\n"
        f"    {body}\n"
        "Program('apollo-x', 'page', action).main()\n"
    )
    ended = subprocess.run([sys.executable, "-m", "command"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
