"""How fast we are, against peers and against ourselves: `make bench`, about half an hour on two quiet cores.

Each part leaves its figures in outputs/bench/PART.json and is not measured again while that file is there.
`python -m benchmarks.speed PART...` measures some; the report is benchmarks/RESULTS.md.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter, sleep
from typing import Any

from apollo_cli import files

FOLDER = Path("outputs/bench")
KINDS, WIDTHS = ("gpt", "bert"), {"nano": 128, "mini": 256}
APOLLO_STEPS, WHOLE_RUNS = 200, 4
THINNED = 20  # the runs of the reproduction are timed in a twentieth of their steps


def peers() -> dict[str, Any]:
    """Tokens per second at full depth and peak memory, in turns, of us, a plain loop and HF's Trainer."""
    from benchmarks.contenders import ROWS, VOCABULARY, products_of_layer, words
    from benchmarks.gate import Gated

    rounds, found = {"nano": (9, 3), "mini": (7, 2)}, {}
    for size, hidden in WIDTHS.items():
        for kind in KINDS:
            names = ("ours", "plain", "trainer", "square", "layer")
            running = {name: Gated(["-m", "benchmarks.contenders", name, kind, str(hidden)]) for name in names}
            many, steps = rounds[size]
            seconds: dict[str, list[float]] = {name: [] for name in names}
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
    from apollo_cli.config.config import parse
    from apollo_cli.config.hydra_syntax import compose_values
    from apollo_cli.training.device import choose
    from apollo_cli.training.planning import make_step_cost

    config = parse(compose_values(words))
    return make_step_cost(config, choose(config.run)).flops(config.model.layers, 0)


def gpu() -> dict[str, Any]:
    """On a CUDA device: bf16, nano to base, BERT-Base at 512 and GPT-2 at 1024 tokens, beside HF's Trainer.

    Ten steps at a time: then both have waited for the device, for a row of their logs.
    """
    pairs = (("nano", "base"), ("mini", "small"))  # what the memory holds
    return {name: found for kind in KINDS for sizes in pairs for name, found in _gpu_of(kind, sizes).items()}


def _gpu_of(kind: str, sizes: tuple[str, ...]) -> dict[str, Any]:
    """Some sizes of a model: their programs start and compile beside each other, and are timed in turns."""
    import torch

    from benchmarks.contenders import words
    from benchmarks.gate import Gated

    lengths = {"nano": 512, "mini": 512, "small": 512, "base": 512 if kind == "bert" else 1024}
    hidden = {"nano": 128, "mini": 256, "small": 512, "base": 768}
    more = {
        size: [
            "device=cuda", "precision=bf16", "data.vocab_size=16384", f"data.seq_len={length}",
            f"batch.size={16 * 1024 // length}",
        ]
        for size, length in lengths.items()
    }  # fmt: skip
    wanted = [("dense", "base"), *((name, size) for size in sizes for name in ("ours", "trainer"))]

    def warm(name: str, size: str) -> Gated:
        program = Gated(["-m", "benchmarks.contenders", name, kind, str(hidden[size]), *more[size]])
        program.run(20)
        return program

    with ThreadPoolExecutor() as pool:
        programs = dict(zip(wanted, pool.map(lambda each: warm(*each), wanted), strict=True))
    found = {}
    for size in sizes:
        running = {name: programs[name, size] for name in ("ours", "trainer")}
        running["dense"] = programs["dense", "base"]
        seconds: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(5):
            for name, program in running.items():
                seconds[name].append(program.run(10) / 10)
        typed = {word.partition("=")[0] for word in more[size]}
        kept = [word for word in words(kind, hidden[size]) if word.partition("=")[0] not in typed]
        found[f"{kind} {size}"] = {
            "device": torch.cuda.get_device_name(),
            "tokens": 16 * 1024,
            "flops": _flops_of([*kept, *more[size]]),
            "dense_flops": 2 * 8192**3,
            "seconds": seconds,
        }
    for program in programs.values():
        program.close()
    return found


def profile() -> dict[str, Any]:
    """Where the time of a step goes, by torch's own profiler; the peers' sizes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from benchmarks.loops import make_loop

    found = {}
    for size, hidden in WIDTHS.items():
        for kind in KINDS:
            words = [f"model={kind}", f"model.hidden={hidden}", f"model.heads={hidden // 64}", "batch.size=32"]
            loop = make_loop([*words, f"model.ffn={4 * hidden}", "data.vocab_size=8192"], 12, None)
            for _ in range(3):
                loop.step()
            with profiler(activities=[ProfilerActivity.CPU]) as seen:
                for _ in range(3):
                    loop.step()
            times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
            found[f"{kind} {size}"] = dict(sorted(times.items(), key=lambda item: -item[1]))
    return found


def depth() -> dict[str, Any]:
    """Seconds of a step at every depth, with as many layers stored and with one layer shared, in turns."""
    from benchmarks.loops import FixedDepth, make_loop

    found = {}
    for kind in KINDS:
        loops = {
            (stored, depth): make_loop([f"model={kind}", "model.layers=12"], stored, FixedDepth(depth))
            for depth in range(1, 13)
            for stored in {1, depth}
        }
        seconds: dict[tuple[int, int], list[float]] = {key: [] for key in loops}
        for turn in range(8):
            for key, loop in loops.items():
                start = perf_counter()
                loop.step()
                if turn:
                    seconds[key].append(perf_counter() - start)
        found[kind] = [
            {"stored": stored, "depth": depth, "seconds": times} for (stored, depth), times in seconds.items()
        ]
    return found


def whole_run() -> dict[str, Any]:
    """Whole Apollo runs and whole scratch runs of the same model, two steps of each in turn.

    A saving of an eighth drowns in a machine's moods otherwise.
    """
    pairs = {kind: {name: [f"experiment={name}_{kind}"] for name in ("apollo", "scratch")} for kind in KINDS}
    steps = dict.fromkeys(("apollo", "scratch"), APOLLO_STEPS)
    return {kind: [in_turns(pair, steps) for _ in range(WHOLE_RUNS)] for kind, pair in pairs.items()}


def reproduction() -> dict[str, Any]:
    """The headline's runs, those that grow late and scratch, in a twentieth of their steps and in turns."""
    from benchmarks.reproduce import TUNED, Cell

    found = {}
    for kind in KINDS:
        methods = ("scratch", "apollo_late", "late_zero_init")
        cells = [Cell(kind, method, TUNED[kind, method], 0) for method in methods]
        words = {cell.method: list(cell.words) for cell in cells}
        steps = {method: steps_of(words[method]) // THINNED for method in words}
        found[kind] = [in_turns(words, steps) for _ in range(WHOLE_RUNS)]
    return found


def steps_of(words: list[str]) -> int:
    """Of the run that these words make."""
    from apollo_cli.config.config import parse
    from apollo_cli.config.hydra_syntax import compose_values
    from apollo_cli.training.device import choose
    from apollo_cli.training.planning import make_plan

    config = parse(compose_values(words))
    return make_plan(config, choose(config.run)).steps


def in_turns(words: dict[str, list[str]], steps: dict[str, int]) -> dict[str, dict[str, float]]:
    """FLOPs and training seconds of whole runs, a piece of each after a piece of the other."""
    from benchmarks.gate import Gated

    folders, running = {}, {}
    for name in words:
        folders[name] = Path(mkdtemp()) / "run"
        length = ["budget.flops=null", f"budget.steps={steps[name]}", f"hydra.run.dir={folders[name]}"]
        running[name] = Gated(["-m", "benchmarks.gated", *words[name], *length])
    turns = min(steps.values()) // 2
    for turn in range(turns):
        for name in list(running)[:: 1 if turn % 2 else -1]:
            first, end = (steps[name] * t // turns for t in (turn, turn + 1))
            running[name].run(end - first, ends=end == steps[name])
    found = {}
    for name, folder in folders.items():
        running[name].close()
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        found[name] = {"flops": last["flops"], "train_seconds": last["train_seconds"]}
    return found


def around() -> dict[str, Any]:
    """What a step costs beside forward, backward and update: batch, depth, rows, progress; and W&B's recorder."""
    from benchmarks.loops import make_loop

    found = {}
    for kind in KINDS:
        words = [f"model={kind}", "batch.size=32", "tracking.wandb=offline"]
        loop = make_loop(words, 12, None, real_tracker=True)
        try:
            found[kind] = _around(loop)
        finally:
            loop.tracker.console.stop()  # it has standard output meanwhile
            loop.tracker.close("completed", {})
    return found


def _around(loop: Any) -> dict[str, Any]:
    from benchmarks.loops import Stopwatch

    watch, recorder, bar, steps = Stopwatch(), loop.tracker.listeners[0].process.pid, loop.tracker.console.bar, 40
    watch.around(loop.training, "micro_batch")
    watch.around(loop, "depths")
    watch.around(loop, "standing")
    watch.around(loop.tracker, "step")
    watch.around(loop, "log")
    for _ in range(3):
        loop.step()
    sleep(5)  # the recorder starts
    watch.seconds, cpu_before, began = {}, _cpu_seconds(recorder), perf_counter()
    for _ in range(steps):
        loop.step()
        if loop.progress.step % loop.config.log.every == 0:
            loop.log()
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
    from benchmarks.loops import make_loop

    found = {}
    for kind in KINDS:
        loop = make_loop([f"model={kind}"], 12, None)
        times = []
        for _ in range(13):
            loop.step()
            start = perf_counter()
            loop.save()
            times.append(perf_counter() - start)
        found[kind] = {"seconds": times[3:], "parameters": loop.strategy.language_model().num_parameters()}
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
        words = [*command, "log.every=1", f"hydra.run.dir={mkdtemp()}/run"]
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
            more = {
                "sampler": "full", "schedule": "apollo", "budget.steps": "24",
                "schedule.ends": "[0.25,0.5,0.75,1]", "log.every": "6",
            }  # fmt: skip
            kept = [word for word in words(kind, hidden) if word.partition("=")[0] not in more]
            typed = [*kept, *(f"{key}={value}" for key, value in more.items()), f"hydra.run.dir={folder}"]
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
    from benchmarks.corpus import LARGE, SMALL, VOCABULARY, text

    found: dict[str, Any] = {"pydocs": _size_of(list(PyDocs().documents()))}
    for kind in KINDS:
        found[kind] = {"speed": _of_corpus("speed", kind, text(SMALL))}
    found["scale"] = _of_corpus("scale", "bert", text(LARGE))
    words = [
        "model=bert", "data=text", f"data.files=[{text(LARGE)}]", f"data.vocab_size={VOCABULARY}", "batch.size=32",
        f"data.cache_dir={FOLDER / 'data_scale_bert'}", "budget.steps=40", "tracking=local",
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
    """A part of `benchmarks.corpus`, in a process of its own, and not again while its figures are there."""
    cache = FOLDER / f"data_{part}_{kind}"
    figures = cache.with_suffix(".json")
    if not figures.exists():
        command = [sys.executable, "-m", "benchmarks.corpus", part, kind, str(path), str(cache)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        files.write_json(figures, json.loads(printed))
    return json.loads(figures.read_text())


def _reading(words: list[str]) -> dict[str, float]:
    """Seconds of a step at nano with rows from all over a large file, and of making its batch."""
    from benchmarks.loops import Stopwatch, make_loop

    loop, watch = make_loop([word for word in words if "budget" not in word], 12, None), Stopwatch()
    watch.around(loop.training, "micro_batch")
    for _ in range(3):
        loop.step()
    watch.seconds, began, steps = {}, perf_counter(), 30
    for _ in range(steps):
        loop.step()
    return {"step_seconds": (perf_counter() - began) / steps, "batch_seconds": watch.seconds["micro_batch"] / steps}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    part.__name__: part
    for part in (peers, profile, depth, whole_run, reproduction, around, checkpoint, start, memory, data)
}


def main(asked: list[str]) -> None:
    import torch

    from benchmarks import report

    FOLDER.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available() or _is_there("gpu"):  # its figures may come from another machine
        PARTS["gpu"] = gpu
    for name in asked or PARTS:
        path = FOLDER / f"{name}.json"
        if not path.exists():
            print(f"measuring {name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", flush=True)
            files.write_json(path, PARTS[name]())
    figures = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in PARTS if _is_there(name)}
    report.write(figures)


def _is_there(name: str) -> bool:
    return (FOLDER / f"{name}.json").exists()


if __name__ == "__main__":
    main(sys.argv[1:])
