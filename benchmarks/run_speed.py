"""`make bench`: speed and memory beside peers and by themselves, about half an hour on two quiet cores.

Each part writes its figures to outputs/bench/PART.json and is not measured again while that file exists.
`python -m benchmarks.run_speed PART...` measures some parts; the report is in benchmarks/SPEED.md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter, sleep
from typing import Any

from apollo_cli import files

FOLDER = Path("outputs/bench")
KINDS, WIDTHS = ("gpt", "bert"), {"nano": 128, "mini": 256}
APOLLO_STEPS, WHOLE_RUNS = 200, 3
REPRODUCTION_THINNED, REPRODUCTION_RUNS = 8, 2


def peers() -> dict[str, Any]:
    """Tokens per second at full depth and peak memory, in turns, of us, a plain loop and HF's Trainer.

    Where the CPU multiplies in bf16, ours, the Trainer and the products are measured in it as well.
    """
    from benchmarks.contenders import ROWS, VOCABULARY, products_of_layer, words
    from benchmarks.gate import GatedProgram

    rounds, found = {"nano": (9, 3), "mini": (7, 2)}, {}
    programs = {name: (name, "fp32") for name in ("ours", "plain", "trainer", "square", "layer")}
    if "bf16" in _precisions():
        programs |= {f"{name} bf16": (name, "bf16") for name in ("ours", "trainer", "square", "layer")}
    for size, hidden in WIDTHS.items():
        for kind in KINDS:
            running = {
                name: GatedProgram(
                    ["-m", "benchmarks.contenders", program, kind, str(hidden), f"precision={precision}"]
                )
                for name, (program, precision) in programs.items()
            }
            many, steps = rounds[size]
            seconds: dict[str, list[float]] = {name: [] for name in programs}
            for program in running.values():
                program.run(2)
            for _ in range(many):
                for name, program in running.items():
                    seconds[name].append(program.run(steps) / steps)
            products = products_of_layer(hidden, 4 * hidden, ROWS * 128)
            found[f"{kind} {size}"] = {
                "tokens": ROWS * 128,
                "flops": _flops_of(words(kind, hidden)),
                "flops_of": {"square": 2 * 2048**3, "layer": sum(2 * a * b * c for a, b, c in products)},
                "seconds": seconds,
                "peak_bytes": {name: program.close() for name, program in running.items()},
                "vocabulary": VOCABULARY,
            }
    return found


def _flops_of(words: list[str]) -> int:
    """Model FLOPs of a step at full depth."""
    from apollo_cli.training.device import choose
    from apollo_cli.training.planning import make_step_cost
    from benchmarks.configs import config_of

    config = config_of(words)
    return make_step_cost(config, choose(config.run)).flops(config.model.layers, 0)


def gpu() -> dict[str, Any]:
    """On a CUDA device: bf16, nano to base, BERT-Base at 512 and GPT-2 at 1024 tokens, beside HF's Trainer.

    Ten steps at a time: then both have waited for the device, for a row of their logs.
    """
    pairs = (("nano", "base"), ("mini", "small"))  # what the memory holds
    return {name: found for kind in KINDS for sizes in pairs for name, found in _gpu_of(kind, sizes).items()}


def _gpu_of(kind: str, sizes: tuple[str, ...]) -> dict[str, Any]:
    """Some sizes of a model: their programs start and compile in parallel and are timed in turns."""
    import torch

    from benchmarks.contenders import words
    from benchmarks.gate import GatedProgram

    lengths = {"nano": 512, "mini": 512, "small": 512, "base": 512 if kind == "bert" else 1024}
    hidden = {"nano": 128, "mini": 256, "small": 512, "base": 768}
    more = {
        size: [
            "device=cuda", "precision=bf16", "data.vocab_size=16384", f"data.seq_len={length}",
            f"batch.size={16 * 1024 // length}",
        ]
        for size, length in lengths.items()
    }  # fmt: skip
    names = ("ours", "ours graphs", "trainer", "trainer compiled")
    wanted = [("dense", "base"), *((name, size) for size in sizes for name in names)]

    def warm(name: str, size: str) -> GatedProgram:
        words = [*more[size], *(["compile=graphs"] if name == "ours graphs" else [])]
        contender = name.removesuffix(" graphs").replace(" ", "_")
        program = GatedProgram(["-m", "benchmarks.contenders", contender, kind, str(hidden[size]), *words])
        program.run(20)
        return program

    with ThreadPoolExecutor() as pool:
        programs = dict(zip(wanted, pool.map(lambda each: warm(*each), wanted), strict=True))
    found = {}
    for size in sizes:
        running = {name: programs[name, size] for name in names}
        running["dense"] = programs["dense", "base"]
        seconds: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(5):
            for name, program in running.items():
                seconds[name].append(program.run(10) / 10)
        found[f"{kind} {size}"] = {
            "device": torch.cuda.get_device_name(),
            "tokens": 16 * 1024,
            "flops": _flops_of(words(kind, hidden[size], more[size])),
            "dense_flops": 2 * 8192**3,
            "seconds": seconds,
        }
    for program in programs.values():
        program.close()
    return found


def profile() -> dict[str, Any]:
    """Seconds of each operation of a step, from torch's profiler, at the peers' sizes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from benchmarks.bare_trainer import make_trainer

    found = {}
    for kind, (size, hidden), precision in product(KINDS, WIDTHS.items(), _precisions()):
        words = [f"model={kind}", f"model.hidden={hidden}", f"model.heads={hidden // 64}", "batch.size=32"]
        words += [f"model.ffn={4 * hidden}", "data.vocab_size=8192", f"precision={precision}"]
        trainer = make_trainer(words, 12, None)
        for _ in range(3):
            trainer.step()
        with profiler(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(3):
                trainer.step()
        times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
        name = f"{kind} {size}" if precision == "fp32" else f"{kind} {size} {precision}"
        found[name] = dict(sorted(times.items(), key=lambda item: -item[1]))
    return found


def _precisions() -> tuple[str, ...]:
    """Those in which this CPU multiplies."""
    import torch

    from apollo_cli.training.device import multiplies_in_bf16

    return ("fp32", "bf16") if multiplies_in_bf16(torch.device("cpu")) else ("fp32",)


def depth() -> dict[str, Any]:
    """Seconds of a step at every depth, of as many stored layers and of fewer, in turns of several steps.

    At nano, and at the width of the reproduction, there with the stored layers of its stages as well.
    """
    from benchmarks.bare_trainer import FixedDepth, make_trainer

    reproduction_size = ["model.hidden=64", "model.heads=2", "model.ffn=256", "data.tokenizer=bytes"]
    reproduction_size += ["data.seq_len=64", "batch.size=32"]
    found = {}
    for kind, (size, more, stages) in product(KINDS, (("", [], ()), (" width 64", reproduction_size, (3, 6)))):
        words = [f"model={kind}", "model.layers=12", *more]
        trainers = {
            (stored, depth): make_trainer(words, stored, FixedDepth(depth))
            for depth in range(1, 13)
            for stored in sorted({1, depth, *(layers for layers in stages if layers < depth)})
        }
        seconds: dict[tuple[int, int], list[float]] = {key: [] for key in trainers}
        for turn in range(4):
            for key, trainer in trainers.items():
                for step in range(6):
                    start = perf_counter()
                    trainer.step()
                    if turn and step:  # the first step finds the caches full of another trainer
                        seconds[key].append(perf_counter() - start)
        found[f"{kind}{size}"] = [
            {"stored": stored, "depth": depth, "seconds": times} for (stored, depth), times in seconds.items()
        ]
    return found


def whole_run() -> dict[str, Any]:
    """Whole Apollo runs and whole scratch runs of the same model, some steps of each in turn.

    Otherwise the load of the machine varies more than the eighth that is saved.
    """
    from benchmarks.interleaved import run_in_turns

    pairs = {
        kind: {name: [f"experiment={name}_{kind}", "precision=fp32"] for name in ("apollo", "scratch")}
        for kind in KINDS
    }
    steps = dict.fromkeys(("apollo", "scratch"), APOLLO_STEPS)
    return {kind: [run_in_turns(pair, steps) for _ in range(WHOLE_RUNS)] for kind, pair in pairs.items()}


def reproduction() -> dict[str, Any]:
    """The reproduction's runs that grow late and from scratch, in an eighth of their steps and in turns.

    At its own width, and at that of nano. What a run pays once, memory that is touched for the first time at each
    depth above all, weighs eight times as much as in a whole run.
    """
    from benchmarks.cells import TUNED, ReproductionCell
    from benchmarks.configs import plan_of
    from benchmarks.interleaved import run_in_turns

    methods, found = ("scratch", "apollo_late", "late_zero_init"), {}
    nano = ["model.hidden=128", "model.heads=2", "model.ffn=512"]
    for kind, (size, more) in product(KINDS, (("", []), (" nano", nano))):
        cells = [ReproductionCell(kind, method, TUNED[kind, method], 0) for method in methods]
        steps = {cell.method: plan_of(list(cell.words)).steps // REPRODUCTION_THINNED for cell in cells}
        words = {cell.method: [*cell.words, *more] for cell in cells}
        found[f"{kind}{size}"] = [run_in_turns(words, steps) for _ in range(REPRODUCTION_RUNS)]
    return found


def around() -> dict[str, Any]:
    """Seconds of a step beside forward, backward and update: batch, depth, rows, progress; and W&B's recorder."""
    from benchmarks.bare_trainer import make_trainer

    found = {}
    for kind in KINDS:
        words = [f"model={kind}", "batch.size=32", "tracking.wandb=offline"]
        trainer = make_trainer(words, 12, None, real_tracker=True)
        try:
            found[kind] = _around(trainer)
        finally:
            trainer.tracker.console.stop()  # it writes to standard output until then
            trainer.tracker.close("completed", {"totals": {"flops": trainer.state.flops}, "losses": {}})
    return found


def _around(trainer: Any) -> dict[str, Any]:
    from benchmarks.bare_trainer import Stopwatch

    watch, recorder, bar, steps = (
        Stopwatch(),
        trainer.tracker.listeners[0].process.pid,
        trainer.tracker.console.bar,
        40,
    )
    watch.around(trainer.training, "micro_batch")
    watch.around(trainer, "depths")
    watch.around(trainer, "common_columns")
    watch.around(trainer.tracker, "step")
    watch.around(trainer, "log")
    for _ in range(3):
        trainer.step()
    sleep(5)  # the recorder starts
    watch.seconds, cpu_before, began = {}, _cpu_seconds(recorder), perf_counter()
    for _ in range(steps):
        trainer.step()
        if trainer.state.step % trainer.args.log_every == 0:
            trainer.log()
    step_seconds = (perf_counter() - began) / steps
    began = perf_counter()
    for _ in range(100):
        bar.refresh()
    refresh_seconds = (perf_counter() - began) / 100
    sleep(2)
    return {
        "step_seconds": step_seconds,
        "parts": {name: seconds / steps for name, seconds in watch.seconds.items()}
        | {"bar": refresh_seconds * 4 * step_seconds},  # four times a second
        "recorder_cpu_seconds": (_cpu_seconds(recorder) - cpu_before) / steps,
    }


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def checkpoint() -> dict[str, Any]:
    """Seconds that a checkpoint takes, the state of AdamW included."""
    from benchmarks.bare_trainer import make_trainer

    found = {}
    for kind in KINDS:
        trainer = make_trainer([f"model={kind}"], 12, None)
        times = []
        for _ in range(13):
            trainer.step()
            start = perf_counter()
            trainer.save()
            times.append(perf_counter() - start)
        found[kind] = {"seconds": times[3:], "parameters": sum(p.numel() for p in trainer.model.parameters())}
    return found


def start() -> dict[str, Any]:
    """Seconds from the command to its help, its plan and its first update, with a warm cache."""
    command = [sys.executable, "-m", "apollo_cli.train"]
    found: dict[str, list[float]] = {"help": [], "plan": [], "first update": [], "import torch": []}
    for _ in range(6):
        began = perf_counter()
        subprocess.run([*command, "--help"], check=True, capture_output=True)
        found["help"].append(perf_counter() - began)
        began = perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        found["import torch"].append(perf_counter() - began)
        began = perf_counter()
        words = [*command, "log.every=1", "precision=fp32", f"hydra.run.dir={mkdtemp()}/run"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("Plan:"):
                    found["plan"].append(perf_counter() - began)
                if line.startswith("step     1/"):
                    found["first update"].append(perf_counter() - began)
                    break
            process.kill()
    return {name: times[1:] for name, times in found.items()}


def memory() -> dict[str, Any]:
    """Peak memory of each stage: what the plan says, and what was measured."""
    from benchmarks.contenders import words

    found = {}
    for size, hidden in WIDTHS.items():
        for kind in KINDS:
            folder = Path(mkdtemp()) / "run"
            more = ["schedule=apollo", "budget.steps=24", "schedule.ends=[0.25,0.5,0.75,1]", "log.every=6"]
            typed = words(kind, hidden, [*more, f"hydra.run.dir={folder}"])
            subprocess.run([sys.executable, "-m", "apollo_cli.train", *typed], check=True, capture_output=True)
            stages = json.loads((folder / "plan.json").read_text())["stages"]
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            peaks = [row["perf/peak_memory_bytes"] for row in rows if "train/loss" in row]
            found[f"{kind} {size}"] = [
                {"layers": stage["layers"], "plan": stage["memory_bytes"], "measured": peak}
                for stage, peak in zip(stages, peaks, strict=True)
            ]
    return found


def data() -> dict[str, Any]:
    """Text to rows: against the tokenizers library alone, and a gigabyte from the file to training steps."""
    from apollo_cli.data.sources import PyDocs
    from benchmarks.text_to_rows import LARGE, SMALL, VOCABULARY, text

    found: dict[str, Any] = {"pydocs": _size_of(list(PyDocs().documents()))}
    for kind in KINDS:
        found[kind] = {"speed": _of_corpus("speed", kind, text(SMALL))}
    found["scale"] = _of_corpus("scale", "bert", text(LARGE))
    words = [
        "model=bert", "data=text", f"data.files=[{text(LARGE)}]", f"data.vocab_size={VOCABULARY}", "batch.size=32",
        "size=nano", f"data.cache_dir={FOLDER / 'data_scale_bert'}", "budget.steps=40", "tracking=local",
        f"hydra.run.dir={mkdtemp()}/run",
    ]  # fmt: skip
    with subprocess.Popen([sys.executable, "-m", "apollo_cli.train", *words], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    found["scale"]["training_peak_bytes"] = usage.ru_maxrss * 1024
    found["reading"] = _reading(words)
    return found


def _size_of(documents: list[str]) -> dict[str, int]:
    return {"documents": len(documents), "bytes": sum(len(text.encode()) for text in documents)}


def _of_corpus(part: str, kind: str, path: Path) -> dict[str, Any]:
    """A part of `benchmarks.text_to_rows`, in a process of its own, and not again while its figures are there."""
    cache = FOLDER / f"data_{part}_{kind}"
    figures = cache.with_suffix(".json")
    if not figures.exists():
        command = [sys.executable, "-m", "benchmarks.text_to_rows", part, kind, str(path), str(cache)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        files.write_json(figures, json.loads(printed))
    return json.loads(figures.read_text())


def _reading(words: list[str]) -> dict[str, float]:
    """Seconds of a step at nano with rows from all over a large file, and of making its batch."""
    from benchmarks.bare_trainer import Stopwatch, make_trainer

    trainer, watch = make_trainer([word for word in words if "budget" not in word], 12, None), Stopwatch()
    watch.around(trainer.training, "micro_batch")
    for _ in range(3):
        trainer.step()
    watch.seconds, began, steps = {}, perf_counter(), 30
    for _ in range(steps):
        trainer.step()
    return {"step_seconds": (perf_counter() - began) / steps, "batch_seconds": watch.seconds["micro_batch"] / steps}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    part.__name__: part
    for part in (peers, profile, depth, whole_run, reproduction, around, checkpoint, start, memory, data)
}


def main(asked: list[str]) -> None:
    import torch

    from benchmarks import render_speed

    FOLDER.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available() or _is_measured("gpu"):  # its figures may come from another machine
        PARTS["gpu"] = gpu
    for name in asked or PARTS:
        path = FOLDER / f"{name}.json"
        if not path.exists():
            print(f"measuring {name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", flush=True)
            files.write_json(path, PARTS[name]())
    figures = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in PARTS if _is_measured(name)}
    render_speed.write(figures)


def _is_measured(name: str) -> bool:
    return (FOLDER / f"{name}.json").exists()


if __name__ == "__main__":
    main(sys.argv[1:])
