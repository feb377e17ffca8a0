"""`profile=true`: where the time of a few steps goes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from apollo_cli import files

_WARMUP, _STEPS = 3, 5  # steps before the profile, and in it
_ROWS = 12  # of the table


@contextmanager
def profiled(device: torch.device, folder: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Profiles a few steps after the first ones; yields a function to be called after each step.

    Writes profile.json, a Chrome trace, and profile.txt, the operators that take most of the time, into `folder`.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own lines would break the live bar
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    written = False

    def write(profiler: profile) -> None:
        nonlocal written
        if profiler.step_num <= _WARMUP:  # the steps have ended, what follows is none
            return
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=40)
        with files.writing(folder / "profile.json", 50_000_000):
            profiler.export_chrome_trace(str(folder / "profile.json"))
            (folder / "profile.txt").write_text(table, encoding="utf-8")
        steps, where = f"{_WARMUP + 1} to {profiler.step_num}", files.shown(folder)
        say(f"profile of steps {steps}: {where}/profile.txt, and profile.json for ui.perfetto.dev")
        written = True

    wanted = schedule(wait=0, warmup=_WARMUP, active=_STEPS, repeat=1)
    with profile(activities=activities, schedule=wanted, on_trace_ready=write) as profiler:
        yield profiler.step
    if not written:
        say(f"profile=true: no profile, for the run ended before its step {_WARMUP + 1}")
