"""Trains the four runs of the README and draws its picture: `make picture`, about ten minutes on two cores.

Runs that are complete in outputs/picture/ are not trained again; interrupted ones are resumed.
"""

import subprocess
import sys
from pathlib import Path

from apollo_cli.report.plots import loss_against_flops
from apollo_cli.report.runs import RunFiles

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


def main() -> None:
    runs = [train(experiment) for experiment in EXPERIMENTS]
    loss_against_flops(runs, list(EXPERIMENTS.values()), PICTURE)
    print(f"drawn: {PICTURE}")


if __name__ == "__main__":
    main()
