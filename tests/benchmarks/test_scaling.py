"""Predictions for clusters, by hand."""

import pytest

from apollo_cli.models.communication import step_bytes
from apollo_cli.models.model_config import ModelConfig
from benchmarks import render_scaling, scaling
from benchmarks.scaling import CASES, CLUSTERS, Case, Cluster

US = 1e-6
CLUSTER = Cluster("made", 2e12, 0.5, 1e9, 1e12, link=100e9, network=5e9, reached=0.5, source="")
# A block of 3280 parameters and 1760 around, as in tests/models/test_communication.py
CASE = Case("made", ModelConfig("gpt", vocabulary=100, positions=8, hidden=16, heads=2, ffn=64, layers=6), 2, 7)


def test_within_a_node_links_decide_and_beyond_it_all_adapters_together() -> None:
    assert CLUSTER.bandwidth(8) == 50e9
    assert CLUSTER.bandwidth(16) == 20e9  # half of eight times 5 GB/s
    assert scaling.ring_seconds(1e9, 8, CLUSTER) == pytest.approx(0.02 + 7 * 3.4 * US)
    assert scaling.ring_seconds(1e9, 16, CLUSTER) == pytest.approx(0.05 + 14 * 3.4 * US + 14 * US)


def test_a_sum_takes_the_faster_way() -> None:
    assert scaling.sum_seconds(2e9, 8, CLUSTER) == pytest.approx(0.04 + 2 * 7 * 3.4 * US)  # a ring, twice
    # a tree over 64 nodes: 7 inside and 6 levels outside, up and down
    assert scaling.sum_seconds(2e9, 512, CLUSTER) == pytest.approx(0.1 + 2 * (7 * 4 + 6 * 14) * US)


def test_a_step_of_copies_by_hand() -> None:
    """A block 106,496 FLOPs forward, the head 44,800; three layers stored, six run, on four devices."""
    slow = scaling.step("ddp", CASE, 3, 6, 4, CLUSTER, rate=1e9)
    # three times what forward takes; 28 bytes for each of 11,600 parameters
    assert slow.compute == pytest.approx((3 * (6 * 106.496 + 44.8) + 0.3248) * US)
    early = 2 * (29_520 / 50e9 + 3 * 3.4 * US)  # of 59,040 bytes of the blocks' gradients, half a turn
    late = 2 * (5280 / 50e9 + 3 * 3.4 * US)
    assert slow.communication == pytest.approx(early + late)
    assert slow.overlapped == pytest.approx(slow.compute + late)  # the backward pass hides the rest
    fast = scaling.step("ddp", CASE, 3, 6, 4, CLUSTER, rate=1e12)
    assert fast.overlapped == pytest.approx(fast.compute + early - 2 * 6 * 0.106496 * US + late)
    assert fast.in_turns == pytest.approx(fast.compute + early + late)


def test_a_step_of_shards_by_hand() -> None:
    slow = scaling.step("fsdp", CASE, 3, 6, 4, CLUSTER, rate=1e9)
    assert slow.compute == pytest.approx((2051.328 + 0.0812) * US)  # a quarter of the parameters each
    hops = 3 * 3.4 * US
    gather, scatter = 4920 / 50e9 + hops, 9840 / 50e9 + hops  # 3/4 of 2 and 4 bytes of a block
    around, tail = 2 * (5280 / 50e9 + hops), 5280 / 50e9 + hops
    everything = around + 12 * gather + 3 * scatter + tail
    assert slow.communication == pytest.approx(everything)
    assert slow.overlapped == pytest.approx(slow.compute + around + gather + tail)
    fast = scaling.step("fsdp", CASE, 3, 6, 4, CLUSTER, rate=1e15)  # nothing to hide behind
    assert fast.overlapped == pytest.approx(fast.compute + everything, rel=1e-3)


def test_shards_leave_room() -> None:
    # 48 bytes a token; 600 bytes a token and layer; the logits twice; what is at work
    work = 48 * 16 + 16 * 3 * 600 + 2 * 4 * 14 * 100 + 4 * 16 * 6 * 30
    assert scaling.memory_bytes("ddp", CASE, 3, 3, 4) == 16 * 11_600 + work
    whole = 2 * 2 * 3280 + 4 * 1760 + 2 * 3280 + 4 * 1760 + 4 * 3280
    assert scaling.memory_bytes("fsdp", CASE, 3, 3, 4) == 16 * 2900 + whole + work


def test_a_run_is_the_mean_of_its_stages() -> None:
    case = CASES[0]
    few, all_of_them = (step_bytes("ddp", case.model_config, layers, layers, 64, True, 1) for layers in (3, 12))
    found = scaling.mean("ddp", case, "gstack", 64, CLUSTERS[0], 1e14)
    assert found.sent == pytest.approx(0.1 * few + 0.9 * all_of_them)
    whole = scaling.mean("ddp", case, "scratch_gpt", 64, CLUSTERS[0], 1e14)
    assert whole.seconds == pytest.approx(scaling.step("ddp", case, 12, 12, 64, CLUSTERS[0], 1e14).overlapped)
    assert found.seconds < whole.seconds


def test_bert_base_of_transformers_on_a_node() -> None:
    """BertForMaskedLM has 109,514,298 parameters: 7 bytes of each leave a device of eight."""
    lines = list(render_scaling._steps(CLUSTERS[0], {}))
    assert len(lines) == 2 + 18
    cells = lines[2].split(" | ")
    assert cells[:4] == ["| BERT-Base", "8", "ddp", "196,608"]
    assert cells[5] == "766.6 MB"
    # 24,576 tokens through 12 layers, 3696 predictions, at 45 % of 989 TFLOP/s; AdamW
    layers = 24_576 * 12 * (8 * 768**2 + 4 * 768 * 3072 + 4 * 768 * 512)
    head = 3696 * (2 * 768 * 30_522 + 2 * 768**2)
    assert cells[4] == f"{1e3 * (3 * (layers + head) / 445.05e12 + 28 * 109_514_298 / 3.35e12):.0f}" == "33"
