"""SIGINT and SIGTERM: the first asks the loop to stop in good order, the second stops at once."""

import signal
import threading
from types import FrameType, TracebackType

from apollo_cli.errors import ApolloError


class Interrupted(ApolloError):
    """The run was stopped by a signal after its state was saved."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class StopRequest:
    """While entered, remembers the first SIGINT or SIGTERM in `signum` and lets the next one through."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            self._before = {s: signal.signal(s, self._remember) for s in self._SIGNALS}
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
