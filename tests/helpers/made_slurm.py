"""As much of Slurm as a sweep asks for, on this machine: sbatch, srun, sacct and scontrol, with their variables.

Every command is this file under another name; FAKE_SLURM names the folder in which they meet.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # its commands start in a moment
    import pytest

FIRST_JOB = 100


def enter(folder: Path, monkeypatch: "pytest.MonkeyPatch") -> None:
    """Makes the commands, and has the test find them."""
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        script.chmod(0o755)


def leave(folder: Path) -> None:
    """Ends every job that is left."""
    for file in folder.glob("*.array"):
        with suppress(ProcessLookupError):
            os.killpg(int(file.read_text()), signal.SIGKILL)


def sbatch(place: Path, file: str) -> int:
    """Runs every job of the array at once, in a process that nobody waits for."""
    job = FIRST_JOB + len(list(place.glob("*.sh")))
    (place / f"{job}.sh").write_bytes(Path(file).read_bytes())
    nowhere = subprocess.DEVNULL
    command = [sys.executable, __file__, "array", str(job)]
    array = subprocess.Popen(command, start_new_session=True, stdout=nowhere, stderr=nowhere)
    (place / f"{job}.array").write_text(str(array.pid))
    print(f"Submitted batch job {job}")
    return 0


def array(place: Path, job: str) -> int:
    given = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", (place / f"{job}.sh").read_text()))
    last = re.fullmatch(r"0-(\d+)%\d+", given.get("array", "0-0%1"))
    assert last
    tasks = int(given["nodes"]) * int(given["ntasks-per-node"])
    threads = []
    for index in range(int(last[1]) + 1):
        name, environment = job, {"SLURM_JOB_ID": job, "SLURM_NTASKS": str(tasks)}
        if "array" in given:
            name = f"{job}_{index}"
            environment["SLURM_JOB_ID"] = f"{job}{index}"
            environment |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(index)}
        threads.append(threading.Thread(target=_batch, args=(place, job, name, environment)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return 0


def _batch(place: Path, job: str, name: str, environment: dict[str, str]) -> None:
    for restart in range(10):
        environment |= {"SLURM_RESTART_COUNT": str(restart), "FAKE_JOB": name, "SLURM_JOB_NUM_NODES": "1"}
        code = subprocess.run(["bash", place / f"{job}.sh"], env=os.environ | environment, check=False).returncode
        if not (place / f"{name}.requeue").exists():
            break
        (place / f"{name}.requeue").unlink()
    (place / f"{name}.state").write_text("FAILED" if code else "COMPLETED")


def srun(place: Path, *words: str) -> int:
    """Runs a command as often as the job has tasks; the first one's log takes the place of all."""
    start = words.index(sys.executable)
    log = words[words.index("--output") + 1]
    job = os.environ["FAKE_JOB"]
    log = log.replace("%A_%a", job).replace("%j", job).replace("%t", "{}")
    while not Path(log).parent.exists():  # a real queue is slower than submitit
        time.sleep(0.01)
    tasks = []
    for rank in range(count := int(os.environ["SLURM_NTASKS"])):
        environment = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": str(count)}
        environment["SLURM_STEP_NODELIST"] = "localhost"
        with Path(log.format(rank)).open("a") as file:
            task = subprocess.Popen(words[start:], env=os.environ | environment, stdout=file, stderr=file)
        tasks.append(task)
    (place / f"{job}.tasks").write_text(" ".join(str(task.pid) for task in tasks))
    while any(task.poll() is None for task in tasks):
        try:
            next(task for task in tasks if task.returncode is None).wait(0.1)
        except subprocess.TimeoutExpired:
            if (place / f"{job}.requeue").exists() and tasks[0].poll() is not None:
                for task in tasks:
                    task.kill()
    return max(abs(task.returncode) for task in tasks)


def scontrol(place: Path, word: str, job: str) -> int:
    assert word == "requeue"
    (place / f"{job}.requeue").touch()
    return 0


def sacct(place: Path, *words: str) -> int:
    print("JobID|State|NodeList")
    for state in place.glob("*.state"):
        print(f"{state.stem}|{state.read_text()}|here")
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), *sys.argv[2:]))
