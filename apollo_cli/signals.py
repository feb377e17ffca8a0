"""Signals that stop a run: the first after the current step, with a checkpoint, the second at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType, TracebackType

from apollo_cli.errors import ApolloError

# SIGHUP is sent when a terminal closes, SIGUSR2 by Slurm before a time limit (sbatch --signal=USR2@300)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class Interrupted(ApolloError):
    """The run was stopped by a signal and can be resumed."""

    resumable = True

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class Terminated(SystemExit):
    """Raised for a signal, SIGINT too: `python -m` would die of a `KeyboardInterrupt` that has passed `exec`."""

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(128 + signum)


def terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated(signum)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While entered, signals have this handler, unless they are ignored, as nohup does with SIGHUP."""
    before = {s: signal.signal(s, handler) for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield
    finally:
        with ExitStack() as restored:  # all, though a signal may raise meanwhile
            for signum, earlier in before.items():
                restored.callback(signal.signal, signum, earlier)


def terminable() -> AbstractContextManager[None]:
    """While entered, signals raise `Terminated`."""
    return handled(terminate)


def exit_at_once(code: int) -> None:
    """Has a signal from now on end the process with this exit code, which the work before has earned."""
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, lambda *_: os._exit(code))


class StopRequest:
    """While entered, records the first signal in `signum` and forwards it; a second one has its usual effect."""

    def __init__(self, forward: Callable[[int], None] = lambda _: None) -> None:
        self.forward = forward
        self.signum: int | None = None
        self._handling = ExitStack()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            self._handling.enter_context(handled(self._remember))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handling.close()

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._handling.close()
        self.forward(signum)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises `Interrupted` for a signal while entered."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(signal.SIGINT) from error
    except Terminated as error:
        raise Interrupted(error.signum) from error
