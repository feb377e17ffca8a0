"""Signals that ask a run to end: the first stops it in good order, the second at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from apollo_cli.errors import ApolloError

# SIGHUP comes when a terminal goes away, SIGUSR2 from Slurm before a time limit (sbatch --signal=USR2@300)
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class Interrupted(ApolloError):
    """The run was stopped by a signal; `resume` goes on."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class Terminated(SystemExit):
    """What the command's handler raises for a signal that Python has no exception for."""

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(128 + signum)


def terminate(signum: int, frame: FrameType | None) -> None:
    """The handler."""
    raise Terminated(signum)


@contextmanager
def terminable() -> Iterator[None]:
    """While entered, all but SIGINT raise `Terminated`, unless they are ignored, which is nohup's way."""
    asked = [s for s in ASKING if s != signal.SIGINT and signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, terminate) for s in asked}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class StopRequest:
    """While entered, remembers the first of these signals in `signum` and lets the next one through."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            wanted = [s for s in ASKING if signal.getsignal(s) != signal.SIG_IGN]  # nohup ignores SIGHUP
            self._before = {s: signal.signal(s, self._remember) for s in wanted}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        self._before = {}


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns what a signal raises here into `Interrupted`."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(signal.SIGINT) from error
    except Terminated as error:
        raise Interrupted(error.signum) from error
