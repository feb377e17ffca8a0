"""Bytes that data parallel training sends, and bytes of training state that each device holds, in closed form.

Every device has its own rows. Under `ddp` each holds the whole state, and the gradients are summed (Li 2020,
arXiv 2006.15704); under `fsdp` each holds a part of the state, and a block is gathered whenever it runs (ZeRO-3:
Rajbhandari 2020, arXiv 1910.02054, section 5; FSDP: Zhao 2023, arXiv 2304.11277). Collectives are rings, which
send least (Patarasuk and Yuan 2009): for n bytes each of W devices sends (W - 1)/W n in an all-gather or a
reduce-scatter, and twice that in an all-reduce.
"""

from typing import Literal

from apollo_cli.models.build import num_parameters
from apollo_cli.models.model_config import ModelConfig

Kind = Literal["ddp", "fsdp"]

STATE = 16  # bytes per parameter: fp32 weights, gradients and the two moments of AdamW
_SUM = 4  # bytes per summed gradient: fp32, also where products are bf16


def reduced_bytes(kind: Kind, parameters: int, devices: int) -> int:
    """Bytes that each device sends to sum the fp32 gradients of `parameters` once.

    ddp: all-reduce, 2 (W - 1)/W 4 P; fsdp: reduce-scatter, half of that. P counts the stored layers: a layer that
    runs several times per pass has one gradient.
    """
    times = 2 if kind == "ddp" else 1
    return times * (devices - 1) * _SUM * parameters // devices


def gathered_bytes(model_config: ModelConfig, layers: int, depth: int, devices: int, bf16: bool) -> int:
    """Bytes that each device sends under fsdp to gather the weights for one forward and backward pass.

    Each of the `depth` layers that run gathers its block twice, forward and backward, a shared block each time;
    the R parameters outside the blocks are gathered twice in fp32: 2 (W - 1)/W (depth b B + 4 R).
    """
    block, rest = _parts(model_config, layers)
    return 2 * (devices - 1) * (depth * _size(bf16) * block + _SUM * rest) // devices


def step_bytes(
    kind: Kind, model_config: ModelConfig, layers: int, depth: int, devices: int, bf16: bool, passes: int
) -> int:
    """Bytes that each device sends in a step of `passes` forward and backward passes through `depth` layers.

    Gradients are summed once, after the last pass; under fsdp every pass gathers.
    """
    sent = reduced_bytes(kind, num_parameters(model_config, layers), devices)
    return sent + (passes * gathered_bytes(model_config, layers, depth, devices, bf16) if kind == "fsdp" else 0)


def state_bytes(
    kind: Kind, model_config: ModelConfig, layers: int, devices: int, bf16: bool, accumulates: bool = False
) -> int:
    """Bytes of weights, gradients and moments that a device holds at the peak of a backward pass.

    ddp: 16 per parameter, with gradients that are views of the buckets. fsdp: a W-th of that, and what is
    temporarily whole: fp32 weights and gradients of the R parameters outside the blocks (the tied embedding has a
    gradient from the decoder on), weights of two blocks, as the next is gathered while one runs, and gradients of
    one, in the products' precision and in fp32, in which they are summed. With `accumulates`, unsharded fp32
    gradients are kept until the last micro-step.
    """
    parameters = num_parameters(model_config, layers)
    if kind == "ddp":
        return STATE * parameters
    (block, rest), size = _parts(model_config, layers), _size(bf16)
    weights, gradients = _SUM * rest + size * 2 * block, _SUM * rest + size * block + _SUM * max(block, rest)
    accumulated = _SUM * parameters if accumulates else 0
    return -(-STATE * parameters // devices) + weights + gradients + accumulated


def _parts(model_config: ModelConfig, layers: int) -> tuple[int, int]:
    """Parameters of one block, and of all modules outside the blocks."""
    rest = num_parameters(model_config, 0)
    return num_parameters(model_config, 1) - rest, rest


def _size(bf16: bool) -> int:
    return 2 if bf16 else 4
