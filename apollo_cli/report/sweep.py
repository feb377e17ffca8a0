"""The end of a sweep: failed cells on record, a table of all."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.table import Table

from apollo_cli import files
from apollo_cli.errors import CheckpointError
from apollo_cli.report.runs import RunFiles
from apollo_cli.run_directory import RunDirectory
from apollo_cli.tracking.console import Screen


def record_failure(run_dir: Path, raw: dict[str, Any], error: str) -> None:
    """Leaves in the cell's directory what it was and why it failed; a run that is complete there stays as it is."""
    directory = RunDirectory(run_dir)
    with suppress(OSError, CheckpointError):  # the disk is full or the summary damaged: the screen has the error
        before = directory.summary()
        if before["status"] == "completed":
            return
        if not directory.is_claimed:
            directory.write_config(raw)
        files.write_json(directory.summary_file, before | {"status": "failed", "error": error})


def close_sweep(jobs: Sequence[tuple[Path, int]]) -> int:
    """Prints the cells of a sweep, each with its exit code, and returns the gravest code."""
    cells = [RunFiles(path) for path, _ in jobs]
    differing = _differing_keys(cells)
    table = Table(title=f"Sweep of {len(jobs)}", title_justify="left")
    for name in ("job", *differing, "status", "validation loss", "FLOPs", "training seconds"):
        table.add_column(name)
    for cell, (path, code) in zip(cells, jobs, strict=True):
        losses, totals = cell.summary.get("losses", {}), cell.summary.get("totals", {})
        table.add_row(
            path.name,
            *(str(cell.config[key]) for key in differing),
            "failed" if code else cell.summary["status"],
            f"{losses['eval/loss']:.4f}" if "eval/loss" in losses else "-",
            f"{totals['flops']:.3e}" if totals else "-",
            f"{totals['train_seconds']:.0f}" if totals else "-",
        )
    Screen().print(table)
    for cell, (path, code) in zip(cells, jobs, strict=True):
        if code:
            print(f"{path} failed: {cell.summary.get('error', 'it holds another run')}")
    codes = {code for _, code in jobs}
    return 1 if 1 in codes else max(codes, default=0)


def _differing_keys(cells: list[RunFiles]) -> list[str]:
    """Keys that every cell has, with different values; the kind of a group stands for its own keys."""
    shared = [key for key in cells[0].config if all(key in cell.config for cell in cells)] if cells else []
    return [key for key in shared if len({str(cell.config[key]) for cell in cells}) > 1]
