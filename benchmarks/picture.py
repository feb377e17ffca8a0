"""Trains the four runs of the README and draws its picture: `make picture`, about ten minutes on two cores.

Runs that are complete in outputs/picture/ are not trained again; interrupted ones are resumed.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from apollo_cli.report.runs import RunFiles
from apollo_cli.report.style import COLOURS, plt

EXPERIMENTS = {
    "apollo_bert": "BERT, Apollo",
    "scratch_bert": "BERT, scratch",
    "apollo_gpt": "GPT, Apollo",
    "scratch_gpt": "GPT, scratch",
}
RUNS = Path("outputs/picture")
PICTURE = Path(__file__).with_name("loss_against_flops.png")


def train(experiment: str) -> RunFiles:
    """The finished run of a shipped experiment."""
    folder = RUNS / experiment
    if RunFiles(folder).summary["status"] != "completed":
        started = (folder / "plan.json").exists()
        words = [f"resume={folder}"] if started else [f"experiment={experiment}", f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, "-m", "apollo_cli.train", *words], check=True)
    return RunFiles(folder)


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


def main() -> None:
    runs = [train(experiment) for experiment in EXPERIMENTS]
    loss_against_flops(runs, list(EXPERIMENTS.values()), PICTURE)
    print(f"drawn: {PICTURE}")


if __name__ == "__main__":
    main()
