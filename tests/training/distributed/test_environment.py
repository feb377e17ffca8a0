"""The rank of a process among others, from the variables that launchers set."""

import os
import re

import pytest

from apollo_cli.errors import ConfigError
from apollo_cli.training.distributed.environment import ProcessEnv, first_host, launcher_start_time, leave_group

from_environ = ProcessEnv.from_environ
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "71234567",
    "SLURM_STEP_NODELIST": "gpu[03-05,9],login1",
}  # fmt: skip


def test_alone() -> None:
    assert from_environ({}) is None
    assert from_environ({"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert from_environ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None  # a batch script
    assert from_environ({"WORLD_SIZE": "", "SLURM_STEP_NUM_TASKS": ""}) is None


def test_torchrun() -> None:
    assert from_environ(TORCHRUN) == ProcessEnv(3, 4, 1, "gpu1", 29500, 0)
    assert from_environ(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2"}) == ProcessEnv(3, 4, 1, "gpu1", 29500, 2)
    assert from_environ(TORCHRUN | SRUN) == ProcessEnv(3, 4, 1, "gpu1", 29500, 0)  # torchrun under srun


def test_srun() -> None:
    assert from_environ(SRUN) == ProcessEnv(5, 8, 1, "gpu03", 20_000 + 71234567 % 20_000, 0)
    assert from_environ(SRUN | {"SLURM_RESTART_COUNT": "1"}) == ProcessEnv(5, 8, 1, "gpu03", 34567, 1)


@pytest.mark.parametrize(
    ("rank", "size", "local"),
    [
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ],
)
def test_mpirun(rank: str, size: str, local: str) -> None:
    started = {rank: "3", size: "4", local: "1"}
    master = {"MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}
    assert from_environ(started | master) == ProcessEnv(3, 4, 1, "gpu1", 29500, 0)
    with pytest.raises(ConfigError, match=rf"MASTER_PORT=''.*unset {size}"):
        from_environ(started)
    assert from_environ(started | {size: "1"}) is None
    environ = started | master | SRUN
    leave_group(environ)
    assert from_environ(environ) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"RANK": "4"}, "RANK=4: should be less than WORLD_SIZE=4"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: should be from 1 to 65535"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0: should be from 1 to 65535"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE='-1': should be a number"),
    ],
)
def test_a_number_out_of_its_range_is_an_error(change: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"environment: {problem}")):
        from_environ(TORCHRUN | change)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_PORT"])
def test_a_missing_variable_is_an_error(missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"{missing}=''.*torchrun, srun or devices=N"):
        from_environ({key: value for key, value in TORCHRUN.items() if key != missing})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"), ("gpu1,gpu2", "gpu1"), ("gpu[1-3]", "gpu1"), ("gpu[01,07-09]", "gpu01"),
        ("rack[2-3]-gpu", "rack2-gpu"), ("a-b.c[10-11],d", "a-b.c10"), ("", ""),
    ],
)  # fmt: skip
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_the_launcher_start_time_does_not_change() -> None:
    assert os.getppid()
    assert launcher_start_time() == launcher_start_time()
