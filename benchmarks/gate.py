"""Programs that step only when told to, so that several can be timed in turns on one machine."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any


class Gate:
    """Inside a program: lets a number of steps through each time somebody asks, and says how long they took."""

    def __init__(self, pipe: int) -> None:
        self.left, self.began, self.pipe = 0, 0.0, pipe

    def step(self) -> None:
        """Stands before each step; the program ends here when nobody asks any more."""
        if self.left == 0:
            self._report(perf_counter() - self.began if self.began else 0.0)
            order = sys.stdin.readline()
            if not order.strip():
                os._exit(0)
            self.left, self.began = int(order), perf_counter()
        self.left -= 1

    def end(self) -> None:
        """Stands behind the last step."""
        self._report(perf_counter() - self.began)

    def _report(self, seconds: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(self.pipe, json.dumps({"seconds": seconds, "peak_bytes": peak}).encode() + b"\n")


class Gated:
    """Outside: a program behind a gate.

    Args:
        words: after `python`; the number of the pipe to report to is added.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = " ".join(words)
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, *words, str(writing)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pass_fds=[writing],
        )  # fmt: skip
        os.close(writing)
        self.reports = os.fdopen(reading)
        self._report()  # ready for its first step

    def run(self, steps: int, ends: bool = False) -> float:
        """Seconds that this many steps took; if the program ends with them, its end included."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        if ends:
            self.process.stdin.close()
            self.process.stdin = None
        return self._report()["seconds"]

    def _report(self) -> dict[str, Any]:
        line = self.reports.readline()
        if not line:
            raise RuntimeError(f"{self.words}: {self.process.communicate()[1]}")
        self.last = json.loads(line)
        return self.last

    def close(self) -> int:
        """Ends the program; its peak memory in bytes."""
        self.process.communicate("\n" if self.process.stdin else None)
        return self.last["peak_bytes"]
