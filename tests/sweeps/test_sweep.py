"""A sweep that is typed again goes on; jobs may run beside each other."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import pytest

from apollo_cli.config.hydra_syntax import compose_values, typed_value
from apollo_cli.run_directory import RunDirectory
from apollo_cli.train import run
from apollo_cli.training.checkpoint import Checkpoints
from tests.conftest import read_rows, without_clocks

JOBS = ("seed=0,1", "sampler=lvps,uniform")


def status(job: Path) -> str:
    return json.loads((job / "summary.json").read_text())["status"]


def rows(sweep: Path) -> list[list[dict[str, Any]]]:
    return [without_clocks(read_rows(sweep / str(job))) for job in range(4)]


@contextmanager
def stopped_at(saves: int) -> Iterator[None]:
    """Ctrl-C after so many checkpoints."""
    original, count = Checkpoints.save, 0

    def save(self: Checkpoints, *args: Any, **how: Any) -> Path:
        nonlocal count
        done, count = original(self, *args, **how), count + 1
        if count == saves:
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        yield


@pytest.fixture(scope="module")
def undisturbed(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = tmp_path_factory.mktemp("undisturbed") / "sweep"
    assert run(["-m", *tiny, *JOBS, f"hydra.sweep.dir={sweep}"]) == 0
    return sweep


def test_a_sweep_typed_again_passes_over_completed_jobs_and_continues_the_rest(
    tiny: tuple[str, ...], undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    words = ["-m", *tiny, *JOBS, f"hydra.sweep.dir={sweep}"]
    with stopped_at(saves=8):  # of five in a job: in the second one
        assert run(words) == 130
    said = capsys.readouterr().err
    assert said.count("stopped by SIGINT") == 1
    assert said.endswith(f"hydra.sweep.dir={sweep}\n")
    assert "resume=" not in said
    assert [status(sweep / "0"), status(sweep / "1")] == ["completed", "interrupted"]
    assert not (sweep / "2").exists()
    first = (sweep / "0" / "metrics.jsonl").read_bytes()

    RunDirectory(sweep / "2").path.mkdir()  # as if killed before its first checkpoint
    RunDirectory(sweep / "2").claim(_saved(undisturbed / "2"), {"steps": 12})
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "job 0 (seed=0 sampler=lvps): completed before\n" in out
    assert f"resuming {sweep}/1 at step" in out
    assert f"resuming {sweep}/2 at step 0" in out
    assert out.count("completed before") == 1
    assert len(re.findall("│ completed", out[out.rindex("Sweep of 4") :])) == 4
    assert (sweep / "0" / "metrics.jsonl").read_bytes() == first
    assert rows(sweep) == rows(undisturbed)


def _saved(job: Path) -> dict[str, Any]:
    return RunDirectory(job).config()


@pytest.mark.slow
def test_the_command_that_is_printed_continues_wherever_the_sweep_is(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with stopped_at(saves=1):
        assert run(["-m", *tiny, "seed=1", "name='a=b'"]) == 130
    command = capsys.readouterr().err.rpartition(" continue with: ")[2]
    assert "hydra.sweep.dir='\"'\"'outputs/a=b/" in command
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/a=b/*/0/summary.json"))) == 1
    assert status(next(tmp_path.glob("outputs/a=b/*/0"))) == "completed"


@pytest.mark.parametrize("path", ["outputs/x", "a b/c=d", "it's,mine", "/tmp/[1]", "{x}", "(y)"])
def test_hydra_takes_a_quoted_path_for_what_it_is(path: str) -> None:
    assert compose_values([f"tracking.project={typed_value(path)}"])["tracking"]["project"] == path


def test_a_job_that_failed_is_tried_again(
    tiny: tuple[str, ...], corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    rest = [word for word in tiny if not word.startswith(("data.files=", "data.cache_dir="))]
    words = ["-m", *rest, "seed=0,1", f"data.files=[{tmp_path}/later.txt]", f"hydra.sweep.dir={sweep}"]
    words.append(f"data.cache_dir={tmp_path}/cache")
    assert run(words) == 2
    assert "later.txt" in json.loads((sweep / "1" / "summary.json").read_text())["error"]
    (tmp_path / "later.txt").write_bytes(corpus_file.read_bytes())
    assert run(words) == 0
    assert [status(sweep / job) for job in "01"] == ["completed", "completed"]
    assert "error" not in json.loads((sweep / "1" / "summary.json").read_text())


def test_a_folder_with_another_run_is_refused_by_the_keys_that_differ_and_kept(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *tiny, f"hydra.sweep.dir={tmp_path}/sweep"]
    with stopped_at(saves=7):
        assert run([*words, "seed=0,1"]) == 130
    before = {path: path.read_bytes() for path in (tmp_path / "sweep" / "1").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run([*words, "seed=0,2,1", "optim.lr=0.003"]) == 2
    said = capsys.readouterr()
    assert "sweep/1 holds another run: seed is 1 there and 2 here; type what began there" in said.err
    assert "another hydra.sweep.dir, or a hydra.sweep.subdir that differs between jobs" in said.err
    assert "sweep/1 refused: " in said.out
    assert {path: path.read_bytes() for path in before} == before
    assert [status(tmp_path / "sweep" / job) for job in "012"] == ["completed", "interrupted", "completed"]


@pytest.mark.slow
def test_what_cannot_change_a_result_may_be_typed_differently(tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = ["-m", *tiny, "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"]
    with stopped_at(saves=7):
        assert run(words) == 130
    assert run([*words, "checkpoint.keep=1", "on_nonfinite=skip"]) == 0
    assert len(list((tmp_path / "sweep" / "1" / "checkpoints").glob("step_*"))) == 1


def test_a_job_in_which_another_process_works_is_refused_and_the_others_run(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    with RunDirectory(tmp_path / "sweep" / "0").owned():
        assert run(["-m", *tiny, "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"]) == 2
    assert f"sweep/0 is in use by process {os.getpid()} on" in capsys.readouterr().err
    assert not list((tmp_path / "sweep" / "0").iterdir())
    assert status(tmp_path / "sweep" / "1") == "completed"


@pytest.mark.parametrize(
    "swept", [["experiment=apollo_bert,scratch_bert", "seed=0,1"], ["name=${model.kind}-${seed}", "model=bert,gpt"]]
)
def test_a_sweep_over_names_is_one_folder(
    swept: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder is the one that it prints, whatever the names of its jobs are."""
    monkeypatch.chdir(tmp_path)
    assert run(["-m", *swept, "plan=true"]) == 0
    out = capsys.readouterr().out
    printed = re.search(r"sweep in (outputs/plans/\S+);", out)
    assert printed
    jobs = {plan.parent for plan in Path("outputs").rglob("plan.json")}
    plans = [json.loads((job / "plan.json").read_text(encoding="utf-8")) for job in jobs]
    assert f"all plans: {sum(plan['flops'] for plan in plans):.4e} FLOPs, about " in out
    assert jobs == {Path(printed[1]) / str(number) for number in range(len(jobs))}
    assert len({(job / "config.yaml").read_text(encoding="utf-8").partition("name:")[2][:20] for job in jobs}) == 2


@pytest.mark.slow
def test_plans_of_a_sweep_end_with_their_flops_and_are_not_trained_over(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *tiny, "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"]
    for said in ("nothing was trained", "planned before"):
        assert run([*words, "plan=true"]) == 0
        assert capsys.readouterr().out.count(said) == 2
    flops = json.loads((tmp_path / "sweep" / "1" / "plan.json").read_text())["flops"]
    assert run([*words, "plan=true"]) == 0
    assert f"{flops:.3e}" in capsys.readouterr().out
    assert run(words) == 2
    assert "plan is True there and False here" in capsys.readouterr().err


@contextmanager
def started(words: Sequence[str], folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, which is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "apollo_cli.train", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


LONG = ("budget.steps=4000", "log.every=1", "checkpoint.every=100000", "eval.every=100000")


def wait_for_rows(folder: Path, jobs: Sequence[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        files = [folder / job / "metrics.jsonl" for job in jobs]
        if all(file.exists() and file.read_text().count("\n") > 5 for file in files):
            return
        time.sleep(0.05)
    raise AssertionError("no job trains")


@pytest.mark.slow
def test_jobs_beside_each_other_end_as_those_one_after_the_other(
    tiny: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    beside = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    with started(["-m", *tiny, *JOBS, *beside], tmp_path) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert rows(tmp_path / "sweep") == rows(undisturbed)
    threads = {json.loads((tmp_path / "sweep" / c / "summary.json").read_text())["device"] for c in "0123"}
    assert threads == {f"cpu ({max(1, joblib.cpu_count() // 2)} threads)"}  # each has its share
    lines = out[: out.index("Sweep of 4")].splitlines()[1:]
    assert all(re.match(r" [0123] \| ", line) for line in lines)
    assert " 2 | job 2 (seed=1 sampler=lvps)" in lines


@pytest.mark.slow
def test_jobs_beside_each_other_are_passed_over_where_they_are_complete(
    tiny: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "sweep")
    beside = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    with started(["-m", *tiny, *JOBS, *beside], tmp_path) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("completed before") == 4


@pytest.mark.slow
def test_of_jobs_beside_each_other_a_failing_one_takes_none_along(tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = ["-m", *tiny, "sampler.k=-1,2", "seed=0,1", "hydra/launcher=joblib", "hydra.sweep.dir=sweep"]
    with started([*words, "hydra.launcher.n_jobs=2"], tmp_path) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert err.count("sampler.k=-1") == 3  # before the first job, and by each of the two that fail
    assert "Traceback" not in err
    assert "sweep/0 and 1 more failed: config: sampler.k=-1" in out
    assert [status(tmp_path / "sweep" / job) for job in "0123"] == ["failed", "failed", "completed", "completed"]


@pytest.mark.parametrize(
    ("signum", "code", "at_once"),
    [
        (signal.SIGINT, 130, 2),
        *(
            pytest.param(signum, 128 + signum, at_once, marks=pytest.mark.faults)
            for signum, at_once in [
                (signal.SIGTERM, 2),
                (signal.SIGINT, 1),
                (signal.SIGTERM, 1),
            ]
        ),
    ],
)
def test_a_signal_stops_all_jobs_in_good_order(
    signum: int, code: int, at_once: int, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    words = ["-m", *tiny, *LONG, "seed=0,1,2", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={at_once}"]
    with started([*words, "hydra.sweep.dir=sweep"], tmp_path, OMP_NUM_THREADS="1") as process:
        wait_for_rows(tmp_path / "sweep", "01"[:at_once])
        os.killpg(process.pid, signum)  # as a terminal does
        _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "continue with: " in err
    for job in "01"[:at_once]:
        folder = tmp_path / "sweep" / job
        assert status(folder) == "interrupted"
        step = read_rows(folder)[-1]["step"]
        assert (folder / "checkpoints" / f"step_{step:08d}").is_dir()
    assert not (tmp_path / "sweep" / str(at_once)).exists()


@pytest.mark.slow
def test_a_job_that_is_killed_is_named_as_such(tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = ["-m", *tiny, *LONG, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with started([*words, "hydra.sweep.dir=sweep"], tmp_path, OMP_NUM_THREADS="1") as process:
        wait_for_rows(tmp_path / "sweep", "01")
        worker = re.search(r"process (\d+) on", (tmp_path / "sweep" / "1" / ".lock").read_text())
        assert worker
        os.kill(int(worker[1]), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "a process that ran a job was killed" in err
    assert "hydra.sweep.dir=sweep\n" in err


@pytest.mark.faults
def test_a_sweep_that_was_killed_goes_on(tiny: tuple[str, ...], undisturbed: Path, tmp_path: Path) -> None:
    words = ["-m", *tiny, *JOBS, "hydra.sweep.dir=sweep"]
    with started(words, tmp_path, OMP_NUM_THREADS="1") as process:
        wait_for_rows(tmp_path / "sweep", "1")
        process.kill()
        process.communicate()
    assert run([*words[:-1], f"hydra.sweep.dir={tmp_path}/sweep"]) == 0
    assert rows(tmp_path / "sweep") == rows(undisturbed)


@pytest.mark.faults
def test_jobs_beside_each_other_stop_when_the_command_is_killed(tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = ["-m", *tiny, *LONG, "seed=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with started([*words, "hydra.sweep.dir=sweep"], tmp_path, OMP_NUM_THREADS="1") as process:
        wait_for_rows(tmp_path / "sweep", "01")
        process.kill()
        process.communicate(timeout=120)  # which ends when nobody can write any more
    assert [status(tmp_path / "sweep" / job) for job in "01"] == ["interrupted", "interrupted"]
    assert not list(tmp_path.glob("sweep/*/.lock"))
    assert not (tmp_path / "sweep" / "2").exists()
