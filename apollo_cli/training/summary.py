"""summary.json: how a run ended, its totals, data, device and versions."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from apollo_cli import __version__
from apollo_cli.config.config import Config
from apollo_cli.data.corpus import Corpus
from apollo_cli.growth.plan import Plan
from apollo_cli.training.device import Device
from apollo_cli.training.state import TrainerState

_PACKAGES = ("hydra-core", "tokenizers", "datasets", "numpy", "wandb")


def summarize(
    config: Config, plan: Plan, device: Device, corpus: Corpus, run_dir: Path, status: str, state: TrainerState
) -> dict[str, Any]:
    """summary.json; `status` is completed, interrupted or failed.

    A completed run has in `ended_by` the key of `budget` that ended it early, or `budget`. `best` is the lowest
    validation loss of the whole model and its step, of step 0, the evaluations of `eval.every` and the end; the one
    just after a growth is not judged.
    """
    micro_steps = state.step * plan.step_cost.accumulation
    return {
        "status": status,
        "ended_by": (state.ended_by or "budget") if status == "completed" else None,
        "extended_from": list(plan.schedule.extended_from),
        "run_dir": str(run_dir.resolve()),
        "name": config.run.name,
        "seed": config.run.seed,
        "run_id": state.run_id,
        "losses": state.losses,
        "best": state.best or None,
        "growths": state.growths,
        "stage_ends": list(plan.schedule.ended(state.step)),
        "totals": {
            "steps": state.step,
            "planned_steps": plan.steps,
            "micro_steps": micro_steps,
            "tokens": state.step * plan.step_cost.tokens_per_step,
            "flops": state.flops,
            "optimizer_flops": state.optimizer_flops,
            "source_flops": plan.source.flops,
            "source_seconds": plan.source.seconds,
            "scratch_flops": micro_steps * plan.step_cost.flops(plan.step_cost.target, 0),
            "layers": plan.schedule.at(max(0, state.step - 1)).layers,
            "skipped_steps": state.skipped_steps,
            "train_seconds": state.train_seconds,
            "total_seconds": state.total_seconds,
        },
        "data": data_facts(config, corpus),
        "device": device.name,
        "devices": device.processes.world_size,
        "precision": device.precision,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def data_facts(config: Config, corpus: Corpus) -> dict[str, Any]:
    return {
        "fingerprint": corpus.fingerprint,
        "training_rows": len(corpus.training),
        "validation_rows": len(corpus.validation),
        "evaluation_rows": min(config.eval.rows, len(corpus.validation)),
    }


def versions() -> dict[str, str]:
    """Versions of this program, Python, and the libraries that results depend on."""
    found = {"apollo-train": __version__, "python": platform.python_version()}
    found["torch"] = str(torch.__version__)  # with its build, for example +cu130
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # pip install --no-deps
            found[package] = "not installed"
    return found


@cache  # it starts a process, and the code of this one does not change
def git_commit() -> str | None:
    """The commit of this program's checkout; None for an installed wheel."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        if not (here.parents[1] / ".git").exists():
            return None
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
