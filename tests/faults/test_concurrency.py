"""Runs that are started at the same moment."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import TINY, read_rows, without_clocks


def _start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "apollo_cli.train", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.faults
def test_eight_runs_at_once_build_one_cache_and_all_train(
    corpus_file: Path, tmp_path: Path, record_count: Callable[[str], None]
) -> None:
    words = [*TINY, f"data.files=[{corpus_file}]", f"data.cache_dir={tmp_path}/cache"]
    started = [_start(words, tmp_path) for _ in range(8)]
    ended = [(process.communicate(timeout=300), process.returncode) for process in started]
    for (_, said), code in ended:
        assert code == 0, said
    assert sum(out.count("tokenizing and packing") for (out, _), _ in ended) == 1
    run_dirs = sorted((tmp_path / "outputs" / "apollo").iterdir())
    assert len(run_dirs) == 8
    rows = [without_clocks(read_rows(run_dir)) for run_dir in run_dirs]
    assert all(r == rows[0] for r in rows)
    assert len({json.loads((d / "summary.json").read_text())["data"]["fingerprint"] for d in run_dirs}) == 1
    record_count("concurrency: 8 of 8 runs that began at once trained, on a cache that was built once")


@pytest.mark.faults
def test_of_several_that_resume_one_run_one_does(corpus_file: Path, tmp_path: Path) -> None:
    words = [*TINY, f"data.files=[{corpus_file}]", f"data.cache_dir={tmp_path}/cache", "budget.steps=400"]
    planned = _start([*words, "plan=true", "hydra.run.dir=run"], tmp_path)
    assert planned.communicate(timeout=60)[1] == ""
    assert planned.returncode == 0
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("plan: true", "plan: false"))  # as if killed before its first step
    again = ["resume=run", f"data.cache_dir={tmp_path}/cache"]  # a plan makes no cache, so it is typed
    started = [_start(again, tmp_path) for _ in range(4)]
    ended = [(process.communicate(timeout=300)[1], process.returncode) for process in started]
    winners = [process.pid for process in started if process.returncode == 0]
    assert len(winners) == 1
    for said, code in ended:
        if code:
            assert code == 2
            late = "this run is complete" in said
            assert late or re.search(rf"run is in use by process {winners[0]} on ", said), said
    assert read_rows(tmp_path / "run")[-1]["step"] == 400


@pytest.mark.faults
def test_two_new_runs_in_one_directory_do_not_mix(corpus_file: Path, tmp_path: Path) -> None:
    words = [*TINY, f"data.files=[{corpus_file}]", f"data.cache_dir={tmp_path}/cache", "hydra.run.dir=run"]
    started = [_start([*words, f"seed={seed}"], tmp_path) for seed in (1, 2)]
    ended = [process.communicate(timeout=120)[1] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 2], ended
    refused = ended[codes.index(2)]
    assert "run is in use by process" in refused or "run has a config.yaml already" in refused
    seed = (1, 2)[codes.index(0)]
    assert f"seed: {seed}\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seed"] == seed
    assert read_rows(tmp_path / "run")[-1]["step"] == 12
