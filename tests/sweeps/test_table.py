import json
import re
from pathlib import Path

import pytest

from apollo_cli.sweeps.journal import JobResult
from apollo_cli.sweeps.table import close_sweep


def _job(folder: Path, seed: int, status: str = "completed", code: int = 0, reason: str = "") -> JobResult:
    folder.mkdir(parents=True)
    totals = {"flops": 10**12 * (seed + 1), "train_seconds": 5.0}
    summary = {"status": status, "losses": {"eval/loss": 3.25 + seed}, "totals": totals}
    (folder / "summary.json").write_text(json.dumps(summary))
    return JobResult(str(folder), code, status, reason, [f"seed={seed}"])


def test_the_table_names_what_is_swept_and_each_jobs_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert close_sweep([_job(tmp_path / str(job), job) for job in range(11)]) == 0
    out = capsys.readouterr().out
    assert "seed" in out
    assert "3.2500" in out
    assert "1.000e+12" in out
    rows = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert rows == [str(job) for job in range(11)]


@pytest.mark.parametrize(("codes", "code"), [([2], 2), ([2, 1], 1), ([2, 2], 2)])
def test_the_exit_code_is_that_of_the_gravest_job(
    codes: list[int], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [_job(tmp_path / "0", 0)]
    for job, cell_code in enumerate(codes, 1):
        jobs.append(_job(tmp_path / str(job), job, "failed", cell_code, f"broke {job}"))
    assert close_sweep(jobs) == code
    assert f"{tmp_path / '1'} failed: broke 1" in capsys.readouterr().out


def test_of_a_refused_job_nothing_is_shown_that_is_of_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [_job(tmp_path / "0", 0), _job(tmp_path / "1", 7, "refused", 2, "holds another run")]
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "plan.json").write_text('{"flops": 5000}')
    planned = JobResult(str(tmp_path / "2"), 0, "planned", "", ["seed=2", "sampler.k=5"])
    inspected = JobResult(str(tmp_path / "3"), 0, "inspected", "", ["seed=3", "sampler.k=5"])  # it has no folder
    assert close_sweep([*jobs, planned, inspected]) == 2
    out = capsys.readouterr().out
    assert "refused" in out
    assert "10.25" not in out
    assert re.search(r"sampler\. +┃", out)
    assert re.search(r"│ 0 +│ 0 +│ - +│ completed", out)
    assert "5.000e+03" in out
