import json
from pathlib import Path

import pytest

from apollo_cli.report.sweep import close_sweep, record_failure


def _cell(folder: Path, seed: int, status: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: {seed}\nname: apollo\nsampler:\n  kind: lvps\n  k: 2\n")
    totals = {"flops": 10**12 * (seed + 1), "train_seconds": 5.0}
    summary = {"status": status, "losses": {"eval/loss": 3.25 + seed}, "totals": totals}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_the_table_names_what_differs_and_each_cells_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for job in range(11):
        _cell(tmp_path / str(job), job, "completed")
    assert close_sweep([(tmp_path / str(job), 0) for job in range(11)]) == 0
    out = capsys.readouterr().out
    assert "seed" in out
    assert "sampler" not in out
    assert "3.2500" in out
    assert "1.000e+12" in out
    rows = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert rows == [str(job) for job in range(11)]


@pytest.mark.parametrize(("codes", "code"), [([2], 2), ([2, 1], 1), ([2, 2], 2)])
def test_the_exit_code_is_that_of_the_gravest_cell(
    codes: list[int], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _cell(tmp_path / "0", 0, "completed")
    jobs = [(tmp_path / "0", 0)]
    for job, cell_code in enumerate(codes, 1):
        (tmp_path / str(job)).mkdir()
        record_failure(tmp_path / str(job), {"seed": job, "name": "apollo"}, f"broke {job}")
        jobs.append((tmp_path / str(job), cell_code))
    assert close_sweep(jobs) == code
    assert f"{tmp_path / '1'} failed: broke 1" in capsys.readouterr().out


def test_a_failure_keeps_what_the_run_had_written(tmp_path: Path) -> None:
    _cell(tmp_path / "0", 3, "interrupted")
    record_failure(tmp_path / "0", {"seed": 4}, "broke")
    summary = json.loads((tmp_path / "0" / "summary.json").read_text())
    assert summary["losses"] == {"eval/loss": 6.25}
    assert summary["error"] == "broke"
    assert "seed: 3" in (tmp_path / "0" / "config.yaml").read_text()


def test_a_complete_run_in_the_way_stays_complete(tmp_path: Path) -> None:
    _cell(tmp_path / "0", 3, "completed")
    record_failure(tmp_path / "0", {"seed": 4}, "has a config.yaml already")
    assert json.loads((tmp_path / "0" / "summary.json").read_text())["status"] == "completed"
