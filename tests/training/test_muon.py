"""Against torch's own class, and against the singular value decomposition."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from apollo_cli.config.config import Config
from apollo_cli.errors import ConfigError
from apollo_cli.models.build import build
from apollo_cli.report.runs import read_runs
from apollo_cli.training import muon
from apollo_cli.training.device import choose
from apollo_cli.training.muon import Muon, lr_factor, newton_schulz_flops, orthogonalized
from apollo_cli.training.optimizer import build_optimizer, optimizer_flops
from apollo_cli.training.planning import make_plan
from apollo_cli.training.run import resume, train
from tests.conftest import read_rows
from tests.training.test_adamw import each_device, give_gradients
from tests.training.test_resume import assert_same, interrupt

ADAMW: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}
MUON: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "ns_steps": 5, "adjust_lr_fn": "match_rms_adamw"}
SHAPES = ((8, 8), (5, 12), (12, 5), (1, 7))
_give_gradients = partial(give_gradients, late=SHAPES[-1])


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bf16, also where the CPU only emulates it."""
    monkeypatch.setattr(muon, "products_dtype", lambda device: torch.bfloat16)


def _matrices(device: str = "cpu") -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random).to(device)) for shape in SHAPES]


def _groups(matrices: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [{"params": [p], "weight_decay": weight_decay, "parts": (len(p),)} for p in matrices]


@each_device
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("ns_steps", [1, 5])
def test_weights_and_moments_are_those_of_torch_to_the_last_bit(
    device: str, nesterov: bool, adjust_lr_fn: Any, ns_steps: int, bf16: None
) -> None:
    keys = {"momentum": 0.9, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
    ours, theirs = _matrices(device), _matrices(device)
    mine = Muon(_groups(ours, 0.3), **ADAMW, **keys)
    its = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.3, **keys)
    for step in range(6):
        _give_gradients(step, ours, theirs)
        mine.lr = its.param_groups[0]["lr"] = 0.01 / (1 + step)
        mine.step(torch.zeros((), device=device) if step % 2 else None)
        its.step()
    for parameter, expected in zip(ours, theirs, strict=True):
        assert torch.equal(parameter, expected)
        assert mine.state[parameter].keys() == its.state[expected].keys()
        assert all(torch.equal(value, its.state[expected][key]) for key, value in mine.state[parameter].items())


def test_matrices_in_one_tensor_are_updated_as_if_they_were_apart(bf16: None) -> None:
    """Queries are more than keys and values where several heads share these."""
    apart = [nn.Parameter(torch.randn(rows, 6)) for rows in (8, 4, 4)]
    joined = nn.Parameter(torch.cat([p.detach() for p in apart]))
    mine = Muon([{"params": [joined], "weight_decay": 0.1, "parts": (8, 4, 4)}], **ADAMW, **MUON)
    its = torch.optim.Muon(apart, lr=0.01, weight_decay=0.1, **MUON)
    for _ in range(3):
        for p in apart:
            p.grad = torch.randn_like(p)
        joined.grad = torch.cat([p.grad for p in apart if p.grad is not None])
        mine.step()
        its.step()
    assert torch.equal(joined, torch.cat([p.detach() for p in apart]))


@each_device
def test_a_blocked_update_changes_nothing(device: str) -> None:
    matrices, embedding = _matrices(device), nn.Parameter(torch.ones(3, 2, device=device))
    groups = [{"params": [embedding], "weight_decay": 0.1}, *_groups(matrices, 0.1)]
    optimizer = Muon(groups, **ADAMW, **MUON)
    blocked, free = torch.ones((), device=device), torch.zeros((), device=device)

    def everything() -> list[Tensor]:
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [tensor.detach().clone() for tensor in (embedding, *matrices, *states)]

    for step in (2, 3):
        _give_gradients(step, [*matrices])
        embedding.grad = torch.ones_like(embedding)
        optimizer.step(free)
    before = everything()
    for p in (embedding, *matrices):
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step(blocked)
    assert all(map(torch.equal, everything(), before))
    _give_gradients(4, [*matrices])
    optimizer.step(free)
    assert not any(map(torch.equal, everything()[1 : 1 + len(matrices)], before[1:]))


@pytest.mark.gpu
def test_no_update_waits_for_the_device() -> None:
    matrices = _matrices("cuda")
    optimizer = Muon(_groups(matrices, 0.1), **ADAMW, **MUON)
    blocked = torch.zeros((), device="cuda")
    for lr in (0.01, torch.tensor(0.01, device="cuda")):
        optimizer.lr = lr
        _give_gradients(2, matrices)
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step(blocked)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_rate_may_be_a_tensor() -> None:
    updated = []
    for lr in (0.01, torch.tensor(0.01)):
        matrices, embedding = _matrices(), nn.Parameter(torch.ones(3, 2))
        groups = [{"params": [embedding], "weight_decay": 0.1}, *_groups(matrices, 0.1)]
        optimizer = Muon(groups, **ADAMW | {"lr": lr}, **MUON)
        _give_gradients(2, matrices)
        embedding.grad = torch.ones_like(embedding)
        optimizer.step()
        updated.append([embedding, *matrices])
    for number, tensor in zip(*updated, strict=True):
        torch.testing.assert_close(number, tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 4 * 2**-7)])
def test_an_update_has_the_singular_vectors_of_the_gradient_and_values_near_1(
    shape: tuple[int, int], dtype: torch.dtype, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever products this CPU is fast at; in bf16 to four units in its last place."""
    monkeypatch.setattr(muon, "products_dtype", lambda device: dtype)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert values.max() / values.min() < 100
    inner = left.T @ orthogonalized(matrix, 10).float() @ right.T
    assert (inner - inner.diag().diag()).abs().max() < error
    assert inner.diag().min() > 0.65
    assert inner.diag().max() < 1.25


def test_one_iteration_by_hand() -> None:
    """Of diag(3, 4): the norm is 5, so x = 0.6 and 0.8, and a x + b x^3 + c x^5."""
    expected = [3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5 for x in (0.6, 0.8)]
    found = orthogonalized(torch.tensor([3.0, 4.0]).diag(), 1)
    torch.testing.assert_close(found.float(), torch.tensor(expected).diag(), rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("adjust_lr_fn", "shape", "factor"),
    [
        ("original", (8, 2), 2.0),
        ("original", (2, 8), 1.0),
        ("match_rms_adamw", (9, 4), 0.6),
        ("match_rms_adamw", (4, 25), 1.0),
    ],
)
def test_factors_of_the_rate_by_hand(
    adjust_lr_fn: Literal["original", "match_rms_adamw"], shape: tuple[int, int], factor: float
) -> None:
    assert lr_factor(adjust_lr_fn, *shape) == pytest.approx(factor)


def test_an_update_is_as_large_as_adamws() -> None:
    """Root mean square 0.2 lr (Liu 2025, section 2.2), whatever the shape."""
    for rows, columns in ((64, 64), (64, 256), (256, 64)):
        update = orthogonalized(torch.randn(rows, columns), 5).float() * lr_factor("match_rms_adamw", rows, columns)
        assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_flops_are_those_that_torch_counts(shape: tuple[int, int]) -> None:
    with FlopCounterMode(display=False) as counter:
        orthogonalized(torch.randn(shape), 5)
    assert newton_schulz_flops(*shape, 5) == counter.get_total_flops()


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_flops_of_a_layer_by_hand(kind: str, config: Callable[..., Config]) -> None:
    """q, k, v and output 6 h^3 each, both matrices of the feed-forward part 4 h^2 f + 2 h^3, five times."""
    settings = config(f"model={kind}", "optim=muon", "model.hidden=12", "model.heads=2", "model.ffn=30")
    h, f = 12, 30
    assert optimizer_flops(settings.model_config, settings.optim) == 5 * (
        4 * 6 * h**3 + 2 * (4 * h * h * f + 2 * h**3)
    )
    assert optimizer_flops(settings.model_config, config().optim) == 0


def test_flops_of_a_llama_layer_by_hand(config: Callable[..., Config]) -> None:
    """Queries and output 6 h^3 each, keys and values of one head 4 m^2 h + 2 m^3 each, and three matrices."""
    sizes = ("model.hidden=16", "model.heads=4", "model.kv_heads=1", "model.ffn=24")
    settings = config("model=llama", "optim=muon", *sizes)
    h, m, f = 16, 4, 24
    by_hand = 2 * 6 * h**3 + 2 * (4 * m * m * h + 2 * m**3) + 3 * (4 * h * h * f + 2 * h**3)
    assert optimizer_flops(settings.model_config, settings.optim) == 5 * by_hand


@pytest.mark.parametrize("kind", ["bert", "gpt", "llama"])
def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest(kind: str, config: Callable[..., Config]) -> None:
    more = ["model.kv_heads=1"] if kind == "llama" else []
    settings = config(f"model={kind}", *more, "optim=muon", "optim.weight_decay=0.3")
    model = build(settings.model_config, 2)
    optimizer = build_optimizer(model, settings.optim)
    names = {p: name for name, p in model.named_parameters()}
    found = {
        names[p]: (group.get("parts"), group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found.keys() == set(names.values())
    h, f = settings.model.hidden, settings.model.ffn
    keys_and_values = (h // settings.model.heads,) * 2 if kind == "llama" else (h, h)
    of_layer = {"qkv": (h, *keys_and_values), "gate_up": (f, f)}
    of_layer |= {"attention_out": (h,), "ffn_in": (f,), "ffn_out": (h,)}
    for name, value in found.items():
        is_matrix = name.endswith("weight") and "norm" not in name
        parts = of_layer.get(name.split(".")[-2]) if "blocks" in name else None
        assert value == (parts if is_matrix else None, 0.3 if is_matrix else 0.0), name
    model.logits(torch.arange(8).view(1, 8), (0, 1)).logsumexp(-1).sum().backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        keys = {"momentum_buffer"} if found[name][0] else {"step", "exp_avg", "exp_avg_sq"}
        assert optimizer.state[parameter].keys() == keys
        assert not torch.equal(parameter, before[name]), name


def test_a_run_counts_the_optimizers_flops_apart(config: Callable[..., Config], tmp_path: Path) -> None:
    """12 steps: 3 of 1 layer, 3 of 2, 6 of 4; all layers run in each of them."""
    ours = train(config("optim=muon"), tmp_path / "muon")
    a_layer = optimizer_flops(config().model_config, config("optim=muon").optim)
    expected = (3 * 1 + 3 * 2 + 6 * 4) * a_layer
    assert ours.plan.optimizer_flops == expected
    totals = json.loads((tmp_path / "muon" / "summary.json").read_text())["totals"]
    plan = json.loads((tmp_path / "muon" / "plan.json").read_text())
    assert totals["optimizer_flops"] == plan["optimizer_flops"] == expected
    assert read_rows(tmp_path / "muon")[-1]["optimizer_flops"] == expected
    assert totals["flops"] == plan["flops"] == make_plan(config(), choose(config().run)).flops
    (run,), _ = read_runs([str(tmp_path / "muon")])
    assert run.evaluations[-1]["flops"] == plan["flops"] + expected


def test_only_layers_with_a_gradient_are_counted(config: Callable[..., Config]) -> None:
    words = ("optim=muon", "sampler=shallow", "expander=append", "schedule.trained=[all,new,new]")
    plan = make_plan(config(*words), choose(config().run))
    a_layer = plan.step_cost.optimizer_flops
    assert [plan.optimizer_flops_of(step, [layers] * 2) for step, layers in ((0, 1), (3, 2), (6, 4))] == [
        a_layer,
        a_layer,
        2 * a_layer,
    ]
    assert plan.optimizer_flops == a_layer * (3 * 1 + 3 * 1 + 6 * 2)


@pytest.mark.parametrize(
    "moments", ["map", *(pytest.param(other, marks=pytest.mark.slow) for other in ("keep", "reset"))]
)
def test_a_run_resumes_to_the_last_bit(
    moments: str, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first step after a growth."""
    words = ("optim=muon", f"expander.moments={moments}")
    train(config(*words), tmp_path / "straight")
    interrupt(lambda: train(config(*words), tmp_path / "run"), 7, monkeypatch)
    torch.manual_seed(999)
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_shards_are_refused(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"distributed=fsdp: optim\.kind=muon"):
        config("optim=muon", "distributed=fsdp")
