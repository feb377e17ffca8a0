"""Programs that wait before each step, so that several can be timed in turns on one machine."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any


class Gate:
    """Inside a program: reads from standard input how many steps to run and reports how long they took."""

    def __init__(self, pipe: int) -> None:
        self.left, self.began, self.pipe = 0, 0.0, pipe

    def step(self) -> None:
        """Called before each step; ends the program at an empty line or at the end of the input."""
        if self.left == 0:
            self._report(perf_counter() - self.began if self.began else 0.0)
            steps = sys.stdin.readline()
            if not steps.strip():
                os._exit(0)
            self.left, self.began = int(steps), perf_counter()
        self.left -= 1

    def end(self) -> None:
        """Called after the last step."""
        self._report(perf_counter() - self.began)

    def _report(self, seconds: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(self.pipe, json.dumps({"seconds": seconds, "peak_bytes": peak}).encode() + b"\n")


class GatedProgram:
    """Outside: a program with a gate.

    Args:
        words: after `python`; the file descriptor of the pipe for reports is added.
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
        self._report()  # it waits before its first step

    def run(self, steps: int, ends: bool = False) -> float:
        """Seconds of so many steps; if they are the last, the end of the program is included, and waited for."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        if ends:
            self.process.stdin.close()
            self.process.stdin = None
        seconds: float = self._report()["seconds"]
        if ends:
            self.process.communicate()  # what it still does would slow the next program's steps
        return seconds

    def _report(self) -> dict[str, Any]:
        line = self.reports.readline()
        if not line:
            raise RuntimeError(f"{self.words}: {self.process.communicate()[1]}")
        self.last = json.loads(line)
        return self.last

    def close(self) -> int:
        """Ends the program and returns its peak memory in bytes."""
        if self.process.returncode is None:
            self.process.communicate("\n")
        return self.last["peak_bytes"]
