"""benchmarks/SPEED.md: the figures of `make bench`."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import results_page
from benchmarks.cells import TUNED, ReproductionCell
from benchmarks.configs import plan_of

TITLES = {
    "peers": "Against peers",
    "profile": "Where the time goes",
    "depth": "Depth is free",
    "whole_run": "Seconds saved and FLOPs saved",
    "reproduction": "Seconds and FLOPs of the reproduction",
    "around": "Around a step",
    "checkpoint": "A checkpoint",
    "start": "The start",
    "memory": "Memory of a stage",
    "data": "Text to rows",
}
BARS = {"gpt": 1.35, "bert": 1.5}  # times the tokens per second of HF's Trainer, both in fp32
BF16_BARS = {"trainer": 1.9, "trainer bf16": 1.35}  # of ours in bf16
LESS_MEMORY = 0.6
GROWN = ("apollo_late", "late_zero_init")  # of the reproduction
GPU_OURS = {"ours": "ours", "ours graphs": "ours, compile=graphs"}
GPU_PEERS = {"trainer": "times HF Trainer", "trainer compiled": "times HF Trainer compiled"}
GPU_BARS = {"nano": 5, "mini": 7, "small": 15}  # milliseconds a step
KINDS_OF_WORK = {  # parts of the names that torch gives to its operations
    "matrix products": ("aten::mm", "aten::addmm"),
    "attention": ("attention", "aten::bmm", "_softmax"),  # in bf16 two products
    "GELU": ("gelu",),
    "norms": ("layer_norm",),
    "copies and sums": ("copy_", "cat", "aten::add", "aten::sum", "fill_", "index"),
    "cross-entropy": ("exp_", "amax", "aten::sub_", "aten::div_", "_DecoderLoss", "scatter", "gather", "aten::log"),
    "AdamW and clipping": ("adamw", "AdamW", "norm", "aten::mul_"),
}


def write(figures: dict[str, Any]) -> None:
    """Writes the report; sections without new figures are kept."""
    kept = results_page.sections("How fast")
    lines = [
        "Made by `make bench`, a part of it by `python -m benchmarks.run_speed PART`.",
        "Medians [smallest - largest].",
    ]
    machine = f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    for name, title in TITLES.items():
        if name in figures:
            short = " and bf16" if "bf16" in str(figures[name]) else ""
            lines += ["", f"## {title}", "", f"{machine}, fp32{short}.", "", *globals()[f"_{name}"](figures[name])]
        elif title in kept:
            lines += ["", kept[title]]
    if "gpu" in figures:
        lines += ["", "## On a GPU", "", *_gpu(figures["gpu"])]
    elif "On a GPU" in kept:
        lines += ["", kept["On a GPU"]]
    results_page.put("How fast", lines)


def _peers(figures: dict[str, Any]) -> Iterable[str]:
    yield "12 layers, sequence 128, batch 32, vocabulary 8192, the same weights and rows, AdamW, each in turn."
    yield "`rate` is model FLOPs a second beside 2048^3 products and one layer's own products of the same precision"
    yield "in the same turns; memory is beside the Trainer's in the same precision."
    if not any("ours bf16" in found["seconds"] for found in figures.values()):
        yield "Without bf16 on this CPU, the bars in bf16 stay open."
    yield ""
    head = (
        "",
        "tokens/s",
        "times HF",
        "times HF in bf16",
        "rate",
        "of 2048^3",
        "of its shapes",
        "peak memory",
        "of HF's",
        "bars",
    )
    yield from results_page.table(head)
    titles = {"ours": "ours", "plain": "plain loop", "trainer": "HF Trainer"}
    for model, found in figures.items():
        seconds, peaks = found["seconds"], found["peak_bytes"]
        for name, times in seconds.items():
            program, _, short = name.partition(" ")
            if program not in titles:
                continue
            suffix = f" {short}" if short else ""
            speed = {each: found["flops_of"][each] / median(seconds[each + suffix]) for each in ("square", "layer")}
            rate, smaller = found["flops"] / median(times), peaks[name] / peaks["trainer" + suffix]
            faster = {
                each: median(theirs / mine for theirs, mine in zip(seconds[each], times, strict=True))
                for each in ("trainer", "trainer bf16")
                if each in seconds
            }
            bars = BF16_BARS if short else {"trainer": BARS[model.split()[0]]}
            met = [f"{_met(faster[each] >= bar)} {bar}" for each, bar in bars.items()]
            yield results_page.row(
                f"{model}: {titles[program]}{suffix}",
                _spread([found["tokens"] / t for t in times], ".0f"),
                *(f"{faster[each]:.2f}" if each in faster else "" for each in ("trainer", "trainer bf16")),
                f"{rate / 1e9:.0f} GFLOP/s",
                f"{rate / speed['square']:.0%}",
                f"{rate / speed['layer']:.0%}",
                f"{peaks[name] / 1e9:.2f} GB",
                f"{smaller:.2f}",
                ", ".join((*met, f"{_met(smaller <= LESS_MEMORY)} {LESS_MEMORY}")) if program == "ours" else "",
            )


def _profile(figures: dict[str, Any]) -> Iterable[str]:
    yield "Share of a step at full depth, batch 32, vocabulary 8192. What is left are hundreds of small calls."
    yield ""
    yield from results_page.table(("", *KINDS_OF_WORK, "the rest"))
    for model, times in figures.items():
        shares = dict.fromkeys((*KINDS_OF_WORK, "the rest"), 0.0)
        for name, time in times.items():
            step_cost = (
                step_cost for step_cost, parts in KINDS_OF_WORK.items() if any(part in name for part in parts)
            )
            shares[next(step_cost, "the rest")] += time / sum(times.values())
        yield results_page.row(model, *(f"{share:.1%}" for share in shares.values()))


def _depth(figures: dict[str, Any]) -> Iterable[str]:
    yield "Seconds of a step at nano, batch 16, and at the size of the reproduction (width 64, rows of 64, batch"
    yield "32): as many layers stored as run, and one stored layer shared by all. A step of no layer takes more in"
    yield "seconds than in FLOPs, so a run of shallow steps saves less in seconds. How much less is said for runs"
    yield "whose steps take exactly these seconds, each stage at its stored layers and drawn depths."
    for kind, cells in figures.items():
        times = {(cell["stored"], cell["depth"]): median(cell["seconds"]) for cell in cells}
        depths = sorted({depth for _, depth in times})
        stored, shared = ([times[(n or d, d)] for d in depths] for n in (0, 1))
        slope, base = np.polyfit(depths, stored, 1)
        rest = max(abs(t - base - slope * d) / t for d, t in zip(depths, stored, strict=True))
        yield ""
        yield (
            f"{kind}: t = {base * 1e3:.1f} ms + {slope * 1e3:.1f} ms x depth, largest residual {rest:.1%}; "
            f"sharing one layer takes {median(b / a for a, b in zip(stored, shared, strict=True)):.2f} of that."
        )
        if kind.endswith(" width 64"):
            yield ""
            yield from _expected(kind.split()[0], times, base / slope)
        yield ""
        yield from results_page.table(("depth", *map(str, depths)))
        yield results_page.row("stored, ms", *(f"{1e3 * t:.0f}" for t in stored))
        yield results_page.row("shared, ms", *(f"{1e3 * t:.0f}" for t in shared))


def _expected(kind: str, times: Mapping[tuple[int, int], float], base: float) -> Iterable[str]:
    """The ratios of seconds to FLOPs saved by the reproduction's methods.

    Args:
        kind: of the model.
        times: seconds of a step by stored layers and depth.
        base: what a step takes at no depth, in layers.
    """
    plans = {
        method: plan_of(list(ReproductionCell(kind, method, TUNED[kind, method], 0).words))
        for method in ("scratch", *GROWN)
    }
    seconds = {
        method: sum(
            n * times[stage.stage.layers, d] for stage in plan.stages for d, n in stage.depth_counts.items()
        )
        for method, plan in plans.items()
    }
    cost = plans["scratch"].step_cost
    fixed = cost.flops(0, 0) / (cost.flops(1, 0) - cost.flops(0, 0))
    ratios = {
        method: (1 - seconds[method] / seconds["scratch"]) / (1 - plans[method].flops / plans["scratch"].flops)
        for method in GROWN
    }
    expected = ", ".join(f"`{method}` {ratio:.2f}" for method, ratio in ratios.items())
    yield (
        f"At no depth a step takes {base:.2f} layers in seconds and {fixed:.2f} in FLOPs; seconds saved / "
        f"FLOPs saved would be {expected}."
    )


def _whole_run(figures: dict[str, Any]) -> Iterable[str]:
    yield "`experiment=apollo_*` and `experiment=scratch_*`, 200 steps each, in turns; training seconds,"
    yield "summed up over all pairs of runs [of each pair]."
    yield from _saved(figures, ["apollo"], 0.97)


def _reproduction(figures: dict[str, Any]) -> Iterable[str]:
    yield "Runs of `make reproduce` in an eighth of their steps, in turns; what the whole budget of each is to"
    yield "that of scratch, in FLOPs and in training seconds, at width 64 and at that of nano."
    yield from _saved(figures, GROWN, 0.95)


def _saved(figures: dict[str, Any], methods: Sequence[str], bar: float) -> Iterable[str]:
    yield ""
    yield from results_page.table(("", "pairs", "FLOPs saved", "seconds saved", "seconds / FLOPs", "bar"))
    for kind, pairs in figures.items():
        for method in methods:
            flops, seconds = (_share(pairs, method, what) for what in ("flops", "train_seconds"))
            ratio = seconds / flops
            each = [_share([pair], method, "train_seconds") / _share([pair], method, "flops") for pair in pairs]
            spread = f"{ratio:.2f} [{min(each):.2f} - {max(each):.2f}]"
            yield results_page.row(
                f"{kind} {method}",
                str(len(pairs)),
                f"{flops:.1%}",
                f"{seconds:.1%}",
                spread,
                f"{_met(ratio >= bar)} {bar}",
            )


def _share(pairs: Sequence[dict[str, Any]], method: str, what: str) -> float:
    """Share of scratch's cost that a method saved, over all pairs."""
    return 1 - sum(pair[method][what] for pair in pairs) / sum(pair["scratch"][what] for pair in pairs)


def _around(figures: dict[str, Any]) -> Iterable[str]:
    yield "Of a step at nano, batch 32, on a terminal with W&B offline; its recorder is a process of its own."
    yield ""
    names = list(next(iter(figures.values()))["parts"])
    yield from results_page.table(("", "step", *names, "in all", "bar", "recorder, CPU"))
    for kind, found in figures.items():
        step, parts = found["step_seconds"], found["parts"]
        total = sum(parts.values()) / step
        yield results_page.row(
            kind,
            f"{step * 1e3:.0f} ms",
            *(f"{parts[name] * 1e3:.2f} ms" for name in names),
            f"{total:.2%}",
            f"{_met(total < 0.01)} 1%",
            f"{found['recorder_cpu_seconds'] / step:.2%}",
        )


def _checkpoint(figures: dict[str, Any]) -> Iterable[str]:
    yield "At nano: weights, AdamW's moments, checksums, all synced to the disk and renamed."
    yield ""
    yield from results_page.table(("", "parameters", "ms", "bar"))
    for kind, found in figures.items():
        times = [1e3 * t for t in found["seconds"]]
        yield results_page.row(
            kind, f"{found['parameters']:,}", _spread(times, ".0f"), f"{_met(median(times) < 50)} 50"
        )


def _start(figures: dict[str, Any]) -> Iterable[str]:
    yield "Seconds from the command on, with a warm cache; `import torch` alone for comparison."
    yield ""
    yield from results_page.table(("", "seconds", "bar"))
    bars = {"help": 1.0, "first update": 6.0}
    for name, times in figures.items():
        bar = f"{_met(median(times) < bars[name])} {bars[name]:g}" if name in bars else ""
        yield results_page.row(name, _spread(times, ".2f"), bar)


def _memory(figures: dict[str, Any]) -> Iterable[str]:
    yield "Peak resident memory of a stage at batch 32, every micro-step at the full depth of 12."
    yield ""
    yield from results_page.table(("", "layers", "plan says", "measured", "ratio", "bar"))
    for model, stages in figures.items():
        for stage in stages:
            ratio = stage["plan"] / stage["measured"]
            sizes = (f"{stage[name] / 1e9:.2f} GB" for name in ("plan", "measured"))
            yield results_page.row(
                model, str(stage["layers"]), *sizes, f"{ratio:.2f}", f"{_met(abs(ratio - 1) <= 0.1)} 10%"
            )


def _data(figures: dict[str, Any]) -> Iterable[str]:
    pydocs, scale, reading = figures["pydocs"], figures["scale"], figures["reading"]
    yield "Reading, splitting, hashing, tokenizing and packing beside `encode_batch` alone, in turns, on all cores."
    yield "Cores busy are CPU seconds divided by seconds."
    yield ""
    yield from results_page.table(
        ("", "MB/s", "encode_batch alone", "ratio", "cores busy", "of encode_batch", "bar")
    )
    for kind in ("gpt", "bert"):
        found = figures[kind]["speed"]
        rates = {
            name: [found["bytes"] / 1e6 / turn["seconds"] for turn in found[name]] for name in ("ours", "library")
        }
        ratio = median(ours / theirs for ours, theirs in zip(rates["ours"], rates["library"], strict=True))
        spread = [_spread(rates[name], ".2f") for name in ("ours", "library")]
        busy = [f"{_busy(found[name]):.2f}" for name in ("ours", "library")]
        yield results_page.row(kind, *spread, f"{ratio:.2f}", *busy, f"{_met(ratio >= 0.8)} 0.8")
    yield ""
    yield (
        f"{scale['bytes'] / 1e9:.2f} GB in one file ({scale['distinct_bytes'] / 1e6:.0f} MB of text, repeated): "
        f"{scale['documents']:,} documents, {scale['copies']:,} exact copies, {scale['tokens']:,} tokens, BERT."
    )
    yield ""
    yield from results_page.table(("", "figure", "bar"))
    peak = max(scale["peak_bytes"], scale["training_peak_bytes"]) / 1e9
    for name, title in (("training", "learning the tokenizer"), ("packing", "tokenizing and packing")):
        span = scale[name]
        yield results_page.row(
            title, f"{span['seconds']:.0f} s, {_busy([span]):.2f} of {scale['cores']} cores busy", ""
        )
    yield results_page.row(
        "peak memory, packing", f"{scale['peak_bytes'] / 1e9:.2f} GB", f"{_met(peak < 1.5)} 1.5 GB"
    )
    yield results_page.row("peak memory, training at nano", f"{scale['training_peak_bytes'] / 1e9:.2f} GB", "")
    opening = scale["opening"]["seconds"]
    yield results_page.row("opening the cache", f"{opening:.2f} s", f"{_met(opening < 1)} 1 s")
    share = reading["batch_seconds"] / reading["step_seconds"]
    step = f"{reading['batch_seconds'] * 1e3:.2f} of {reading['step_seconds'] * 1e3:.0f} ms, {share:.2%}"
    yield results_page.row("making a batch, of a step at nano", step, f"{_met(share < 0.01)} 1%")
    yield ""
    yield f"`pydocs` on this installation: {pydocs['documents']:,} documents, {pydocs['bytes']:,} bytes."


def _busy(spans: Sequence[dict[str, float]]) -> float:
    """Median of CPU seconds over seconds."""
    return median(span["cpu_seconds"] / span["seconds"] for span in spans)


def _gpu(figures: dict[str, Any]) -> Iterable[str]:
    (device,) = {found["device"] for found in figures.values()}
    yield f"{device}: bf16, 12 layers, vocabulary 16384, 16384 tokens a step in rows of 512, of 1024 for gpt base;"
    yield "HF's Trainer as it comes, which compiles nothing, and with `torch_compile=True`. MFU of the rate at"
    yield "8192^3 in the same turns."
    yield ""
    yield from results_page.table(("", "ms a step", "tokens/s", *GPU_PEERS.values(), "MFU", "bars"))
    for model, found in sorted(figures.items(), key=lambda of: (of[0].split()[0], of[1]["flops"])):
        dense = found["seconds"]["dense"]
        for name, title in {**GPU_OURS, **GPU_PEERS}.items():
            if not (times := found["seconds"].get(name)):
                continue
            share = median(
                found["flops"] / one * unit / found["dense_flops"] for one, unit in zip(times, dense, strict=True)
            )
            beside = {
                peer: median(its / mine for its, mine in zip(found["seconds"][peer], times, strict=True))
                for peer in GPU_PEERS
                if peer in found["seconds"]
            }
            size, milliseconds, bars = model.split()[1], 1e3 * median(times), []
            if name in GPU_OURS and size == "base":
                bars = [f"{_met(share >= 0.55)} MFU 55%"]
            elif name in GPU_OURS:
                bars = [f"{_met(milliseconds <= GPU_BARS[size])} {GPU_BARS[size]} ms"]
            yield results_page.row(
                f"{model}: {title.removeprefix('times ')}",
                f"{milliseconds:.1f}",
                _spread([found["tokens"] / t for t in times], ".0f"),
                *(f"{beside[peer]:.2f}" if peer in beside else "" for peer in GPU_PEERS),
                f"{share:.0%}",
                ", ".join(bars),
            )
    yield ""
    yield "Where a step takes as long at a smaller width, the device probably waits for the host, which starts"
    yield "every layer by itself; that was not profiled. What is there for a GPU: bf16 autocast, attention through"
    yield "SDPA, blocks compiled once for all depths (a test counts the graphs), fused AdamW, pinned batches copied"
    yield "ahead on a stream of their own, and no wait for the device between two rows of the log (tests marked"
    yield "`gpu` have CUDA refuse them)."


def _met(holds: bool) -> str:
    return "met:" if holds else "**not met:**"


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} [{min(values):{form}} - {max(values):{form}}]"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
