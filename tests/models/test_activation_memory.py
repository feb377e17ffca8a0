import pytest
import torch

from apollo_cli.models.activation_memory import ActivationMemory
from apollo_cli.models.build import build
from apollo_cli.models.model_config import Kind, ModelConfig, Norm
from apollo_cli.models.transformer import Batch


def _kept_bytes(model_config: ModelConfig, depth: int, bf16: bool) -> int:
    """What torch itself keeps for the backward pass, weights left out."""
    model, rows, seq_len = build(model_config, depth), 4, 32
    tokens = torch.randint(model_config.vocabulary, (rows, seq_len))
    positions = torch.arange(rows)
    batch = Batch(tokens, positions, tokens.flatten()[positions])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # so that no address is used again
        storage, is_weight = tensor.untyped_storage(), tensor.grad_fn is None and tensor.dim() == 2
        if storage.data_ptr() not in weights and not (bf16 and is_weight and tensor.dtype == torch.bfloat16):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model.loss(batch, range(depth))
    return sum(kept.values())


@pytest.mark.parametrize(
    ("kind", "norm", "kv_heads"),
    [
        *(("bert", "post", None), ("bert", "pre", None), ("gpt", "post", None)),
        *(("llama", "post", None), ("llama", "post", 1)),
    ],
)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("hidden", "heads", "ffn"), [(64, 4, 256), (96, 3, 160)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_layer_keeps_what_torch_keeps(
    kind: Kind, norm: Norm, kv_heads: int | None, bf16: bool, hidden: int, heads: int, ffn: int, dropout: float
) -> None:
    model_config = ModelConfig(kind, 100, 32, hidden, heads, ffn, 6, dropout, kv_heads=kv_heads, norm=norm)
    one_more = _kept_bytes(model_config, 5, bf16) - _kept_bytes(model_config, 4, bf16)
    weights = 2 * model_config.layer_weights if bf16 else 0  # the copies that autocast makes
    footprint = ActivationMemory(model_config, "cpu", bf16)
    assert abs(one_more - weights - 4 * 32 * footprint.bytes_per_layer) <= weights  # to the byte in fp32


def test_a_step_by_hand() -> None:
    model_config = ModelConfig("gpt", vocabulary=100, positions=8, hidden=16, heads=2, ffn=64, layers=6)
    cpu, gpu = ActivationMemory(model_config, "cpu", False), ActivationMemory(model_config, "cuda", True)
    assert cpu.bytes_per_layer == 4 * (8 * 16 + 2 * 64) + 4 * 2 + 16 == 1048
    assert gpu.bytes_per_layer == 2 * (6 * 16 + 2 * 64) + 8 * 16 + 24 == 600
    # 48 bytes a token; 16 tokens, 3 layers; 14 rows of logits twice; 6 numbers for each of 30
    chunk = 16 * 3 * 1048 + 2 * 4 * 14 * 100 + 4 * 16 * 6 * 30
    assert cpu.working_bytes(16, 3, 14, 1) == 48 * 16 + chunk
    assert cpu.working_bytes(32, 3, 28, 2) == 48 * 32 + chunk


def test_of_large_logits_only_a_chunk_counts() -> None:
    model_config = ModelConfig("gpt", vocabulary=50_000, positions=8, hidden=16, heads=2, ffn=64, layers=6)
    few, many = (ActivationMemory(model_config, "cpu", False).working_bytes(0, 1, n, 1) for n in (1000, 2000))
    assert many - few == 4 * 16 * 6 * 1000
