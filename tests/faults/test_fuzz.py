"""Whatever is typed trains, plans, or is refused by its name; nothing else ever happens."""

import io
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apollo_cli.cli.help import groups
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.train import run
from apollo_cli.training import memory

GROUPS = {group: list(options) for group, options in groups().items()}
NUMBERS = [
    "0", "-0.0", "1", "-1", "2", "3", "4", "7", "12", "0.5", "0.99", "-0.5", "1e-30", "1e30", "-1e30",
    "1e400", "1e15", "1000000", "10000000", "9" * 400, "-" + "9" * 400, "nan", "inf", "-inf", ".nan", "-.inf",
    "0x10", "1_000", "1.5",
]  # fmt: skip
RUBBISH = [
    "null", "true", "false", "on", "abc", "''", '""', "", " ", "[]", "{}", "[1]", "[1,2,4]", "[4,2,1]",
    "[0.5,1]", "[1,1,1]", "[0.25,0.5,1]", "[nan]", "[null]", "[[1]]", "{a:1}", "größe", "🙂", "日本", "a\tb",
    "a\nb", "a\0b", "\x1b[31m", "x" * 5000, "'", '"', "[", "]", "{", "}", "(", "a,b", "1,2,3", "${seed}",
    "${nothing}", "${oc.env:HOME}", "${", "\\", "a=b", "=", "../..", "/dev/null", "~", "*", "glob(*)",
    "range(1,5)", "choice(1,2)", "interval(0,1)", "1 2", "auto", "bf16", "cuda", "cuda:99", "mps", "tpu",
    "rewarm", "linear", "constant", "wsd", "skip", "replace", "keep", "reset",
]  # fmt: skip
WORDS = [
    "--plan", "--resume", "-x", "-m", "--cfg", "--", "-", "seed", "=", "=1", "+", "++", "~", "~model",
    "~seed", "+new=1", "++model.new=1", "smapler=lvps", "hydra.run.dir", "hydra.callbacks.x=1",
    "hydra/launcher=none", "🙂=1", "a.b.c=1", "sampler@x=lvps", "sampler=lvps,uniform",
    "experiment=[apollo_bert,stackbert]", "seed=1,2", "model.=1", ".seed=1",
]  # fmt: skip


def _leaves(prefix: str, value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix


@cache
def keys() -> list[str]:
    """Every key of every option: a key that is new is typed, too. Not at once: that takes a second."""
    options = ([f"{group}={option}" for option in GROUPS[group]] for group in GROUPS if group != "experiment")
    lines = zip_longest(*options, fillvalue="")
    return sorted({key for line in lines for key in _leaves("", compose_values([*filter(None, line)]))})


HYDRAS = [
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.searchpath", "hydra.mode", "hydra.verbose"),
    *("hydra.sweeper.max_batch_size", "hydra.sweeper.params", "hydra.sweeper.params.seed", "hydra.launcher"),
    *("hydra.job.name", "hydra.job.chdir", "hydra.job.config", "hydra.job.env_set.X", "hydra.output_subdir"),
    *("hydra.overrides.task", "hydra.runtime.output_dir", "hydra/launcher", "hydra/job_logging", "hydra"),
]
key = st.deferred(lambda: st.sampled_from(keys()))
value = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(RUBBISH), st.text(max_size=8), st.integers().map(str))
override = st.one_of(
    st.builds("{}={}".format, key, st.sampled_from(NUMBERS)),
    st.builds("{}={}".format, key, value),
    st.sampled_from([f"{group}={option}" for group, options in GROUPS.items() for option in options]),
    st.builds("{}={}".format, st.sampled_from(list(GROUPS)), value),
    st.builds("{}{}={}".format, st.sampled_from(["+", "++", "~"]), key, value),
    st.builds("{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), st.sampled_from(HYDRAS), value),
    st.sampled_from(WORDS),
)
line = st.lists(override, min_size=1, max_size=4).filter(
    lambda words: not any(word.lstrip("+").startswith("compile=") for word in words)  # half a minute on a CPU
)


class Hanging(BaseException):
    """The command did not even answer SIGTERM."""


@contextmanager
def _watched(seconds: float) -> Iterator[None]:
    """Asks what still trains then to stop; what does not stop hangs."""
    asked = []

    def alarm(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        if len(asked) > 8:
            raise Hanging
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _name(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def how_it_ends(tiny: tuple[str, ...], words: list[str]) -> str:
    """trained, planned, shown or refused; anything else fails."""
    typed = {_name(word) for word in words}
    rest = [word for word in tiny if _name(word) not in typed]
    out, err = io.StringIO(), io.StringIO()
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_dir = Path(folder) / "run"
        try:
            small = patch.object(memory, "total_bytes", lambda device: 380_000_000)  # what fits may be slow to fill
            with small, redirect_stdout(out), redirect_stderr(err), _watched(8):
                code = run([*rest, *words, f"hydra.run.dir={run_dir}", f"hydra.sweep.dir={run_dir}"])
        finally:
            os.chdir(here)
        said = err.getvalue()
        assert "Traceback" not in said, (words, said)
        assert code in (0, 2, 143), (words, code, said)
        if code == 2:
            assert said.strip(), words
            known = {*typed, *(() if typed.isdisjoint(GROUPS) else keys())}  # an option types keys for its user
            named = [name for name in known if name and name in said] or [word for word in words if word in said]
            assert named or "=" in typed or "" in typed, (words, said)
            jobs = "-m" in words or "--multirun" in words  # a job that fails stays on record
            assert jobs or not run_dir.exists() or not list(run_dir.iterdir()), (words, list(run_dir.iterdir()))
            return "refused"
        if (run_dir / "metrics.jsonl").exists() or list(run_dir.glob("*/metrics.jsonl")):
            return "trained"
        return "planned" if list(run_dir.rglob("plan.json")) else "shown or stopped"


def _fuzz(tiny: tuple[str, ...], cases: int, more: tuple[str, ...]) -> Counter[str]:
    ends: Counter[str] = Counter()

    @settings(
        max_examples=cases, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(line)
    def case(words: list[str]) -> None:
        ends[how_it_ends((*tiny, *more), words)] += 1

    case()
    return ends


def test_a_few_lines_of_all_sorts(tiny: tuple[str, ...]) -> None:
    ends = _fuzz(tiny, 7, ("plan=true",))
    assert sum(ends.values()) >= 7
    assert ends["refused"] > 2


@pytest.mark.slow
def test_more_lines_of_all_sorts(tiny: tuple[str, ...]) -> None:
    ends = _fuzz(tiny, 25, ("plan=true",))
    assert sum(ends.values()) >= 25
    assert ends["refused"] > 5


@pytest.mark.faults
def test_five_hundred_lines_of_all_sorts(tiny: tuple[str, ...], record_count: Callable[[str], None]) -> None:
    ends = _fuzz(tiny, 500, ())
    total = sum(ends.values())
    assert total >= 500
    assert ends["trained"] > 20
    counted = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    record_count(f"overrides: {total} of {total} lines ended well: {counted}")


@pytest.mark.parametrize(
    "word",
    ["model.hidden=1000000", "batch.size=1e9", "data.seq_len=1e7"],
)
def test_what_no_machine_has_room_for_is_refused_at_once(word: str, tiny: tuple[str, ...], tmp_path: Path) -> None:
    err = io.StringIO()
    rest = [w for w in tiny if _name(w) not in (_name(word), "batch.micro")]
    with redirect_stderr(err):
        assert run([*rest, "model.heads=2", word, f"hydra.run.dir={tmp_path}/run"]) == 2
    assert _name(word) in err.getvalue()
    assert not (tmp_path / "run").exists()
