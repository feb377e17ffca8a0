"""SIGKILL at random moments: the run resumes, and ends like an undisturbed one."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from apollo_cli.train import run
from apollo_cli.training.checkpoint import Checkpoints
from tests.conftest import TINY, read_rows, without_clocks
from tests.helpers.watched import MOMENTS

# a kill before the first checkpoint, between two, in a step with growth; dropout needs torch's generator too
WORDS = (*TINY, "model.dropout=0.1", "budget.steps=16", "checkpoint.every=3", "eval.every=4")


@dataclass
class Outcome:
    """How one start of the command ended.

    `calls` has, of each moment, how long each call took; the last one may have been cut short.
    """

    code: int
    error: str
    calls: dict[str, list[float]] = field(default_factory=dict)
    killed_in: str = ""


def start(
    words: Sequence[str],
    moment: str = "",
    call: int = 0,
    delay: float = 0.0,
    signals: Sequence[int] = (signal.SIGKILL,),
) -> Outcome:
    """Runs the command; kills it `delay` seconds after `moment` began for the `call`-th time (from 0).

    Several signals come a quarter of a second apart.
    """
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.watched", str(writing), *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pass_fds=[writing],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(writing)
    calls: dict[str, list[float]] = {}
    began: dict[str, float] = {}
    inside: list[str] = []
    killed_in = ""
    with os.fdopen(reading) as events:
        for event in events:
            sign, name = event[0], event[1:].strip()
            if sign == "-":
                calls.setdefault(name, []).append(time.perf_counter() - began[name])
                inside.remove(name)
                continue
            began[name] = time.perf_counter()
            inside.append(name)
            if name == moment and len(calls.get(name, [])) == call and not killed_in:
                time.sleep(delay)
                for i, signum in enumerate(signals):
                    time.sleep(0.25 if i else 0)
                    process.send_signal(signum)
                killed_in = moment
    error = process.communicate()[1]
    return Outcome(process.returncode, error, calls, killed_in)


@dataclass(frozen=True)
class Ending:
    """The results that a kill must not change."""

    exported: dict[str, str]
    weights: dict[str, str]
    rows: str


def ending(run_dir: Path) -> Ending:
    newest = Checkpoints(run_dir / "checkpoints", 1).load_newest(print)
    assert newest is not None
    return Ending(
        exported={
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted((run_dir / "model").iterdir())
            if p.name != "README.md"  # which says how long it took
        },
        weights={name: _hash(t) for name, t in (dict(newest.tensors) | newest.rng).items()},
        rows=json.dumps(without_clocks(read_rows(run_dir))),
    )


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


class Trial:
    """A run that is killed and resumed until it is complete."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.words = [*words, f"data.cache_dir={folder}/cache", f"hydra.run.dir={self.run_dir}"]
        self.kills: Counter[str] = Counter()

    def begin_or_resume(self) -> list[str]:
        """The command that a user would type now."""
        return [f"resume={self.run_dir}"] if (self.run_dir / "config.yaml").exists() else self.words

    def run(self, kills: Sequence[tuple[str, int, float]]) -> None:
        for moment, call, delay in kills:
            if self._is_complete():
                return
            outcome = start(self.begin_or_resume(), moment, call, delay)
            self.kills[outcome.killed_in or "not reached"] += 1
            if not outcome.killed_in:
                assert outcome.code == 0, outcome.error
                return
            assert outcome.code in (-9, 0), outcome.error  # 0: the end was faster than the kill
        if not self._is_complete():
            outcome = start(self.begin_or_resume())
            assert outcome.code == 0, outcome.error

    def _is_complete(self) -> bool:
        path = self.run_dir / "summary.json"
        return path.exists() and json.loads(path.read_text())["status"] == "completed"

    def check(self, undisturbed: Ending) -> None:
        assert ending(self.run_dir) == undisturbed
        assert self._is_complete()
        left_over = [p for p in self.folder.rglob("*") if p.name.endswith((".tmp", ".building"))]
        assert left_over == []
        shutil.rmtree(self.folder)


Undisturbed = tuple[tuple[str, ...], Outcome, Ending]


@pytest.fixture(scope="module")
def undisturbed(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The words, the calls and the ending of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = (*WORDS, f"data.files=[{corpus_file}]")
    outcome = start([*words, f"data.cache_dir={folder}/cache", f"hydra.run.dir={folder}/run"])
    assert outcome.code == 0, outcome.error
    return words, outcome, ending(folder / "run")


def moments_of(calls: dict[str, list[float]], moment: str, rng: random.Random) -> tuple[str, int, float]:
    """A random call of this moment, and a random delay into it."""
    durations = calls[moment]
    call = rng.randrange(len(durations))
    return moment, call, rng.random() * durations[call]


def test_a_run_killed_while_it_saves_ends_like_an_undisturbed_one(corpus_file: Path, tmp_path: Path) -> None:
    words = (*WORDS, f"data.files=[{corpus_file}]")
    assert run([*words, f"data.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run"]) == 0
    trial = Trial(words, tmp_path / "trial")
    assert start(trial.begin_or_resume(), "saving", call=2, delay=0.005).code == -signal.SIGKILL
    assert run(trial.begin_or_resume()) == 0
    trial.check(ending(tmp_path / "run"))


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["saving", "caching", "exporting"])
def test_a_killed_run_ends_like_an_undisturbed_one(moment: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    words, outcome, expected = undisturbed
    trial = Trial(words, tmp_path / "trial")
    trial.run([moments_of(outcome.calls, moment, random.Random(moment))])
    assert trial.kills[moment] == 1
    trial.check(expected)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_twenty_five_killed_runs_of_each_model_end_like_an_undisturbed_one(
    kind: str, corpus_file: Path, tmp_path: Path, record_count: Callable[[str], None]
) -> None:
    """Each is killed one to three times, at random points of random moments."""
    words = (*WORDS, f"model={kind}", f"data.files=[{corpus_file}]")
    folder = tmp_path / "undisturbed"
    outcome = start([*words, f"data.cache_dir={folder}/cache", f"hydra.run.dir={folder}/run"])
    assert outcome.code == 0, outcome.error
    expected, calls = ending(folder / "run"), outcome.calls | {"loading": [0.02]}
    rng = random.Random(kind)
    trials = [Trial(words, tmp_path / str(i)) for i in range(25)]
    plans = []
    for i in range(len(trials)):
        first = MOMENTS[i % (len(MOMENTS) - 1)]  # all but loading, which only a resumed run does
        more = [rng.choice(MOMENTS) for _ in range(rng.choice((0, 0, 1, 2)))]
        plans.append([moments_of(calls, moment, rng) for moment in (first, *more)])
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda pair: pair[0].run(pair[1]), zip(trials, plans, strict=True)):
            pass
    kills = sum((trial.kills for trial in trials), Counter())
    for trial in trials:
        trial.check(expected)
    where = ", ".join(f"{moment} {count}" for moment, count in kills.most_common())
    record_count(
        f"{kind}: {len(trials)} of {len(trials)} killed runs ended like the undisturbed one; kills: {where}"
    )
