"""Jobs of a sweep as jobs of Slurm, or as if there were one; jobs beside each other on GPUs of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import submitit.slurm.slurm

from apollo_cli import train
from apollo_cli.sweeps import gpus
from apollo_cli.sweeps.journal import Journal
from tests.conftest import read_rows
from tests.helpers import made_slurm
from tests.sweeps.test_sweep import LONG, started, status, wait_for_rows


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cluster on this machine; the folder in which its commands meet."""
    place = tmp_path / "slurm"
    made_slurm.enter(place, monkeypatch)
    yield place
    made_slurm.leave(place)


PRESETS = [
    pytest.param("slurm", 2, 1, 1, 1, marks=pytest.mark.slow),
    pytest.param("slurm_node", 2, 1, 8, 8, marks=pytest.mark.slow),
    ("slurm_nodes", 1, 4, 8, 8),
]


@pytest.mark.parametrize(("preset", "at_once", "nodes", "tasks", "of_node"), PRESETS)
def test_a_sweep_is_one_array_with_a_process_for_each_gpu(
    preset: str, at_once: int, nodes: int, tasks: int, of_node: int,
    tiny: tuple[str, ...], slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (slurm / "bin" / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 7\n")
    (slurm / "7_0.state").write_text("FAILED")
    monkeypatch.setattr(submitit.slurm.slurm.SlurmJob, "_results_timeout_s", 0)
    sweep = tmp_path / "sweep"
    words = ["-m", *tiny, "seed=0,1", f"hydra/launcher={preset}", "hydra.launcher.partition=gpu"]
    assert train.run([*words, f"hydra.sweep.dir={sweep}"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"Job 7_0 .* has not produced any output .*; logs are in .*/sweep/\.submitit/\S+\. ", said)
    (file,) = sweep.rglob("7_submission.sh")
    lines = file.read_text().splitlines()
    logs = re.escape(f"{file.parents[1]}/")
    for line in (
        rf"#SBATCH --array=0-1%{at_once}",
        rf"#SBATCH --nodes={nodes}",
        rf"#SBATCH --ntasks-per-node={tasks}",
        rf"#SBATCH --gpus-per-node={of_node}",
        r"#SBATCH --cpus-per-task=8",
        r"#SBATCH --partition=gpu",
        r"#SBATCH --requeue",
        r"#SBATCH --signal=USR2@300",
        r"#SBATCH --time=1440",
        r"#SBATCH --job-name=apollo-train",
        rf"srun --unbuffered --output {logs}\S+ {re.escape(sys.executable)} -u -m submitit\.core\._submit {logs}%j",
    ):
        assert any(re.fullmatch(line, given) for given in lines), (line, lines)


SHORT = (*LONG, "budget.steps=150", "seed=0,1", "hydra/launcher=slurm", "hydra.sweep.dir=sweep")


@pytest.mark.slow
def test_a_job_that_is_near_its_time_limit_or_preempted_goes_on_in_its_job(
    tiny: tuple[str, ...], slurm: Path, tmp_path: Path
) -> None:
    with started(["-m", *tiny, *SHORT], tmp_path) as command:
        wait_for_rows(tmp_path / "sweep", "0")
        _signal(slurm, "100_0", signal.SIGUSR2)
        wait_for_rows(tmp_path / "sweep", "1")
        _signal(slurm, "100_1", signal.SIGTERM)
        _wait(lambda: _status(tmp_path / "sweep" / "1") == "interrupted")
        (slurm / "100_1.requeue").touch()  # by Slurm itself, which then kills it
        _signal(slurm, "100_1", signal.SIGKILL)
        out, err = command.communicate(timeout=240)
    assert command.returncode == 0, err
    for job in "01":
        assert status(tmp_path / "sweep" / job) == "completed"
        steps = [row["step"] for row in read_rows(tmp_path / "sweep" / job) if "train/loss" in row]
        assert steps == list(range(1, 151))
        (log,) = (tmp_path / "sweep").rglob(f"100_{job}_0_log.out")
        assert re.search(rf"resuming sweep/{job} at step [1-9]\d*\n", log.read_text())
    assert out.count("│ completed") == 2


@pytest.mark.slow
def test_the_processes_of_a_job_stop_and_go_on_together(tiny: tuple[str, ...], slurm: Path, tmp_path: Path) -> None:
    words = [*SHORT, "budget.steps=30", "seed=0", "hydra/launcher=slurm_node", "hydra.launcher.gpus_per_node=2"]
    with started(["-m", *tiny, *words], tmp_path) as command:
        wait_for_rows(tmp_path / "sweep", "0")
        _signal(slurm, "100", signal.SIGUSR2)
        out, err = command.communicate(timeout=300)
    assert command.returncode == 0, err
    steps = [row["step"] for row in read_rows(tmp_path / "sweep" / "0") if "train/loss" in row]
    assert steps == list(range(1, 31))
    logs = [path.read_text() for rank in (0, 1) for path in (tmp_path / "sweep").rglob(f"100_{rank}_log.out")]
    assert re.search(r"resuming sweep/0 at step [1-9]\d*\n", logs[0])
    assert "step " not in logs[1]
    assert out.count("│ completed") == 1


def _signal(slurm: Path, job: str, signum: int) -> None:
    for task in (slurm / f"{job}.tasks").read_text().split():
        os.kill(int(task), signum)


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _status(job: Path) -> str:
    return status(job) if (job / "summary.json").exists() else ""


@pytest.mark.slow
def test_jobs_go_on_without_the_command(tiny: tuple[str, ...], slurm: Path, tmp_path: Path) -> None:
    with started(["-m", *tiny, *SHORT, "budget.steps=60"], tmp_path) as command:
        wait_for_rows(tmp_path / "sweep", "01")
        os.killpg(command.pid, signal.SIGINT)
        _, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    assert "submitted jobs run without this command" in err
    _wait(lambda: (slurm / "100_0.state").exists() and (slurm / "100_1.state").exists())
    assert [status(tmp_path / "sweep" / job) for job in "01"] == ["completed", "completed"]


@pytest.mark.slow
def test_without_a_cluster_jobs_are_jobs_here(tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = ["-m", *tiny, "seed=0,1", "sampler.k=2,-1", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep"]
    with started(words, tmp_path) as command:
        out, err = command.communicate(timeout=240)
    assert command.returncode == 2, err
    states = [status(tmp_path / "sweep" / job) for job in "0123"]
    assert states == ["completed", "failed", "completed", "failed"]
    assert "sweep/1 and 1 more failed: config: sampler.k=-1" in out
    assert "Traceback" not in err


def test_without_a_cluster_a_launcher_of_slurm_is_refused(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.chdir(tmp_path)
    assert train.run(["-m", *tiny, "seed=0,1", "hydra/launcher=slurm"]) == 2
    message = "hydra/launcher=slurm: no sbatch and srun here; type the command on a machine of the cluster"
    assert capsys.readouterr().err == f"apollo-train: config: {message}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["hydra/launcher=joblib", "hydra/sweeper=optuna", "experiment=ablation/k"])
def test_what_needs_a_sweep_is_refused_without_one(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.run([word]) == 2
    assert capsys.readouterr().err.startswith(f"apollo-train: config: {word}: it is ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "found", "names"),
    [(None, 2, ["0", "1"]), ("3,GPU-8932f937,1", 3, ["3", "GPU-8932f937", "1"]), ("", 0, []), (None, 0, [])],
)
def test_the_gpus_of_a_sweep_are_those_of_the_command(
    named: str | None, found: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus.visible() == names


_JOB = """
import sys, time, pathlib
from apollo_cli.sweeps import gpus
gpus.take_one(["3", "1"], pathlib.Path(sys.argv[1]), sys.argv[2])
import os
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


def test_processes_beside_each_other_have_a_gpu_each_unless_one_is_chosen(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}

    def begin(device: str) -> tuple["subprocess.Popen[str]", str]:
        job = subprocess.Popen(
            [sys.executable, "-c", _JOB, str(tmp_path), device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert job.stdout
        return job, job.stdout.readline().strip()

    jobs = [begin(device) for device in ("auto", "cuda", "cuda:0", "cpu")]
    assert [gpu for _, gpu in jobs] == ["3", "1", "None", "None"]
    jobs[0][0].kill()
    jobs[0][0].wait()
    jobs.append(begin("auto"))  # in the place of the one that is gone
    assert jobs[-1][1] == "3"
    for job, _ in jobs:
        job.communicate()


def test_a_job_takes_its_gpu_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apollo_cli.sweeps import job

    taken = []
    monkeypatch.setattr(gpus, "take_one", lambda *args: taken.append(args))
    monkeypatch.setattr(job, "_stop_with", lambda owner: None)
    monkeypatch.setattr("os.setpgid", lambda *args: None)
    with Journal.kept([], ["0", "1"]) as journal:
        with job._surroundings(journal, "3", "auto"):
            assert not taken  # in the command's own process jobs come one after the other
        other = replace(journal, owner=1)
        with job._surroundings(other, "3", "auto"):
            pass
    assert taken == [(["0", "1"], journal.folder / "numbers", "auto")]
