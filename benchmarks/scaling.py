"""Seconds, bytes and memory of a step on clusters that were never used: closed forms from published figures.

Assumptions and results are on the page that `benchmarks.render_scaling` makes.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil, log2

from apollo_cli.config.config import Config
from apollo_cli.models.activation_memory import ActivationMemory
from apollo_cli.models.build import num_parameters
from apollo_cli.models.communication import Kind, gathered_bytes, reduced_bytes, state_bytes, step_bytes
from apollo_cli.models.flops import FORWARD_AND_BACKWARD, forward_flops
from apollo_cli.models.model_config import ModelConfig
from benchmarks.configs import config_of

KINDS: tuple[Kind, ...] = ("ddp", "fsdp")
DEVICES = (8, 64, 512)
_BUCKET = 25 * 2**20  # bytes: DDP's default (bucket_cap_mb)
_UPDATE = 28  # bytes a parameter that AdamW moves: reads weight, gradient, two moments; writes all but the gradient
_STEPS = 10_000  # of a run whose stages are weighed; any number that rounds to whole shares


@dataclass(frozen=True)
class Cluster:
    """Nodes of eight GPUs, by published figures.

    Attributes:
        name: shown in tables.
        peak: bf16 FLOP/s of a GPU, dense.
        utilisation: share of it that forward and backward passes reach.
        memory: bytes of a GPU.
        memory_bandwidth: bytes/s of it.
        link: bytes/s that a GPU sends to others of its node.
        network: bytes/s that a GPU's own adapter sends to other nodes.
        reached: share of link and network that a collective gets.
        source: of the figures.
        of_node: number of GPUs in a node.
        gpu: part of the device's name, to find rates measured on one.
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

        NCCL builds as many rings through a node as it has adapters, and each ring uses another one: together they
        are as fast as all adapters of a node, and no faster than a GPU's links.
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
        name: shown in tables.
        model_config: at its target depth.
        rows: of each device, in one pass.
        predictions: of a row.
    """

    name: str
    model_config: ModelConfig
    rows: int
    predictions: int

    def forward_flops(self, depth: int, head: bool) -> int:
        """Forward FLOPs of one device: `depth` layers, and the head if `head`."""
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
        communication: all collectives, one after the other.
        overlapped: the step, where collectives overlap with products as far as they can.
    """

    compute: float
    communication: float
    overlapped: float

    @property
    def in_turns(self) -> float:
        """Seconds of the step where nothing overlaps."""
        return self.compute + self.communication


def ring_seconds(sent: float, devices: int, cluster: Cluster) -> float:
    """Seconds of one turn of a ring, in which each device sends so many bytes: to gather, or to scatter sums.

    sent / B + hops, W - 1 of them in line (Patarasuk and Yuan 2009); those that leave a node take longer.
    """
    outside = ceil(devices / cluster.of_node) - 1
    hops = (devices - 1 - outside) * _HOP_INSIDE + outside * _HOP_OUTSIDE
    return sent / cluster.bandwidth(devices) + hops


def sum_seconds(sent: float, devices: int, cluster: Cluster) -> float:
    """Seconds of an all-reduce in which each device sends so many bytes: the faster of a ring and a tree.

    A ring turns twice. A tree sends up and down, along the node and over log2 of the nodes (NCCL 2.4's double
    binary trees).
    """
    ring = 2 * ring_seconds(sent / 2, devices, cluster)
    inside, nodes = min(devices, cluster.of_node) - 1, ceil(devices / cluster.of_node)
    tree = sent / cluster.bandwidth(devices) + 2 * (inside * _TREE_INSIDE + log2(nodes) * _HOP_OUTSIDE)
    return min(ring, tree)


def step(kind: Kind, case: Case, layers: int, depth: int, devices: int, cluster: Cluster, rate: float) -> Step:
    """Seconds of a step that runs `depth` layers from `layers` stored ones, with `rate` FLOP/s on each device."""
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
    """Sums the blocks' gradients, bucket by bucket, during the backward pass (Li 2020, section 3.2.3).

    The token embedding is the decoder too, so its gradient is complete only at the end: nothing hides that sum.
    """
    total, late = reduced_bytes("ddp", parameters, devices), reduced_bytes("ddp", rest, devices)
    buckets = ceil(4 * (parameters - rest) / _BUCKET)
    early = buckets * sum_seconds((total - late) / buckets, devices, cluster)
    tail = sum_seconds(late, devices, cluster)
    return Step(compute, early + tail, compute + max(0.0, early - backward) + tail)


def _fsdp(
    model_config: ModelConfig, layers: int, depth: int, devices: int, cluster: Cluster, compute: float, block: float
) -> Step:
    """Gathers the next block while one runs, then scatters the sums of its gradients (Zhao 2023, 3.3).

    Nothing hides the first gathering and the parameters around the blocks (forward and backward).
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
    """Peak of each device: its state and its activations."""
    footprint = ActivationMemory(case.model_config, "cuda", bf16=True)
    seq_len = case.model_config.positions
    state = state_bytes(kind, case.model_config, layers, devices, bf16=True)
    return state + footprint.working_bytes(case.rows * seq_len, depth, case.rows * case.predictions, 1)


@dataclass(frozen=True)
class Mean:
    """Means over the steps of a run: model FLOPs of a device, bytes that it sends, and seconds."""

    flops: float
    sent: float
    seconds: float


def mean(kind: Kind, case: Case, experiment: str, devices: int, cluster: Cluster, rate: float) -> Mean:
    """Means over the stages of a shipped experiment and the depths that its sampler draws."""
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
    return config_of([f"experiment={experiment}", f"model.layers={layers}"])
