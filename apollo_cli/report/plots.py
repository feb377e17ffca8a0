"""Pictures of runs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: there may be no screen

import matplotlib.pyplot as plt

from apollo_cli.report.runs import RunFiles

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, colour-blind safe


def loss_against_flops(runs: Sequence[RunFiles], labels: Sequence[str], path: Path) -> None:
    """Draws validation loss against model FLOPs, one line a run, a dot at each growth, into `path` (PNG)."""
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    for run, label, colour in zip(runs, labels, COLOURS, strict=False):
        rows = [row for row in run.rows if "eval/loss_full_depth" in row]
        axes.plot(
            [row["flops"] for row in rows],
            [row["eval/loss_full_depth"] for row in rows],
            color=colour,
            label=label,
            linewidth=2,
        )
        grown = [row for row in rows if row.get("growth/to") == row["layers"]]
        axes.plot(
            [row["flops"] for row in grown], [row["eval/loss_full_depth"] for row in grown], "o", color=colour
        )
        for row in grown:
            axes.annotate(
                f"{row['growth/from']}→{row['growth/to']}",
                (row["flops"], row["eval/loss_full_depth"]),
                textcoords="offset points",
                xytext=(4, 6),
                color=colour,
                fontsize=8,
            )
    axes.set_xlabel("model FLOPs")
    axes.set_ylabel("validation loss at full depth (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)
