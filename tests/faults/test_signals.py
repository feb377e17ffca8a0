"""SIGINT, SIGTERM and SIGHUP: a checkpoint, the command that resumes, and the right exit code."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.test_kill import WORDS, Ending, Outcome, ending, moments_of, start

MOMENTS = ("caching", "stepping", "evaluating", "growing", "saving", "exporting")


@pytest.fixture(scope="module")
def undisturbed(
    corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], Outcome, Ending]:
    folder = tmp_path_factory.mktemp("undisturbed")
    words = (*WORDS, f"data.files=[{corpus_file}]")
    outcome = start([*words, f"data.cache_dir={folder}/cache", f"hydra.run.dir={folder}/run"])
    assert outcome.code == 0, outcome.error
    return words, outcome, ending(folder / "run")


@pytest.mark.faults
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_saves_and_the_run_resumes(
    signum: int,
    undisturbed: tuple[tuple[str, ...], Outcome, Ending],
    tmp_path: Path,
    record_count: Callable[[str], None],
) -> None:
    words, undisturbed_outcome, expected = undisturbed
    rng = random.Random(signum)
    for moment in MOMENTS:
        run_dir = tmp_path / moment / "run"
        outcome = start(
            [*words, f"data.cache_dir={tmp_path}/{moment}/cache", f"hydra.run.dir={run_dir}"],
            *moments_of(undisturbed_outcome.calls, moment, rng),
            signals=[signum],
        )
        assert outcome.code in (128 + signum, 0), (moment, outcome.error)  # 0: it was at its end
        assert "Traceback" not in outcome.error
        completed = (run_dir / "summary.json").exists() and "completed" in (run_dir / "summary.json").read_text()
        if outcome.code and not completed:
            assert f"apollo-train resume={run_dir}\n" in outcome.error
            if moment in ("stepping", "evaluating", "growing", "saving"):
                last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
                newest = (run_dir / "checkpoints" / "latest").read_text().strip()
                assert int(newest.removeprefix("step_")) >= last  # nothing is lost
            assert start([f"resume={run_dir}"]).code == 0
        assert ending(run_dir) == expected
    record_count(
        f"{signal.Signals(signum).name}: {len(MOMENTS)} of {len(MOMENTS)} runs stopped and went on to the same end"
    )


@pytest.mark.faults
def test_a_second_signal_stops_at_once(corpus_file: Path, tmp_path: Path) -> None:
    """In an evaluation that takes many seconds: the first signal waits for its end, the second does not."""
    words = [
        *WORDS, f"data.files=[{corpus_file}]", f"data.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run",
        "model.hidden=512", "model.ffn=2048", "data.validation=0.5", "eval.rows=100000", "batch.micro=1",
    ]  # fmt: skip
    began = time.perf_counter()
    whole = start(words, "evaluating", 1, 0, signals=[signal.SIGINT])  # in the first one, it takes its time
    slow = time.perf_counter() - began
    assert whole.code == 130
    assert whole.calls["evaluating"][0] > 1.5
    again = [word for word in words if "run.dir" not in word] + [f"hydra.run.dir={tmp_path}/again"]
    began = time.perf_counter()
    outcome = start(again, "evaluating", 0, 0.1, signals=[signal.SIGINT, signal.SIGINT])
    assert outcome.code == 130
    assert time.perf_counter() - began < slow - 1
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["status"] == "interrupted"
    assert "resume with" in outcome.error
