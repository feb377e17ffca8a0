"""The command as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from apollo_cli.train import run
from tests.conftest import STEPS, read_rows

EVERY_ROW = {"step", "micro_step", "tokens", "flops", "train_seconds", "total_seconds", "stage", "layers"}
TRAINING = {
    "train/loss", "train/loss_max", "train/lr", "train/grad_norm", "train/grad_norm_max", "train/depth",
    "train/skipped_steps", "perf/tokens_per_second", "perf/flops_per_second", "perf/peak_memory_bytes",
}  # fmt: skip
EVALUATION = {"eval/loss", "eval/loss_full_depth", "eval/perplexity"}
GROWTH = EVALUATION | {"growth/from", "growth/to"}


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_run_leaves_every_file_of_the_contract(
    kind: str, tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([f"model={kind}", *tiny, f"hydra.run.dir={tmp_path}/run"]) == 0
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "plan.json", "train.log", "metrics.jsonl", "summary.json", "checkpoints", "model",
    }  # fmt: skip
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == [
        "latest", "step_00000008", "step_00000012",
    ]  # fmt: skip
    assert (folder / "checkpoints" / "latest").read_text() == "step_00000012\n"
    assert {p.name for p in (folder / "checkpoints" / "step_00000012").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "state.pt", "meta.json",
    }  # fmt: skip

    rows, plan = read_rows(folder), json.loads((folder / "plan.json").read_text())
    for row in rows:
        assert set(row) - EVERY_ROW in (TRAINING, EVALUATION, GROWTH)
    assert rows[-1]["flops"] == plan["flops"]
    assert rows[-1]["tokens"] == plan["tokens"] == STEPS * 4 * 16
    assert [r["step"] for r in rows if "train/loss" in r] == [3, 6, 9, 12]
    assert [r["step"] for r in rows if set(r) - EVERY_ROW == EVALUATION] == [0, 5, 10, 12]
    growths = [(r["step"], r["growth/from"], r["growth/to"], r["layers"]) for r in rows if "growth/to" in r]
    assert growths == [(3, 1, 2, 1), (3, 1, 2, 2), (6, 2, 4, 2), (6, 2, 4, 4)]
    assert [s["growth_map"] for s in plan["stages"]] == [None, [0, 0], [0, 0, 1, 1]]

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["totals"]["flops"] == plan["flops"]
    assert summary["totals"]["scratch_flops"] == plan["scratch_flops"]
    assert summary["losses"]["eval/loss"] == rows[-1]["eval/loss"]
    assert summary["seed"] == 0
    assert len(summary["data"]["fingerprint"]) == 64
    assert summary["versions"]["torch"] == torch.__version__

    out = capsys.readouterr().out
    assert str(plan["flops"]) in out
    assert "grown 2 -> 4 layers" in out
    assert "Run completed" in out
    log = (folder / "train.log").read_text().splitlines()
    assert len([line for line in log if line.startswith("step ")]) == len(rows)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_transformers_loads_what_a_run_exports(kind: str, straight: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    auto = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(straight[kind] / "model", output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_hidden_layers == 4
    tokenizer = AutoTokenizer.from_pretrained(straight[kind] / "model")
    assert len(tokenizer) == 300
    assert tokenizer("some words")["input_ids"]


@pytest.mark.parametrize(("kind", "entries"), [("bert", 261), ("gpt", 257)])
def test_a_run_on_bytes_needs_no_size_and_exports_their_tokenizer(
    kind: str, entries: int, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    rest = [word for word in tiny if not word.startswith("data.vocab_size=")]
    assert run([*rest, f"model={kind}", "data.tokenizer=bytes", f"hydra.run.dir={tmp_path}/run"]) == 0
    assert f"vocab_size: {entries}\n" in (tmp_path / "run" / "config.yaml").read_text()
    exported = tmp_path / "run" / "model"
    assert json.loads((exported / "config.json").read_text())["vocab_size"] == entries
    tokenizer = AutoTokenizer.from_pretrained(exported)
    text = "Grüße, 世界 \x00\n  😀"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokenizer) == entries
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert (
        read_rows(tmp_path / "run")[-1]["flops"]
        == json.loads((tmp_path / "run" / "plan.json").read_text())["flops"]
    )


def test_a_plan_knows_the_flops_of_the_run_to_the_last_digit(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*tiny, "sampler=lvps", "sampler.k=1.5", "seed=7"]
    assert run([*command, "plan=true", f"hydra.run.dir={tmp_path}/plan"]) == 0
    assert {p.name for p in (tmp_path / "plan").iterdir()} == {"config.yaml", "plan.json"}
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert str(plan["flops"]) in capsys.readouterr().out
    assert run([*command, f"hydra.run.dir={tmp_path}/run"]) == 0
    assert read_rows(tmp_path / "run")[-1]["flops"] == plan["flops"]
    assert sum(stage["flops"] for stage in plan["stages"]) == plan["flops"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smapler=lvps"], ["smapler", "sampler"]),
        (
            ["sampler=lvp"],
            ["sampler=lvp", "did you mean lvps?", "edge, full, lvps, prefixes, shallow, subset, uniform"],
        ),
        (["sampler.kk=2"], ["sampler.kk", "sampler.k?"]),
        (["seed=abc"], ["seed=abc", "integer"]),
        (["sampler.k=-1"], ["sampler.k=-1", "greater than or equal to 0"]),
        (["schedule.layers=[3,1,4]"], ["schedule.layers", "[3, 1, 4]"]),
        (["schedule.ends=[0.1,0.5,0.9]"], ["schedule.ends", "rise to 1"]),
        (["schedule.layers=[1,2,3]"], ["schedule.layers", "model.layers is 4"]),
        (["budget.steps=5", "budget.tokens=1000"], ["budget.steps and budget.tokens", "exactly one"]),
        (["model.heads=3"], ["model.heads=3", "model.hidden=16", "model.heads=2"]),
        (["data.vocab_size=100000"], ["data.vocab_size=100000", "fills"]),
        (["budget.steps=1"], ["stage 1", "no step"]),
        (["data.files=[gone.txt]"], ["gone.txt"]),
        (["device=cuda:99"], ["cuda:99", "device=cpu"]),
        (["resume=nowhere"], ["nowhere", "config.yaml"]),
        (["batch.micro=3"], ["batch.micro=3", "batch.size=4"]),
        (["+sampler=lvp"], ["sampler=lvp", "did you mean lvps?"]),
        (["optim.betas=[0.9,1.0]"], ["optim.betas", "less than 1"]),
        (["schedule.layers=12"], ["schedule.layers=12", "should be a list"]),
        (["model.hidden=1e12"], ["model.hidden", "less than or equal to 1000000"]),
        (["budget.steps=1e11"], ["micro-steps are more than a plan counts"]),
        (["seed=${nope}"], ["nope"]),
        (["-m", "sampler=lvps,uniform", "sampler.k=1"], ["sampler.k", "a chosen sampler", "sampler=lvps"]),
        (["-m", "seed=0,1", "model.heads=3", "optim.lr=-1"], ["optim.lr=-1"]),
        (["hydra.run.dir=/dev/null/x"], ["/dev/null"]),
        (["data.cache_dir='~nobody-at-all/q'"], ["data.cache_dir=~nobody-at-all/q", "no such user"]),
        (
            ["-m", "seed=1,2", "hydra.sweeper.max_batch_size=0"],
            ["hydra.sweeper.max_batch_size=0", "greater than 0"],
        ),
        (["-m", "seed=1,2", "hydra.sweeper.max_batch_size=-1"], ["hydra.sweeper.max_batch_size=-1"]),
        (["--resolve"], ["--resolve", "--cfg"]),
        (["--cfg", "job", "-m"], ["Only one of", "--multirun, --cfg"]),
        (["--package", "nope", "--cfg", "job"], ["'nope' not found"]),
        (["--shell-completion", "install=nope"], ["nope"]),
        (["--shell-completion"], ["install"]),
        (["seed=abc", "smapler=lvps", "model.heads=3"], ["3 problems", "seed=abc", "sampler?", "model.heads=2"]),
    ],
)
def test_a_mistake_is_explained_and_nothing_is_written(
    words: list[str],
    said: list[str],
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {word.partition("=")[0] for word in words}
    alone = named & {"resume", "--shell-completion"}
    rest = [] if alone else [word for word in tiny if word.partition("=")[0] not in named]
    assert run([*rest, *words]) == 2
    message = capsys.readouterr().err
    for word in said:
        assert word in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_survives_a_failing_job_and_closes_with_a_table(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *tiny, "sampler.k=-1,2", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert run(sweep) == 2
    statuses = [
        json.loads((tmp_path / "sweep" / str(job) / "summary.json").read_text())["status"] for job in range(4)
    ]
    assert statuses == ["failed", "failed", "completed", "completed"]
    captured = capsys.readouterr()
    assert f"{tmp_path}/sweep/0 and 1 more failed" in captured.out
    assert "sampler.k=-1" in captured.err
    table = captured.out[captured.out.rindex("Sweep of 4") :]
    assert len(re.findall(r"completed", table)) == 2
    assert "sampler.k" in table
    assert "seed" in table


@pytest.mark.slow
def test_eight_jobs_of_samplers_and_seeds(tiny: tuple[str, ...], tmp_path: Path) -> None:
    sweep = ["-m", *tiny, "seed=0,1", "sampler=lvps,uniform,edge,full", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert run(sweep) == 0
    flops = [read_rows(tmp_path / "sweep" / str(job))[-1]["flops"] for job in range(8)]
    assert flops[3] == flops[7] == max(flops)  # full depth costs most, whatever the seed


def test_a_run_directory_is_not_used_twice(tiny: tuple[str, ...], tmp_path: Path) -> None:
    command = [*tiny, "budget.steps=4", f"hydra.run.dir={tmp_path}/run"]
    assert run(command) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert run(command) == 2
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_somebody_elses_files_stay(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("mine")
    for words, said in (((), "config.yaml"), (("data.files=[gone.txt]",), "gone.txt")):
        rest = [word for word in tiny if not (words and word.startswith("data.files="))]
        assert run([*rest, *words, "hydra.run.dir=."]) == 2
        assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_a_refusal_removes_no_folder_but_those_of_this_start(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    rest = [word for word in tiny if not word.startswith("data.files=")]
    for folder in ("mine/empty/run", "mine/empty", "mine/new/run", f"{tmp_path}/mine/absolute/run"):
        assert run([*rest, "data.files=[gone.txt]", f"hydra.run.dir={folder}"]) == 2
        assert list(tmp_path.rglob("*")) == [tmp_path / "mine", tmp_path / "mine" / "empty"]


@pytest.mark.skipif(sys.platform == "darwin", reason="there every name is UTF-8")
def test_a_name_that_is_not_utf8_is_refused_before_training(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / os.fsdecode(b"w\xff")
    folder.mkdir()
    for word in (f"hydra.run.dir={folder}/run", f"resume={folder}"):
        assert run([*tiny, word]) == 2
        assert r"w\xff" in (said := capfd.readouterr().err)
        assert "is not UTF-8" in said
    monkeypatch.chdir(folder)
    assert run([*tiny]) == 2
    assert "the working directory" in capfd.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "summary.json"])
@pytest.mark.parametrize(
    "content", ['{"a": [', *(pytest.param(x, marks=pytest.mark.slow) for x in ("[]", "{}")), ""]
)
def test_damage_in_a_run_directory_is_named_and_mended_where_the_file_can_be_written_anew(
    name: str, content: str, tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", f"hydra.run.dir={tmp_path}/run"]) == 0
    config = (tmp_path / "run" / "config.yaml").read_text().replace("plan: true", "plan: false")
    (tmp_path / "run" / "config.yaml").write_text(config)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan | {"estimated_seconds": None}))
    (tmp_path / "run" / name).write_text(content)
    code = run([f"resume={tmp_path}/run"])
    captured = capsys.readouterr()
    if name == "config.yaml":
        assert code == 2
        assert "Traceback" not in captured.err
        return
    assert code == 0
    harmless = content == "{}" and name == "summary.json"  # it only lacks a status
    assert (f"{name} is damaged" in captured.out) != harmless
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) | {"estimated_seconds": 0} == plan | {
        "estimated_seconds": 0
    }
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"


def test_a_plan_alone_is_not_resumed(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny, "plan=true", f"hydra.run.dir={tmp_path}/run"]) == 0
    assert run([f"resume={tmp_path}/run"]) == 2
    assert "only a plan" in capsys.readouterr().err


def test_several_processes_do_no_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run([]) == 2
    assert "RANK='', LOCAL_RANK='', MASTER_PORT='': should be a number" in capsys.readouterr().err
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run(["-m", "seed=0,1"]) == 2
    assert "each of the 2 processes would run the whole sweep; leave torchrun" in capsys.readouterr().err


def test_run_directories_never_collide(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run([*tiny, "plan=true"]) == 0
    assert len(list(Path("outputs/plans").iterdir())) == 2
    assert [path.name for path in Path("outputs").iterdir()] == ["plans"]


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "apollo_cli.train", *words]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_saves_names_the_resume_command_and_loses_nothing(
    signum: int, code: int, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    words = [*tiny, "budget.steps=60", "log.every=1", "checkpoint.every=100000", "eval.every=1000"]
    folder = tmp_path / "run"
    process = subprocess.Popen(
        _command(*words, f"hydra.run.dir={folder}"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and len(read_rows(folder)) > 5:
            break
        time.sleep(0.01)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "apollo-train resume=run\n" in said
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    step = read_rows(folder)[-1]["step"]
    assert (folder / "checkpoints" / f"step_{step:08d}").is_dir()
    assert run([f"resume={folder}"]) == 0
    rows = read_rows(folder)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 61))
    assert rows[-1]["flops"] == json.loads((folder / "plan.json").read_text())["flops"]


def test_help_is_fast_and_ours() -> None:
    start = time.perf_counter()
    done = subprocess.run(_command("--help"), capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 1
    assert "lvps" in done.stdout
    assert "apollo-train -m seed=0,1" in done.stdout


def test_hydra_still_prints_the_config(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--cfg", "job", "sampler.k=3"]) == 0
    assert "k: 3" in capfd.readouterr().out


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_plan_waits_for_no_other_process(
    rank: str, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first process plans for all of them, as with devices=N; the others have nothing to do."""
    variables = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run([*tiny, "plan=true", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    if rank == "0":
        assert json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))["devices"] == 2
    else:
        assert not (tmp_path / "run").exists()
