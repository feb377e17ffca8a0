"""The end of a sweep: a table of all cells."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from apollo_cli import files
from apollo_cli.report.runs import RunFiles
from apollo_cli.sweeps.journal import JobResult
from apollo_cli.tracking.console import Screen


def close_sweep(cells: Sequence[JobResult]) -> int:
    """Prints the cells of a sweep and returns the gravest of their codes."""
    values = [dict(word.lstrip("+").split("=", 1) for word in cell.words) for cell in cells]
    swept = list(dict.fromkeys(key for words in values for key in words))
    table = Table(title=f"Sweep of {len(cells)}", title_justify="left")
    for name in ("cell", *(key.replace(".", ".\n") for key in swept)):
        table.add_column(name)
    for name in ("status", "validation\nloss", "FLOPs", "training\nseconds"):
        table.add_column(name, no_wrap=True)
    for cell, words in zip(cells, values, strict=True):
        table.add_row(
            Path(cell.run_dir).name, *(escape(words.get(key, "-")) for key in swept), cell.status, *_results(cell)
        )
    Screen().print(table)
    for cell in cells:
        if cell.code:
            print(f"{files.shown(Path(cell.run_dir))} {cell.status}: {cell.reason}")
    codes = {cell.code for cell in cells}
    return 1 if 1 in codes else max(codes, default=0)


def _results(cell: JobResult) -> Iterator[str]:
    """Loss, FLOPs and seconds, as far as there are any of this cell."""
    run = RunFiles(Path(cell.run_dir))
    summary: dict[str, Any] = {} if cell.status in ("refused", "planned") else run.summary
    losses, totals = summary.get("losses", {}), summary.get("totals", {})
    planned = run.plan["flops"] if cell.status == "planned" else None
    yield f"{losses['eval/loss']:.4f}" if "eval/loss" in losses else "-"
    yield f"{totals.get('flops', planned):.3e}" if totals or planned else "-"
    yield f"{totals['train_seconds']:.0f}" if totals else "-"
