"""The end of a sweep: failed cells on record, a table of all."""

from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from apollo_cli import files
from apollo_cli.report.runs import RunFiles
from apollo_cli.tracking.console import rich_console


def record_failure(run_dir: Path, raw: dict[str, Any], error: str, exit_code: int) -> None:
    """Leaves in the cell's directory what it was and why it failed."""
    if not (run_dir / "config.yaml").exists():
        files.write_text(run_dir / "config.yaml", yaml.safe_dump(raw, sort_keys=False))
    before = RunFiles(run_dir).summary
    summary = before | {"status": "failed", "error": error, "exit_code": exit_code}
    files.write_json(run_dir / "summary.json", summary)


def close_sweep(folder: Path) -> int:
    """Prints the cells of a sweep and returns its exit code: the gravest of its cells."""
    cells = [RunFiles(path) for path in sorted(folder.glob("[0-9]*"), key=lambda p: int(p.name))]
    differing = _differing_keys(cells)
    table = Table(title=f"Sweep {folder}", title_justify="left")
    for name in ("job", *differing, "status", "validation loss", "FLOPs", "training seconds"):
        table.add_column(name)
    for cell in cells:
        losses, totals = cell.summary.get("losses", {}), cell.summary.get("totals", {})
        table.add_row(
            cell.folder.name,
            *(str(cell.config[key]) for key in differing),
            cell.summary["status"],
            f"{losses['eval/loss']:.4f}" if "eval/loss" in losses else "-",
            f"{totals['flops']:.3e}" if totals else "-",
            f"{totals['train_seconds']:.0f}" if totals else "-",
        )
    rich_console().print(table)
    failed = [cell for cell in cells if cell.summary["status"] != "completed" and "exit_code" in cell.summary]
    for cell in failed:
        print(f"job {cell.folder.name} failed: {cell.summary['error']}")
    codes = {cell.summary["exit_code"] for cell in failed}
    return 1 if 1 in codes else max(codes, default=0)


def _differing_keys(cells: list[RunFiles]) -> list[str]:
    """Keys that every cell has, with different values; the kind of a group stands for its own keys."""
    shared = [key for key in cells[0].config if all(key in cell.config for cell in cells)] if cells else []
    return [key for key in shared if len({str(cell.config[key]) for cell in cells}) > 1]
