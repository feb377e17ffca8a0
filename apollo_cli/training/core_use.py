"""Whether a run on a CPU gets the cores that it computes with."""

import os
from collections.abc import Callable
from time import perf_counter, process_time

import torch

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of threads that wait for each other
_SECONDS = 2.0  # measured at once, at least
_SHARE = 0.75  # of the cores' time; an idle machine gives all of it


class CoreUse:
    """The processor time of this process since the last look, beside that of the cores for its threads.

    OpenMP's threads spin while they wait for each other. That is fastest on an idle machine; where another program
    takes a core, they spin for as long as that one runs.
    """

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self.is_done = self.threads == 1 or any(name in os.environ for name in _WAITING)
        self.began = self.used = 0.0  # before the first look, which begins to measure

    def look(self, say: Callable[[str], None]) -> None:
        """Says once if other programs take a good part of the cores."""
        if self.is_done or perf_counter() - self.began < _SECONDS:
            return
        began, used = self.began, self.used
        self.began, self.used = perf_counter(), process_time()
        share = (self.used - used) / (self.threads * (self.began - began))
        if began and share < _SHARE:
            self.is_done = True
            say(
                f"note: {self.threads} threads got {share:.0%} of the time of {self.threads} cores, so other "
                "programs run beside; OMP_WAIT_POLICY=passive before the command is faster then (docs/faq.md)"
            )
