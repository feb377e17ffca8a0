"""The rank of a process among those of its run, from the environment; needs no torch."""

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime

import psutil

from apollo_cli.errors import ConfigError

_FIRST_PORT, _PORTS = 20_000, 20_000  # one for each of Slurm's jobs
_LAST_PORT = 65_535
_LAUNCHERS = (  # rank, world size, local rank, port, restarts
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "MASTER_PORT", ""),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MASTER_PORT", ""),  # MPICH and Intel MPI
)


@dataclass(frozen=True)
class ProcessEnv:
    """One of several processes, as torchrun, Slurm's srun or mpirun describes it in the environment."""

    rank: int  # number of this process, from 0
    world_size: int  # number of processes
    local_rank: int  # number among the processes of this machine
    host: str  # address where rank 0 listens
    port: int  # port where rank 0 listens
    restarts: int = 0  # how often all processes were started again
    # the command after which a process is one on its own
    unset: str = field(default="unset WORLD_SIZE", compare=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "ProcessEnv | None":
        """What these variables say; None for a process on its own.

        A ConfigError if a variable is missing, not a number or out of its range.
        """
        names = next((names for names in _LAUNCHERS if environ.get(names[1]) not in (None, "", "1")), None)
        if names is None:
            return None
        values = {name: environ.get(name, "") for name in names}
        values[names[-1]] = values[names[-1]] or "0"
        unset = f"unset {names[1]}"
        if wrong := [f"{name}={value!r}" for name, value in values.items() if not value.isdecimal()]:
            raise _wrong(f"{', '.join(wrong)}: should be a number in each of several processes", unset)
        rank, size, local, port, restarts = map(int, values.values())
        host = environ.get("MASTER_ADDR", "localhost")
        if names[3] == "SLURM_JOB_ID":  # jobs on one machine need different ports
            port = _FIRST_PORT + port % _PORTS
            host = first_host(environ.get("SLURM_STEP_NODELIST", "localhost"))
        if rank >= size:
            raise _wrong(f"{names[0]}={rank}: should be less than {names[1]}={size}", unset)
        if not 0 < port <= _LAST_PORT:
            raise _wrong(f"{names[3]}={port}: should be from 1 to {_LAST_PORT}", unset)
        return cls(rank, size, local, host, port, restarts, unset)


def _wrong(problem: str, unset: str) -> ConfigError:
    return ConfigError(
        f"environment: {problem}; start them with torchrun, srun or devices=N. For one process on its own, "
        f"type: {unset}"
    )


def leave_group(environ: MutableMapping[str, str]) -> None:
    """Makes this a process on its own."""
    for names in _LAUNCHERS:
        environ.pop(names[1], None)


def launcher_start_time() -> datetime:
    """When the parent process, the launcher, was started; a restart by torchrun does not change it."""
    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it: gpu03 of `gpu[03-05,9],login1`."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\]([^\[,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
