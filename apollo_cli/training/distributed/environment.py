"""The rank of a process among those of its run, from the environment; needs no torch."""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime

import psutil

from apollo_cli.errors import ConfigError

_FIRST_PORT, _PORTS = 20_000, 20_000  # one for each of Slurm's jobs


@dataclass(frozen=True)
class ProcessEnv:
    """One of several processes, as torchrun or Slurm's srun describes it in the environment.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number among the processes of this machine.
        host: address where rank 0 listens.
        port: port where rank 0 listens.
        restarts: how often all processes were started again.
        unset: the command after which a process is one on its own.
    """

    rank: int
    world_size: int
    local_rank: int
    host: str
    port: int
    restarts: int = 0
    unset: str = field(default="unset WORLD_SIZE", compare=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "ProcessEnv | None":
        """What these variables say; None for a process on its own.

        Raises:
            ConfigError: a variable is missing or not a number.
        """
        if environ.get("WORLD_SIZE", "1") != "1":
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
            host = environ.get("MASTER_ADDR", "localhost")
        elif environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
            names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
            host = first_host(environ.get("SLURM_STEP_NODELIST", "localhost"))
        else:
            return None
        values = {name: environ.get(name, "") for name in names}
        values[names[-1]] = values[names[-1]] or "0"
        if wrong := [f"{name}={value!r}" for name, value in values.items() if not value.isdecimal()]:
            raise ConfigError(
                [
                    f"environment: {', '.join(wrong)}: should be a number in each of several processes; start them "
                    f"with torchrun, srun or devices=N. For one process on its own, type: unset {names[1]}"
                ]
            )
        rank, size, local, port, restarts = map(int, values.values())
        if names[3] == "SLURM_JOB_ID":  # jobs on one machine need different ports
            port = _FIRST_PORT + port % _PORTS
        return cls(rank, size, local, host, port, restarts, f"unset {names[1]}")


def leave_group(environ: MutableMapping[str, str]) -> None:
    """Makes this a process on its own."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        environ.pop(name, None)


def launcher_start_time() -> datetime:
    """When the parent process, the launcher, was started; a restart by torchrun does not change it."""
    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it: gpu03 of `gpu[03-05,9],login1`."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\]([^\[,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
