"""What runs the cells of a sweep: this process, several here, or jobs that are submitted to Slurm."""

import sys
from importlib.util import find_spec
from shutil import which

_SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
_SLURM = f"{_SUBMITIT}.submitit_launcher.SlurmLauncher"

LAUNCHERS = {
    "basic": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",  # one cell after the other
    "joblib": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",  # several at once
    "submitit_local": f"{_SUBMITIT}.submitit_launcher.LocalLauncher",  # all at once, as if here were a cluster
    **dict.fromkeys(("submitit_slurm", "slurm", "slurm_node", "slurm_nodes"), _SLURM),
}


def submits(name: str | None) -> bool:
    """Whether cells are jobs that may run elsewhere, and outlive the command."""
    return LAUNCHERS.get(name or "", "").startswith(_SUBMITIT)


def problems(name: object) -> list[str]:
    """What is missing here for the launcher of this name."""
    word = f"hydra/launcher={name}"
    if not isinstance(name, str) or name not in LAUNCHERS:
        return [f"{word}: should be the name of a launcher, {' or '.join(LAUNCHERS)}"]
    if submits(name) and find_spec(_SUBMITIT) is None:
        return [f"{word}: it needs hydra-submitit-launcher; type pip install 'apollo-train[slurm]'"]
    if LAUNCHERS[name] == _SLURM and not (which("sbatch") and which("srun")):
        return [f"{word}: no sbatch and srun here; type the command where jobs are submitted to Slurm"]
    return []


def is_of_a_job(error: Exception) -> bool:
    """Whether a job could not be submitted, or ended without a word."""
    if "submitit" not in sys.modules:
        return False

    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    return isinstance(error, FailedSubmissionError | UncompletedJobError)
