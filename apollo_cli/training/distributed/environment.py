"""Where a process stands among those of its run; torch is not needed to know."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import psutil

from apollo_cli.errors import ConfigError

_FIRST_PORT, _PORTS = 20_000, 20_000  # one for each of Slurm's jobs


@dataclass(frozen=True)
class ProcessEnv:
    """A process of several, as torchrun or Slurm's srun has it in the environment.

    Attributes:
        rank: from 0.
        size: how many there are.
        local: number among those of its machine.
        host: where the first one listens.
        port: on which it does.
        restarts: how often all of them were started again.
    """

    rank: int
    world_size: int
    local_rank: int
    host: str
    port: int
    restarts: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "ProcessEnv | None":
        """The place that these variables say; None for a process on its own.

        Raises:
            ConfigError: one of them is missing.
        """
        if environment.get("WORLD_SIZE", "1") != "1":
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
            host = environment.get("MASTER_ADDR", "localhost")
        elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
            names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT")
            host = first_host(environment.get("SLURM_STEP_NODELIST", "localhost"))
        else:
            return None
        values = {name: environment.get(name, "") for name in names}
        values[names[-1]] = values[names[-1]] or "0"
        if wrong := [f"{name}={value!r}" for name, value in values.items() if not value.isdecimal()]:
            raise ConfigError(
                [
                    f"one of several processes, and of its environment {', '.join(wrong)} is no number; start them "
                    "with torchrun, srun or devices=N"
                ]
            )
        rank, size, local, port, restarts = map(int, values.values())
        if names[3] == "SLURM_JOB_ID":  # jobs beside each other on a machine need ports of their own
            port = _FIRST_PORT + port % _PORTS
        return cls(rank, size, local, host, port, restarts)


def launcher_start_time() -> datetime:
    """When whoever launched this process was started; that is the same after a restart by torchrun."""
    return datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())


def first_host(nodes: str) -> str:
    """Of a list as Slurm writes it: gpu03 of `gpu[03-05,9],login1`."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\]([^\[,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
