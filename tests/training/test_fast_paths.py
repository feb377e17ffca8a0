"""Optimizations change no number: chunks of the loss, pieces of a batch, running ahead of the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from apollo_cli.config.config import Config
from apollo_cli.errors import TrainingError
from apollo_cli.models import cross_entropy, transformer
from apollo_cli.models.activation_memory import ActivationMemory
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.training import memory
from apollo_cli.training.device import Device
from apollo_cli.training.run import train
from apollo_cli.training.trainer import Trainer
from tests.conftest import read_rows
from tests.training.test_nonfinite import poison
from tests.training.test_resume import assert_same

LONG = (
    "budget.steps=100",
    "log.every=1",
    "batch.micro=4",
    "optim.lr=1e-3",
    "eval.every=100",
    "checkpoint.every=100",
)


def _plainly(patch: pytest.MonkeyPatch) -> None:
    """Whole logits, whole batches, torch's own linear layers."""

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets)

    patch.setattr(transformer, "decoder_loss", loss)
    patch.setattr(transformer, "apply_linear", lambda layer, hidden: layer(hidden))
    patch.setattr(memory, "num_pieces", lambda *_: 1)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that split even a tiny batch."""
    monkeypatch.setattr(cross_entropy, "chunk_bytes", lambda device, bf16: 4 * 300 * 7)
    monkeypatch.setattr(memory, "MIN_TOKENS", 16)
    monkeypatch.setattr(memory, "CPU_ACTIVATIONS", 1)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_hundred_losses_equal_those_of_a_plain_implementation(
    kind: str,
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_chunks: None,
) -> None:
    train(config(f"model={kind}", *LONG), tmp_path / "fast")
    with monkeypatch.context() as patch:
        _plainly(patch)
        train(config(f"model={kind}", *LONG), tmp_path / "plain")
    fast, plain = ([r for r in read_rows(tmp_path / name) if "train/loss" in r] for name in ("fast", "plain"))
    assert len(fast) == 100
    assert fast[-1]["train/loss"] < fast[0]["train/loss"] - 0.5  # something was learnt
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
        assert ours["flops"] == theirs["flops"]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_losses_in_bf16_equal_those_in_fp32_within_noise(
    kind: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    for precision in ("fp32", "bf16"):
        train(config(f"model={kind}", *LONG, "budget.steps=30", f"precision={precision}"), tmp_path / precision)
    exact, short = ([r for r in read_rows(tmp_path / p) if "train/loss" in r] for p in ("fp32", "bf16"))
    for ours, theirs in zip(short, exact, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=0.01)
    assert [r["train/loss"] for r in short] != [r["train/loss"] for r in exact]


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU, treated as a device that runs ahead."""
    monkeypatch.setattr(Device, "runs_ahead", True)


@pytest.mark.parametrize("dropout", ["0", "0.1"])
def test_running_ahead_changes_nothing(
    dropout: str, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"model.dropout={dropout}",)
    train(config(*words), tmp_path / "waiting")
    monkeypatch.setattr(Device, "runs_ahead", True)
    train(config(*words), tmp_path / "ahead")
    assert_same(tmp_path / "ahead", tmp_path / "waiting")


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("gradient", [1]),
        ("loss", [2, 4, 5, 10]),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("loss", [1]), ("gradient", [2, 4, 5, 10]))),
    ],
)
def test_a_device_that_runs_ahead_rejects_a_step_with_the_same_result(
    what: str, steps: list[int], config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that were launched after it are not applied and run again."""
    poison(monkeypatch, steps, what)
    words = ("on_nonfinite=skip", "model.dropout=0.1", "log.every=6", "eval.every=12", "checkpoint.every=12")
    train(config(*words), tmp_path / "waiting")
    monkeypatch.setattr(Device, "runs_ahead", True)
    train(config(*words), tmp_path / "ahead")
    assert_same(tmp_path / "ahead", tmp_path / "waiting")
    names = [f"step_{step:08d}.json" for step in steps]
    assert sorted(p.name for p in (tmp_path / "ahead" / "refused_steps").iterdir()) == names
    for name in names:
        one, other = ((tmp_path / run / "refused_steps" / name).read_text() for run in ("waiting", "ahead"))
        assert one == other


def test_a_device_that_runs_ahead_stops_at_the_state_before_the_step(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: None
) -> None:
    poison(monkeypatch, [7], "gradient")
    with pytest.raises(TrainingError, match="step 7: the gradient's norm is nan"):
        train(config("log.every=12", "eval.every=12", "checkpoint.every=12"), tmp_path)
    weights = load_file(tmp_path / "checkpoints" / "step_00000007" / "model.safetensors")
    assert all(t.isfinite().all() for t in weights.values())


def test_between_rows_nothing_waits_for_the_device(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: None
) -> None:
    class Watch(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
            Watch.waits += function.overloadpacket is torch.ops.aten._local_scalar_dense
            return function(*arguments, **(named or {}))

    original, record_step = Trainer.step, Trainer.sync_pending_steps
    settled: list[int] = []

    def step(trainer: Trainer) -> None:
        with Watch():
            original(trainer)

    def sync_pending_steps(trainer: Trainer) -> None:
        settled.append(trainer.state.step)
        record_step(trainer)

    monkeypatch.setattr(Trainer, "sync_pending_steps", sync_pending_steps)
    monkeypatch.setattr(Trainer, "step", step)
    train(config("eval.every=5", "log.every=4", "checkpoint.every=8"), tmp_path)
    assert Watch.waits == 0
    assert settled == [3, 4, 5, 6, 8, 10, 12]  # growths at 3 and 6, evaluations, rows


def test_a_batch_is_parted_for_the_limit_alone() -> None:
    nano = ActivationMemory(ModelConfig("bert", 4096, 128, 128, 2, 512, 12), "cpu", bf16=False)
    six_layers = 32 * 128 * 6 * nano.bytes_per_layer

    def pieces(rows: int, seq_len: int, depth: int, limit: int) -> int:
        return memory.num_pieces(nano, rows, seq_len, depth, limit)

    assert pieces(32, 128, 6, six_layers) == 1
    assert pieces(32, 128, 7, six_layers) == 2
    assert pieces(32, 128, 12, six_layers // 10) == 4  # of 1,024 tokens; smaller ones are slow
    assert pieces(30, 128, 12, six_layers) == 2
    assert pieces(31, 128, 12, 1) == 1  # a prime number of rows
    assert pieces(1, 16, 12, 1) == 1


@pytest.mark.parametrize("limit", [memory.CPU_ACTIVATIONS, 250_000_000])
def test_activations_stay_below_a_limit(limit: int) -> None:
    mini = ActivationMemory(ModelConfig("bert", 8192, 512, 256, 4, 1024, 12), "cpu", bf16=False)
    count = memory.num_pieces(mini, 64, 512, 12, limit)
    assert 64 * 512 * 12 * mini.bytes_per_layer / count <= limit
    assert 64 * 512 * 12 * mini.bytes_per_layer / (count / 2) > limit  # and are not far below it


def test_a_gpu_keeps_activations_in_half_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda device: 80_000_000_000)
    assert memory.activation_limit(Device(torch.device("cuda"), True, True)) == 40_000_000_000
    assert memory.activation_limit(Device(torch.device("cpu"), False, False)) == memory.CPU_ACTIVATIONS


@pytest.mark.parametrize("kind", ["bert", pytest.param("gpt", marks=pytest.mark.slow)])
def test_blocks_are_compiled_once_for_all_depths_uses_and_growths(
    kind: str, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    """A whole 1-3-6-12 run has no more graphs than shapes, and none for each depth."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    compiled, in_full = nn.Module.compile, transformer.LanguageModel.loss
    shapes, depths = set(), set()

    def loss(
        model: transformer.LanguageModel,
        batch: transformer.Batch,
        layer_map: tuple[int, ...],
        *more: Any,
        **named: Any,
    ) -> Tensor:
        shapes.add((batch.tokens.shape, torch.is_grad_enabled()))
        depths.add((len(model.blocks), len(layer_map)))
        return in_full(model, batch, layer_map, *more, **named)

    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled(module, backend="eager"))
    monkeypatch.setattr(transformer.LanguageModel, "loss", loss)
    torch._dynamo.reset()
    counters.clear()
    words = ("model.layers=12", "schedule.layers=[1,3,6,12]", "schedule.ends=[0.25,0.5,0.75,1]", "sampler.k=1")
    train(config(f"model={kind}", *words, "compile=true", "budget.steps=40", "batch.size=8"), tmp_path)
    assert len(depths) > 12
    assert 2 <= len(shapes) < 6
    assert 1 <= counters["stats"]["unique_graphs"] <= len(shapes)
    assert counters["stats"]["unique_graphs"] == sum(counters["frames"].values()) / 2  # total and ok: none failed
