"""How the threads of a run wait for each other on a CPU, and whether they get its cores."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter

_SPINS = "10000"  # of libgomp, whose own 300,000 are 15 ms
_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of the user
_SECONDS = 2.0  # measured at once, at least
_SHARE = 0.1  # of the threads' time; on an idle machine they wait for 0.01 of it, beside a busy program 0.4


def wait_briefly() -> None:
    """Has OpenMP's threads sleep sooner where they wait for each other; to be called before torch is imported.

    They spin first, which is fastest on an idle machine. Where another program takes a core, the others spin for as
    long as it runs: 60 steps of `size=tiny` on two cores took 24 and 88 s beside one busy program, and 12 and 15 s
    so; alone 3.4 and 3.0 s, and 3.4 and 3.1 s so.
    """
    if not _is_chosen(os.environ):
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def _is_chosen(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name, _SPINS) != _SPINS for name in _CHOICES)


class CoreWaits:
    """How long the threads of this process have waited for a core since the last look, as Linux counts it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.is_done = threads == 1 or _is_chosen(os.environ)  # one waits for no other
        self.began = self.waited = 0.0  # before the first look, which begins to measure

    def look(self, say: Callable[[str], None]) -> None:
        """Says once if other programs take a good part of the cores."""
        if self.is_done or perf_counter() - self.began < _SECONDS:
            return
        began, waited = self.began, self.waited
        self.began, self.waited = perf_counter(), seconds_waited()
        share = (self.waited - waited) / (self.threads * (self.began - began))
        if began and share > _SHARE:
            self.is_done = True
            say(
                f"note: the {self.threads} threads of this run wait for a core {share:.0%} of the time, for other "
                "programs run, too; with OMP_WAIT_POLICY=passive before the command it is faster (docs/faq.md)"
            )


def seconds_waited() -> float:
    """Seconds for which the threads of this process were ready and had no core; 0 where that is not counted."""
    waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            waited += int(path.read_text().split()[1])  # nanoseconds
    return waited / 1e9
