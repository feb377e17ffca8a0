"""The page on steps beyond one machine, from what `benchmarks.run_scaling` measured and from closed forms."""

import json
from collections.abc import Iterable, Iterator, Sequence

import torch

from apollo_cli import files
from apollo_cli.models.communication import step_bytes
from benchmarks import archives, results_page
from benchmarks.configs import config_of
from benchmarks.scaling import CASES, CLUSTERS, DEVICES, KINDS, METHODS, SCRATCH, Cluster, mean, memory_bytes, step

TITLE = "Beyond one machine: predicted"
HERE = "Processes here, measured"
BLOCKS = archives.RESULTS / "blocks.json"  # as last measured on a GPU


def report(found: Sequence[tuple[str, float, float]], section: Sequence[str] = ()) -> Iterator[str]:
    """Lines of the page.

    Args:
        found: as `run_scaling.measured` gives it on a CPU.
        section: as `run_scaling.here` gives it; none keeps the section of the page.
    """
    yield "Made by `python -m benchmarks.run_scaling`."
    yield "Nothing here was measured on a cluster: read the assumptions first."
    yield from ("", "## Assumptions", "")
    yield from _assumptions()
    yield from ("", "## Blocks, measured", "")
    of_gpu = json.loads(BLOCKS.read_text())
    yield f"CPU, torch {torch.__version__}, one thread, seconds of its CPU: forward and backward pass of one block."
    yield from ("", *_blocks(found), "", "## Blocks, measured on a GPU", "")
    yield f"{of_gpu['device']}, torch {of_gpu['torch']}, bf16, compiled, `python -m benchmarks.run_scaling` there."
    yield from ("", *_blocks(of_gpu["blocks"]))
    seen = {name: rate for name, _, rate in of_gpu["blocks"]}
    rates = {cluster: seen if cluster.gpu in of_gpu["device"] else {} for cluster in CLUSTERS}
    for cluster in CLUSTERS:
        yield from ("", f"## On {cluster.name}", "")
        yield from _steps(cluster, rates[cluster])
    if kept := section or results_page.sections(TITLE).get(HERE, "").splitlines():
        yield from ("", *kept)
    yield from ("", "## What growth saves of it", "")
    yield from _stages()
    for cluster in CLUSTERS:
        yield from ("", *_methods(cluster, rates[cluster]))


def _blocks(found: Sequence[tuple[str, float, float]]) -> Iterable[str]:
    rows = ((name, f"{1e3 * s:.2f}", f"{rate:.3e}") for name, s, rate in found)
    return results_page.table(("", "ms a block", "FLOP/s"), rows)


def _assumptions() -> Iterator[str]:
    for cluster in CLUSTERS:
        yield f"- {cluster.name}: {cluster.source}."
    yield (
        "- Products are as fast as measured on that GPU (below); on one never seen they reach "
        f"{CLUSTERS[0].utilisation:.0%} of the peak while nothing is sent. "
        "With all that is sent Llama 3 had 38 to 43 % on H100 (arXiv 2407.21783, table 4), and Megatron 44 to 52 % "
        "on A100, recomputed activations counted (arXiv 2104.04473, table 1). Small blocks reach less."
    )
    yield (
        f"- Collectives get {CLUSTERS[0].reached:.0%} of the published bandwidth, on an idle network. Rings go "
        "through all adapters of a node; a hop takes 3.4 us inside a node and 14 us outside (NCCL, "
        "src/graph/tuning.cc, Simple protocol), all-reduce may be a tree."
    )
    yield "- ddp: fp32 gradients in buckets of 25 MiB beside the backward pass; the tied embedding's after it."
    yield (
        "- fsdp: a block's bf16 weights gathered forward and backward each time it runs, the next one's while one "
        "runs, and what stands around the blocks in fp32; fp32 gradients scattered once a block that is stored. "
        "Sharded over all devices: over the nodes of a large cluster the hops of a ring add up."
    )
    yield "- AdamW moves 28 bytes a parameter that a device holds, at the bandwidth of its memory."
    yield (
        "- One pass a step: with more of them ddp sends no more, and fsdp gathers more. A GPU has as many rows on "
        "whatever number. No activation is computed twice. Reading rows, evaluation, checkpoints, slow or failing "
        "nodes and what the caching allocator wastes are left out."
    )
    yield "- `a - b`: seconds where all overlaps that can, and where nothing does. Efficiency is compute over `a`."


def _steps(cluster: Cluster, rates: dict[str, float]) -> Iterator[str]:
    head = ("model", "GPUs", "", "tokens a step", "compute, ms", "sent by each", "step, ms", "efficiency", "memory")
    yield from results_page.table(head)
    for case in CASES:
        layers = case.model_config.layers
        rate = rates.get(case.name, cluster.peak * cluster.utilisation)
        for devices in DEVICES:
            for kind in KINDS:
                found = step(kind, case, layers, layers, devices, cluster, rate)
                memory = memory_bytes(kind, case, layers, layers, devices)
                yield results_page.row(
                    case.name,
                    str(devices),
                    kind,
                    f"{devices * case.rows * case.model_config.positions:,}",
                    f"{1e3 * found.compute:.0f}",
                    files.in_units(step_bytes(kind, case.model_config, layers, layers, devices, True, passes=1)),
                    f"{1e3 * found.overlapped:.0f} - {1e3 * found.in_turns:.0f}",
                    f"{found.compute / found.overlapped:.0%}",
                    files.in_units(memory) + ("" if memory <= cluster.memory else ": too much"),
                )


def _stages(devices: int = 64) -> Iterator[str]:
    yield f"What each of {devices} GPUs sends in a step with N stored layers, the mean over LVPS's depths (k = 2):"
    yield ""
    parts = (4, 2, 4 / 3, 1)
    yield from results_page.table(("model", "", *(f"N = {n} of 12" for n in (3, 6, 9, 12))))
    sampler = config_of(["sampler=lvps"]).sampler.build()
    for case in CASES:
        for kind in KINDS:
            target, cells = case.model_config.layers, []
            for part in parts:
                layers = round(target / part)
                cells.append(
                    sum(
                        p * step_bytes(kind, case.model_config, layers, depth, devices, True, passes=1)
                        for depth, p in sampler.probabilities(layers, target).items()
                    )
                )
            yield results_page.row(
                case.name, kind, *(f"{files.in_units(round(n))} ({n / cells[-1]:.0%})" for n in cells)
            )


def _methods(cluster: Cluster, rates: dict[str, float], devices: int = 64) -> Iterable[str]:
    yield (
        f"A whole run on {devices} GPUs of {cluster.name}, in parts of scratch's at equal steps: "
        "FLOPs / bytes sent / seconds."
    )
    yield ""
    yield from results_page.table(("model", "", *METHODS))
    for case in CASES:
        rate = rates.get(case.name, cluster.peak * cluster.utilisation)
        for kind in KINDS:
            whole = mean(kind, case, SCRATCH, devices, cluster, rate)
            cells = (mean(kind, case, name, devices, cluster, rate) for name in METHODS)
            yield results_page.row(
                case.name,
                kind,
                *(
                    f"{m.flops / whole.flops:.0%} / {m.sent / whole.sent:.0%} / {m.seconds / whole.seconds:.0%}"
                    for m in cells
                ),
            )
