"""What a step takes beyond one machine, on paper: `python -m benchmarks.scaling`, a minute; benchmarks/RESULTS.md.

`python -m benchmarks.scaling here` measures one and two processes on this machine, which wants two quiet cores.

Seconds of a block are measured here: on a GPU those of every model, kept in blocks.json, which then predict for
clusters of that GPU; on a CPU those of the small ones alone. Published figures stand in for a GPU never seen. All
else are closed forms, of `apollo_cli.models` where it has
them. Nothing on this page was seen on a cluster.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, log2
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import torch

from apollo_cli import files
from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.models.activation_memory import ActivationMemory
from apollo_cli.models.build import build, num_parameters
from apollo_cli.models.communication import Kind, gathered_bytes, reduced_bytes, state_bytes, step_bytes
from apollo_cli.models.flops import FORWARD_AND_BACKWARD, forward_flops
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch
from apollo_cli.training.memory import num_pieces
from benchmarks import results

TITLE = "Beyond one machine: predicted"
BLOCKS = Path(__file__).with_name("blocks.json")  # as last measured on a GPU
_HERE = "Processes here, measured"
KINDS: tuple[Kind, ...] = ("ddp", "fsdp")
DEVICES = (8, 64, 512)
_BUCKET = 25 * 2**20  # bytes: DDP's default (bucket_cap_mb)
_UPDATE = 28  # bytes a parameter that AdamW moves: reads weight, gradient, two moments; writes all but the gradient
_STEPS = 10_000  # of a run whose stages are weighed; any number that rounds to whole shares


@dataclass(frozen=True)
class Cluster:
    """Nodes of eight GPUs, by published figures.

    Attributes:
        name: for people.
        peak: bf16 FLOP/s of a GPU, dense.
        utilisation: share of it that forward and backward passes reach.
        memory: bytes of a GPU.
        memory_bandwidth: bytes/s of it.
        link: bytes/s that a GPU sends to others of its node.
        network: bytes/s that a GPU's own adapter sends to other nodes.
        reached: share of link and network that a collective gets.
        source: of the figures.
        of_node: GPUs in a node.
        gpu: what its name says, for rates measured on one.
    """

    name: str
    peak: float
    utilisation: float
    memory: float
    memory_bandwidth: float
    link: float
    network: float
    reached: float
    source: str
    of_node: int = 8
    gpu: str = ""

    def bandwidth(self, devices: int) -> float:
        """Bytes/s that each device sends in a collective.

        NCCL lays as many rings through a node as it has adapters, and each ring leaves by another one: together
        they are as fast as all adapters of a node, and no faster than a GPU's links.
        """
        if devices <= self.of_node:
            return self.reached * self.link
        return self.reached * min(self.link, self.of_node * self.network)


CLUSTERS = (
    Cluster(
        name="DGX H100",
        peak=989e12,
        utilisation=0.45,
        memory=80e9,
        memory_bandwidth=3.35e12,
        link=450e9,
        network=50e9,
        reached=0.8,
        source="NVIDIA's data sheets: H100 SXM 989 TFLOP/s bf16 without sparsity, 80 GB at 3.35 TB/s, NVLink "
        "900 GB/s both ways together; DGX H100 eight InfiniBand adapters of 400 Gb/s",
        gpu="H100",
    ),
    Cluster(
        name="A100 and 100 Gb/s Ethernet",
        peak=312e12,
        utilisation=0.45,
        memory=80e9,
        memory_bandwidth=2.039e12,
        link=300e9,
        network=12.5e9 / 8,
        reached=0.8,
        source="NVIDIA's data sheet: A100 SXM 312 TFLOP/s bf16 without sparsity, 80 GB at 2.039 TB/s, NVLink "
        "600 GB/s both ways together; one adapter of 100 Gb/s for all eight GPUs of a node",
        gpu="A100",
    ),
)
_HOP_INSIDE, _HOP_OUTSIDE, _TREE_INSIDE = 3.4e-6, 14e-6, 4e-6  # seconds: NCCL's own model (src/graph/tuning.cc)


@dataclass(frozen=True)
class Case:
    """A model, and what a device reads of it in a step.

    Attributes:
        name: for people.
        shape: of the model, at its target depth.
        rows: of each device, in one pass.
        predictions: of a row.
    """

    name: str
    model_config: ModelConfig
    rows: int
    predictions: int

    def forward_flops(self, depth: int, head: bool) -> int:
        """Of one device: so many layers, and the head if it is asked for."""
        predictions = self.rows * self.predictions if head else 0
        return forward_flops(self.model_config, self.rows, self.model_config.positions, depth, predictions)


CASES = (
    Case("BERT-Base", ModelConfig("bert", 30_522, 512, 768, 12, 3072, 12), 48, 77),
    Case("GPT-2 XL", ModelConfig("gpt", 50_257, 1024, 1600, 25, 6400, 48), 8, 1023),
    Case("GPT 7B", ModelConfig("gpt", 50_257, 2048, 4096, 32, 16_384, 32), 4, 2047),
)
SCRATCH, METHODS = "scratch_gpt", ("apollo_gpt", "stackbert", "gstack", "midas")  # experiments that are shipped


@dataclass(frozen=True)
class Step:
    """Seconds of a step on every device.

    Attributes:
        compute: forward and backward, and AdamW.
        communication: of all collectives, one after the other.
        overlapped: of the step, where collectives go on beside the products as far as they can.
    """

    compute: float
    communication: float
    overlapped: float

    @property
    def in_turns(self) -> float:
        """Of the step, where nothing overlaps."""
        return self.compute + self.communication


def ring_seconds(sent: float, devices: int, cluster: Cluster) -> float:
    """Of one turn of a ring, in which each device sends so many bytes: to gather, or to scatter sums.

    sent / B + hops, W - 1 of them in line (Patarasuk and Yuan 2009); those that leave a node take longer.
    """
    outside = ceil(devices / cluster.of_node) - 1
    hops = (devices - 1 - outside) * _HOP_INSIDE + outside * _HOP_OUTSIDE
    return sent / cluster.bandwidth(devices) + hops


def sum_seconds(sent: float, devices: int, cluster: Cluster) -> float:
    """Of an all-reduce in which each device sends so many bytes: the faster of two turns of a ring and a tree.

    A tree goes up and down: along the node, and over log2 of the nodes (NCCL 2.4's double binary trees).
    """
    ring = 2 * ring_seconds(sent / 2, devices, cluster)
    inside, nodes = min(devices, cluster.of_node) - 1, ceil(devices / cluster.of_node)
    tree = sent / cluster.bandwidth(devices) + 2 * (inside * _TREE_INSIDE + log2(nodes) * _HOP_OUTSIDE)
    return min(ring, tree)


def step(kind: Kind, case: Case, layers: int, depth: int, devices: int, cluster: Cluster, rate: float) -> Step:
    """Of a step that runs `depth` layers, of which `layers` are stored, with so many FLOP/s on each device."""
    block = case.forward_flops(1, head=False) / rate
    head = case.forward_flops(0, head=True) / rate
    parameters, rest = num_parameters(case.model_config, layers), num_parameters(case.model_config, 0)
    held = parameters if kind == "ddp" else parameters / devices
    update = _UPDATE * held / cluster.memory_bandwidth
    compute = FORWARD_AND_BACKWARD * (depth * block + head) + update
    if kind == "ddp":
        return _ddp(parameters, rest, devices, cluster, compute, 2 * depth * block)
    return _fsdp(case.model_config, layers, depth, devices, cluster, compute, block)


def _ddp(parameters: int, rest: int, devices: int, cluster: Cluster, compute: float, backward: float) -> Step:
    """Sums the blocks' gradients, bucket by bucket, while the backward pass goes on (Li 2020, section 3.2.3).

    The token embedding is the decoder too, so its gradient is there at the end alone: nothing hides that sum.
    """
    total, late = reduced_bytes("ddp", parameters, devices), reduced_bytes("ddp", rest, devices)
    buckets = ceil(4 * (parameters - rest) / _BUCKET)
    early = buckets * sum_seconds((total - late) / buckets, devices, cluster)
    tail = sum_seconds(late, devices, cluster)
    return Step(compute, early + tail, compute + max(0.0, early - backward) + tail)


def _fsdp(
    model_config: ModelConfig, layers: int, depth: int, devices: int, cluster: Cluster, compute: float, block: float
) -> Step:
    """Gathers the next block while one runs, and scatters the sums of its gradients behind it (Zhao 2023, 3.3).

    The first gathering, and what stands around the blocks (forward and backward), hide behind nothing.
    """
    rest = num_parameters(model_config, 0)
    one = reduced_bytes("fsdp", num_parameters(model_config, 1) - rest, devices)
    around = 2 * ring_seconds(gathered_bytes(model_config, 1, 0, devices, True) / 2, devices, cluster)
    gather, scatter = (ring_seconds(sent, devices, cluster) for sent in (one / 2, one))  # bf16, fp32
    tail = ring_seconds(reduced_bytes("fsdp", rest, devices), devices, cluster)
    of_backward = gather + layers / depth * scatter
    hidden = (depth - 1) * min(block, gather) + depth * min(2 * block, of_backward)
    communication = around + depth * (gather + of_backward) + tail
    return Step(compute, communication, compute + communication - hidden)


def memory_bytes(kind: Kind, case: Case, layers: int, depth: int, devices: int) -> int:
    """Peak of each device: the state as it lies there, and what it works on."""
    footprint = ActivationMemory(case.model_config, "cuda", bf16=True)
    seq_len = case.model_config.positions
    pieces = num_pieces(footprint, case.rows, seq_len, depth, layers)
    state = state_bytes(kind, case.model_config, layers, devices, bf16=True)
    return state + footprint.working_bytes(case.rows * seq_len, depth, case.rows * case.predictions, pieces)


@dataclass(frozen=True)
class Mean:
    """Of a step of a whole run: model FLOPs of a device, bytes that it sends, and seconds."""

    flops: float
    sent: float
    seconds: float


def mean(kind: Kind, case: Case, experiment: str, devices: int, cluster: Cluster, rate: float) -> Mean:
    """Over the stages of a shipped experiment and the depths that its sampler draws."""
    config = _config(experiment, case.model_config.layers)
    sampler, target = config.sampler.build(), case.model_config.layers
    flops = sent = seconds = 0.0
    for index, stage in enumerate(config.schedule.over(_STEPS).stages):
        for depth, p in sampler.in_stage(index).probabilities(stage.layers, target).items():
            share = p * stage.steps / _STEPS
            flops += share * FORWARD_AND_BACKWARD * case.forward_flops(depth, head=True)
            sent += share * step_bytes(kind, case.model_config, stage.layers, depth, devices, True, passes=1)
            seconds += share * step(kind, case, stage.layers, depth, devices, cluster, rate).overlapped
    return Mean(flops, sent, seconds)


@cache
def _config(experiment: str, layers: int) -> Config:
    return parse(compose_values([f"experiment={experiment}", f"model.layers={layers}"]))


def block_seconds(model_config: ModelConfig, rows: int, device: torch.device) -> float:
    """Of a block's forward and backward pass here, from models of two and six layers; the fastest of some.

    On a CPU seconds of one core's work, so that others on the machine count little.
    """
    shallow, deep = (_fastest(model_config, depth, rows, device) for depth in (2, 6))
    return (deep - shallow) / 4


def _fastest(model_config: ModelConfig, depth: int, rows: int, device: torch.device, repeats: int = 7) -> float:
    model = build(model_config, depth).to(device)
    for block in model.blocks if device.type == "cuda" else ():
        block.compile()  # as in a run
    tokens = torch.randint(model_config.vocabulary, (rows, model_config.positions), device=device)
    batch = Batch(tokens, torch.arange(rows, device=device), tokens[:, 0])  # few predictions: the head is not asked
    clock = process_time if device.type == "cpu" else perf_counter
    times = []
    for _ in range(repeats):
        start = clock()
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            loss = model.loss(batch, layer_map("nearest", depth, depth))
        loss.backward()
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return min(times)


def measured() -> Iterator[tuple[str, float, float]]:
    """What is measured here: the name of a model, seconds of a block, and FLOP/s."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    small = [
        Case(f"{kind} {size}", ModelConfig(kind, 4096, 128, width, heads, 4 * width, 12), 16, 1)
        for kind in ("bert", "gpt")
        for size, width, heads in (("nano", 128, 2), ("mini", 256, 4))
    ]
    for case in CASES if on_gpu else small:
        seconds = block_seconds(case.model_config, case.rows, device)
        yield case.name, seconds, FORWARD_AND_BACKWARD * case.forward_flops(1, head=False) / seconds


def report(found: Sequence[tuple[str, float, float]], section: Sequence[str] = ()) -> Iterator[str]:
    """The page.

    Args:
        found: as `measured` gives it on a CPU.
        section: as `here` gives it; none keeps what stands there.
    """
    yield "Made by `python -m benchmarks.scaling`. Nothing here was seen on a cluster: read the assumptions first."
    yield from ("", "## Assumptions", "")
    yield from _assumptions()
    yield from ("", "## Blocks, measured", "")
    of_gpu = json.loads(BLOCKS.read_text())
    yield f"CPU, torch {torch.__version__}, one thread, seconds of its CPU: forward and backward pass of one block."
    yield from ("", *_blocks(found), "", "## Blocks, measured on a GPU", "")
    yield f"{of_gpu['device']}, torch {of_gpu['torch']}, bf16, compiled, `python -m benchmarks.scaling` there."
    yield from ("", *_blocks(of_gpu["blocks"]))
    seen = {name: rate for name, _, rate in of_gpu["blocks"]}
    rates = {cluster: seen if cluster.gpu in of_gpu["device"] else {} for cluster in CLUSTERS}
    for cluster in CLUSTERS:
        yield from ("", f"## On {cluster.name}", "")
        yield from _steps(cluster, rates[cluster])
    if kept := section or results.sections(TITLE).get(_HERE, "").splitlines():
        yield from ("", *kept)
    yield from ("", "## What growth saves of it", "")
    yield from _stages()
    for cluster in CLUSTERS:
        yield from ("", *_methods(cluster, rates[cluster]))


def _blocks(found: Sequence[tuple[str, float, float]]) -> Iterable[str]:
    rows = ((name, f"{1e3 * s:.2f}", f"{rate:.3e}") for name, s, rate in found)
    return results.table(("", "ms a block", "FLOP/s"), rows)


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
    yield from results.table(head)
    for case in CASES:
        layers = case.model_config.layers
        rate = rates.get(case.name, cluster.peak * cluster.utilisation)
        for devices in DEVICES:
            for kind in KINDS:
                found = step(kind, case, layers, layers, devices, cluster, rate)
                memory = memory_bytes(kind, case, layers, layers, devices)
                yield results.row(
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
    yield from results.table(("model", "", *(f"N = {n} of 12" for n in (3, 6, 9, 12))))
    sampler = parse(compose_values(["sampler=lvps"])).sampler.build()
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
            yield results.row(
                case.name, kind, *(f"{files.in_units(round(n))} ({n / cells[-1]:.0%})" for n in cells)
            )


def _methods(cluster: Cluster, rates: dict[str, float], devices: int = 64) -> Iterable[str]:
    yield (
        f"A whole run on {devices} GPUs of {cluster.name}, in parts of scratch's at equal steps: "
        "FLOPs / bytes sent / seconds."
    )
    yield ""
    yield from results.table(("model", "", *METHODS))
    for case in CASES:
        rate = rates.get(case.name, cluster.peak * cluster.utilisation)
        for kind in KINDS:
            whole = mean(kind, case, SCRATCH, devices, cluster, rate)
            cells = (mean(kind, case, name, devices, cluster, rate) for name in METHODS)
            yield results.row(
                case.name,
                kind,
                *(
                    f"{m.flops / whole.flops:.0%} / {m.sent / whole.sent:.0%} / {m.seconds / whole.seconds:.0%}"
                    for m in cells
                ),
            )


def here(most: int = 2, steps: int = 40) -> Iterator[str]:
    """Tokens a second of a GPT of nano size on some processes of a thread each: the section of the page."""
    rates = [_tokens_per_second(devices, steps) for devices in range(1, most + 1)]
    yield f"## {_HERE}"
    yield ""
    yield "GPT nano, 16 sequences of 128 tokens a step, all 12 layers, ddp over gloo, one thread a process:"
    yield ""
    yield from results.table(
        ("processes", "tokens/s", "of the ideal"),
        ((str(n), f"{rate:.0f}", f"{rate / n / rates[0]:.0%}") for n, rate in enumerate(rates, 1)),
    )


def _tokens_per_second(devices: int, steps: int) -> float:
    """The median over a run's rows, without the first, which pays for warming up."""
    words = ["model=gpt", "schedule=scratch", "sampler=full", "tracking=local", f"devices={devices}"]
    words += [f"budget.steps={steps}", "log.every=2", f"eval.every={steps}", "eval.rows=16", "device=cpu"]
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "apollo_cli.train", *words, f"hydra.run.dir={folder}/run"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        rows = (json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").open(encoding="utf-8"))
        rates = [row["perf/tokens_per_second"] for row in rows if "perf/tokens_per_second" in row]
    return median(rates[1:])


def main(words: Sequence[str]) -> None:
    """Measures, predicts and writes; with `here` among the words also what processes do on this machine.

    On a GPU it writes down what it measured, and no page.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = list(measured())
    if torch.cuda.is_available():
        seen = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "blocks": found}
        files.write_json(BLOCKS, seen)
        return
    section = list(here()) if "here" in words else []
    results.put(TITLE, report(found, section))


if __name__ == "__main__":
    main(sys.argv[1:])
