"""Several processes train like one: the same rows, depths, masks and FLOPs; losses differ by rounding."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from apollo_cli.models.hf import load_model
from tests.conftest import read_rows

# fp32 sums in another order, through 12 to 60 steps of AdamW, which divides by small numbers
ROUNDING = 1e-5
EXACT = ("step", "micro_step", "tokens", "flops", "stage", "layers", "train/depth", "growth/from", "growth/to")
HEAVY = (
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "sympy",
)
# a step takes its time, so that a run is far from its end when a row of it is seen
LONG = ("budget.steps=60", "checkpoint.every=5", "log.every=1", "eval.every=1", "eval.rows=16")


def command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "apollo_cli.train", *words]


def torchrun(size: int, words: Sequence[str], *flags: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *flags]
    return [*launcher, "-m", "apollo_cli.train", *words]


def finished(argv: Sequence[str], code: int = 0) -> str:
    """Runs a command to its end; its output and its errors."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def trained(words: Sequence[str], folder: Path, *more: str) -> Path:
    finished(command([*words, *more, f"hydra.run.dir={folder}"]))
    return folder


def assert_same(one: Path, other: Path, rounding: float = ROUNDING) -> None:
    """The same rows except for clocks and rounding, and the same model."""
    ours, theirs = read_rows(one), read_rows(other)
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.keys() == its.keys()
        assert {key: mine[key] for key in EXACT if key in mine} == {key: its[key] for key in EXACT if key in its}
        for key in mine:
            if "loss" in key:
                assert mine[key] == pytest.approx(its[key], abs=rounding), (key, mine["step"])
    models = [load_model(folder / "model").state_dict() for folder in (one, other)]
    assert models[0].keys() == models[1].keys()
    for name in models[0]:
        tensors = [model[name] for model in models]
        if name.endswith("qkv.bias"):  # softmax does not see the keys' bias: AdamW divides rounding by rounding
            tensors = [torch.cat(tensor.chunk(3)[::2]) for tensor in tensors]
        torch.testing.assert_close(*tensors, rtol=0, atol=100 * rounding)


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def last_step(folder: Path) -> int:
    rows = folder / "metrics.jsonl"
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else -1


def wait_until_under_way(run: Path, process: subprocess.Popen) -> None:
    """Waits for a row of a LONG run that is far from its end."""
    wait_for(lambda: last_step(run) > 10 or process.poll() is not None)
    assert process.poll() is None, "the run ended before it was seen"
    assert last_step(run) < 30, "the run was seen too late"


def stopped(words: Sequence[str], run: Path, signum: int = signal.SIGTERM) -> str:
    """Stops a LONG run in this directory by a signal; what it said."""
    argv = command([*words, f"hydra.run.dir={run}"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_until_under_way(run, process)
        process.send_signal(signum)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, said
    return said


def workers(parent: int) -> list[int]:
    """The child processes of this process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(folder.name))
    return sorted(found)


@pytest.fixture(scope="module")
def alone(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, with two micro-steps a step and three stages, and a list of its imports."""
    folder = tmp_path_factory.mktemp("alone")
    python, *rest = command([*tiny, f"hydra.run.dir={folder}/run"])
    (folder / "imports.txt").write_text(finished([python, "-X", "importtime", *rest]), encoding="utf-8")
    return folder / "run"


def test_one_process_imports_neither_the_compiler_nor_distributed_checkpoints(alone: Path) -> None:
    """They take a second of each start; on a CPU nothing is compiled."""
    imports = (alone.parent / "imports.txt").read_text(encoding="utf-8")
    assert " torch.nn\n" in imports
    for heavy in HEAVY:
        assert f" {heavy}\n" not in imports


def test_two_processes_train_like_one(tiny: tuple[str, ...], alone: Path, tmp_path: Path) -> None:
    run = trained(tiny, tmp_path / "run", "devices=2")
    assert_same(alone, run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["devices"]) == ("completed", 2)


@pytest.mark.slow
@pytest.mark.parametrize("words", [("devices=4", "batch.micro=4"), ("devices=2", "distributed=fsdp")])
def test_four_processes_and_shards_train_like_one(
    words: tuple[str, ...], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    same = [word for word in words if word.startswith("batch")]
    assert_same(trained(tiny, tmp_path / "one", *same), trained(tiny, tmp_path / "run", *words))


METHODS: dict[str, tuple[str, ...]] = {
    "bert": ("model=bert", "sampler=lvps"),
    "raptr": ("sampler=subset", "sampler.sizes=[2,2,4]", "schedule.layers=[4,4,4]", "model=gpt"),
    "mslt": ("schedule.trained=[all,new,all]", "expander=append", "sampler=shallow", "model=bert"),
    "msg": ("expander=msg", "expander.gate_duration=0.2", "sampler=shallow", "model=gpt"),
    "reset": ("expander=stack", "expander.moments=reset", "model=gpt"),
    "width": ("expander=bert2bert", "schedule.widths=[0.5,0.5,1]", "model=gpt"),
    "ema": ("model=bert", "expander=net2net", "expander.moments=new", "expander.lr_scale=2", "optim.ema=0.8"),
    "zero": ("model=bert", "expander=fresh", "sampler=shallow", "schedule.layers=[0,0,4]"),
    "fresh": ("model=gpt", "expander=fresh", "expander.output_scale=0.5", "optim.ema=0.8"),
    "completep": (
        *("model=llama", "model.parametrization=completep", "model.base_hidden=8", "model.base_layers=2"),
        "expander=net2net",
    ),
    "pre_norm": ("model=bert", "model.norm=pre", "expander=net2net"),
    "plateau": (
        *("schedule.when=plateau", "schedule.window=1", "schedule.threshold=0.1", "eval.every=1", "log.every=1"),
        *("budget.steps=null", "budget.flops=1.5e8", "optim.schedule=constant"),
    ),
    "pieces": ("model=gpt", "sampler=full", "batch.size=16", "batch.micro=16", "data.seq_len=256"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", METHODS)
def test_methods_train_the_same_on_two_processes(
    method: str, kind: str, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    words = (*tiny, *METHODS[method])
    assert_same(
        trained(words, tmp_path / "one"), trained(words, tmp_path / "two", "devices=2", f"distributed={kind}")
    )


@pytest.mark.slow
def test_muon_and_drawn_layers_are_the_same_on_two_processes(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Newton-Schulz multiplies differences of rounding."""
    words = (*tiny, "model=gpt", "optim=muon", "expander=fresh", "expander.output_scale=0.5", "sampler=shallow")
    assert_same(trained(words, tmp_path / "one"), trained(words, tmp_path / "two", "devices=2"), 1e-3)


@pytest.mark.slow
def test_two_processes_learn_the_same_map(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A map of depth, then a map of depth and width."""
    words = (*tiny, "expander=ligo", "expander.steps=4", "schedule.widths=[0.5,0.5,1]", "model=gpt")
    assert_same(trained(words, tmp_path / "one"), trained(words, tmp_path / "two", "devices=2"))


@pytest.mark.slow
def test_a_signal_while_a_map_is_learned_stops_all_processes_and_they_resume(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """They learn the map again from the checkpoint before the growth, with the same dropout."""
    depth = ("expander=ligo", "expander.steps=300", "schedule.layers=[2,4]", "schedule.ends=[0.5,1]")
    words = (*tiny, *depth, "model.dropout=0.1", "devices=2")
    whole, run = trained(words, tmp_path / "whole"), tmp_path / "run"
    argv = command([*words, f"hydra.run.dir={run}"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(lambda: last_step(run) == 6)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "a map was learned" not in said
    assert "growth/to" in read_rows(run)[-1]
    finished(command([f"resume={run}"]))
    assert_same(whole, run, rounding=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_torchrun_restarts_after_a_killed_process(kind: str, tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = (*tiny, *LONG, f"distributed={kind}")
    whole, run = trained(words, tmp_path / "whole"), tmp_path / "run"
    argv = torchrun(2, [*words, f"hydra.run.dir={run}"], "--max-restarts=2")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_until_under_way(run, process)
        os.kill(workers(process.pid)[-1], signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"resuming {run} at step" in said
    assert_same(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ddp", "devices=1"),
        ("ddp", "distributed.kind=fsdp"),
        ("fsdp", "devices=1"),
        ("fsdp", "devices=4"),
        ("fsdp", "distributed.kind=ddp"),
    ],
)
def test_a_killed_run_resumes_on_other_devices_or_strategies(
    kind: str, more: str, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """A sharded run resumes in other shards, or whole."""
    words = (*tiny, *LONG, "batch.micro=4", f"distributed={kind}")
    whole, run = trained(words, tmp_path / "whole"), tmp_path / "run"
    argv = command([*words, "devices=2", f"hydra.run.dir={run}"])
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until_under_way(run, process)
        for number in [*workers(process.pid), process.pid]:
            os.kill(number, signal.SIGKILL)
    said = finished(command([f"resume={run}", more]))
    assert "at step 0" not in said
    assert_same(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_and_they_resume(signum: int, tiny: tuple[str, ...], tmp_path: Path) -> None:
    whole, run = trained((*tiny, *LONG), tmp_path / "whole"), tmp_path / "run"
    assert stopped([*tiny, *LONG, "devices=2"], run, signum).count("resume=") == 1
    finished(command([f"resume={run}"]))
    assert_same(whole, run)


@pytest.mark.slow
def test_a_process_that_hangs_ends_in_a_timeout(tiny: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = command(
        [*tiny, *LONG, "budget.steps=5000", "devices=2", "distributed.timeout=3", f"hydra.run.dir={run}"]
    )
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_until_under_way(run, process)
        os.kill(workers(process.pid)[-1], signal.SIGSTOP)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "distributed.timeout=3: another process has not answered for 3 s" in said
    assert f"resume={run}" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_an_error_is_printed_once_and_nothing_is_left(tiny: tuple[str, ...], tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("", encoding="utf-8")
    for words, argv in {
        "budget.steps=1": lambda words: command([*words, "devices=2"]),
        f"data.files=[{empty}]": lambda words: command([*words, "devices=2"]),
        "batch.size=3": lambda words: torchrun(2, [*words, "batch.micro=3"]),
    }.items():
        run = tmp_path / "run"
        said = finished(argv([*tiny, words, f"hydra.run.dir={run}"]), code=1 if "batch" in words else 2)
        assert said.count("apollo-train") == 1, said
        assert not run.exists()


@pytest.mark.slow
def test_a_restart_does_not_resume_another_run(tiny: tuple[str, ...], tmp_path: Path) -> None:
    run = trained(tiny, tmp_path / "run", "seed=5")
    before = (run / "summary.json").read_bytes()
    argv = torchrun(2, [*tiny, "seed=7", f"hydra.run.dir={run}"], "--max-restarts=1")
    assert "has a config.yaml already" in finished(argv, code=1)
    assert (run / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_a_sweep_under_torchrun_is_refused_once(tiny: tuple[str, ...]) -> None:
    assert finished(torchrun(2, ["-m", *tiny, "seed=0,1"]), code=1).count("would run the whole sweep") == 1


@pytest.mark.slow
def test_two_launchers_restart_after_a_killed_process(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Each launcher has one process; torch counts restarts for each of them."""
    words, run = (*tiny, *LONG, f"hydra.run.dir={tmp_path / 'run'}"), tmp_path / "run"
    whole = trained((*tiny, *LONG), tmp_path / "whole")
    with socket.create_server(("localhost", 0)) as free:
        meet = f"--rdzv-endpoint=localhost:{free.getsockname()[1]}"
    flags = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", meet, "--rdzv-id=two")
    argv = [sys.executable, "-m", "torch.distributed.run", *flags, "--local-addr=localhost"]
    argv += ["-m", "apollo_cli.train", *words]
    with subprocess.Popen(argv) as one, subprocess.Popen(argv) as other:
        wait_until_under_way(run, one)
        os.kill(workers(other.pid)[-1], signal.SIGKILL)
        assert [one.wait(timeout=300), other.wait(timeout=300)] == [0, 0]
    assert_same(whole, run)


@pytest.mark.slow
def test_dropout_is_resumed_exactly_on_two_processes(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Each process has its own dropout, and the same one after a resume."""
    words = (*tiny, *LONG, "model.dropout=0.1", "devices=2")
    whole, run = trained(words, tmp_path / "whole"), tmp_path / "run"
    stopped(words, run)
    finished(command([f"resume={run}"]))
    assert_same(whole, run, rounding=0)


@pytest.mark.slow
def test_shards_of_a_narrow_model_are_resumed_and_widened(tiny: tuple[str, ...], tmp_path: Path) -> None:
    words = (*tiny, *LONG, "expander=bert2bert", "schedule.widths=[0.5,0.5,1]", "devices=2", "distributed=fsdp")
    whole, run = trained(words, tmp_path / "whole"), tmp_path / "run"
    stopped(words, run)
    assert read_rows(run)[-1]["width"] == 0.5
    finished(command([f"resume={run}"]))
    assert_same(whole, run, rounding=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_end_early_go_on_and_begin_with_moments_like_one(
    kind: str, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    even = [
        *tiny,
        "model=gpt",
        "optim.schedule=constant",
        f"distributed={kind}",
        "checkpoint.best=true",
        "eval.every=2",
    ]
    two = ["devices=2"]
    for more, folder in (([], tmp_path / "one"), (two, tmp_path / "two")):
        trained([*even, "budget.steps=40", "budget.target_loss=5", *more], folder / "early")
        trained([*even, *more], folder / "whole")
        finished(command([f"resume={folder / 'whole'}", "budget.steps=18"]))
        source = f"init_from.path={folder / 'whole'}"
        moments = ["schedule=scratch", "schedule.layers=[4]", "schedule.ends=[1]", "init_from.optimizer=true"]
        trained([*even, *moments, "init_from.data=true", source, *more], folder / "after")
    for name in ("early", "whole", "after"):
        assert_same(tmp_path / "one" / name, tmp_path / "two" / name, 1e-4)
    early = json.loads((tmp_path / "two" / "early" / "summary.json").read_text())
    assert (early["ended_by"], early["totals"]["steps"] < 40) == ("target_loss", True)
