"""The closing table of a sweep."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from apollo_cli import files
from apollo_cli.run_directory import RunDirectory
from apollo_cli.sweeps.journal import JobResult
from apollo_cli.tracking.console import Screen, duration


def close_sweep(jobs: Sequence[JobResult]) -> int:
    """Prints the jobs of a sweep and returns the exit code: 1 if a job has it, else the highest."""
    values = [dict(word.lstrip("+").split("=", 1) for word in job.words) for job in jobs]
    swept = list(dict.fromkeys(key for words in values for key in words))
    table = Table(title=f"Sweep of {len(jobs)}", title_justify="left")
    for name in ("job", *(key.replace(".", ".\n") for key in swept)):
        table.add_column(name)
    for name in ("status", "validation\nloss", "FLOPs", "training\nseconds"):
        table.add_column(name, no_wrap=True)
    for job, words in zip(jobs, values, strict=True):
        table.add_row(
            Path(job.run_dir).name, *(escape(words.get(key, "-")) for key in swept), job.status, *_results(job)
        )
    Screen().print(table)
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)  # {(status, reason): run directories}
    for job in jobs:
        if job.code or job.reason:
            reasons[job.status, job.reason].append(files.shown(Path(job.run_dir)))
    for (status, reason), (place, *others) in reasons.items():
        print(f"{place}{f' and {len(others)} more' if others else ''} {status}: {reason}")
    if plans := [RunDirectory(Path(job.run_dir)).plan() for job in jobs if job.status == "planned"]:
        seconds = sum(plan.get("estimated_seconds", 0.0) for plan in plans)
        print(f"all plans: {sum(plan['flops'] for plan in plans):.4e} FLOPs, about {duration(seconds)} (h:mm:ss)")
    codes = {job.code for job in jobs}
    return 1 if 1 in codes else max(codes, default=0)


def _results(job: JobResult) -> Iterator[str]:
    """Loss, FLOPs and seconds, as far as there are any of this job."""
    run = RunDirectory(Path(job.run_dir))
    summary: dict[str, Any] = {} if job.status in ("refused", "planned") else run.summary()
    losses, totals = summary.get("losses", {}), summary.get("totals", {})
    planned = run.plan()["flops"] if job.status == "planned" else None
    yield f"{losses['eval/loss']:.4f}" if "eval/loss" in losses else "-"
    yield f"{totals.get('flops', planned):.3e}" if totals or planned else "-"
    yield f"{totals['train_seconds']:.0f}" if totals else "-"
