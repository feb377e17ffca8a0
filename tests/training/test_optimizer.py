from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from math import cos, pi

import pytest
import torch

from apollo_cli.config.config import Config
from apollo_cli.config.training import OptimArgs
from apollo_cli.models.build import build
from apollo_cli.models.model_config import CompleteP, Kind, ModelConfig
from apollo_cli.training.distributed.ddp import ParallelStrategy
from apollo_cli.training.optimizer import build_optimizer, learning_rate, state_by_name


@pytest.fixture
def optim(config: Callable[..., Config]) -> Callable[..., OptimArgs]:
    return lambda *words: config("optim.lr=2.0", "optim.warmup=0.1", *words).optim


def test_warmup_reaches_the_peak_at_its_last_step(optim: Callable[..., OptimArgs]) -> None:
    plain = optim()
    rates = [learning_rate(plain, step, 100) for step in range(11)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(2.0)


def test_cosine(optim: Callable[..., OptimArgs]) -> None:
    cosine = optim("optim.schedule=cosine")
    assert learning_rate(cosine, 55, 100) == pytest.approx(1.0)  # half-way between 10 and 100
    assert learning_rate(cosine, 99, 100) == pytest.approx(1 + cos(pi * 89 / 90))
    assert learning_rate(optim("optim.schedule=cosine", "optim.final_lr=0.1"), 55, 100) == pytest.approx(
        2.0 * (0.1 + 0.9 / 2)
    )


def test_linear(optim: Callable[..., OptimArgs]) -> None:
    linear = optim("optim.schedule=linear")
    assert learning_rate(linear, 55, 100) == pytest.approx(1.0)
    assert learning_rate(linear, 99, 100) == pytest.approx(2.0 / 90)


def test_wsd_is_flat_and_then_falls_linearly_over_its_last_share(optim: Callable[..., OptimArgs]) -> None:
    wsd = optim("optim.schedule=wsd", "optim.decay=0.2")
    assert {learning_rate(wsd, step, 100) for step in range(10, 81)} == {2.0}
    assert learning_rate(wsd, 90, 100) == pytest.approx(1.0)
    assert learning_rate(wsd, 99, 100) == pytest.approx(2.0 / 20)


def test_the_decay_of_wsd_may_be_1_minus_a_root(optim: Callable[..., OptimArgs]) -> None:
    """Haegele 2024, section 3: 1 - sqrt(x) after the share x of the decay, so 1/2 after a quarter."""
    wsd = optim("optim.schedule=wsd", "optim.decay=0.2", "optim.decay_shape=sqrt", "optim.final_lr=0.1")
    assert {learning_rate(wsd, step, 100) for step in range(10, 81)} == {2.0}
    assert learning_rate(wsd, 85, 100) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(wsd, 99, 100) == pytest.approx(2.0 * (0.1 + 0.9 * (1 - (19 / 20) ** 0.5)))


def test_constant(optim: Callable[..., OptimArgs]) -> None:
    constant = optim("optim.schedule=constant")
    assert {learning_rate(constant, step, 100) for step in range(10, 100)} == {2.0}


STACKBERT = (  # Gong 2019, on the scale of 1000 steps: 400, of them 10 of warmup; growth at 50 and 70
    *("optim.lr=8e-4", "optim.warmup=0.025", "optim.schedule=piecewise"),
    "optim.knots=[[0.125,0.6875],[0.175,0.375],[1,0]]",
)


def test_piecewise_is_the_published_rate_of_stackbert(optim: Callable[..., OptimArgs]) -> None:
    stackbert = optim(*STACKBERT)
    published = {0: 8e-5, 4: 4e-4, 9: 8e-4, 10: 8e-4, 50: 5.5e-4, 70: 3e-4}
    between = {30: 6.75e-4, 60: 4.25e-4, 235: 1.5e-4, 399: 3e-4 / 330}  # half-way; one step before it is 0
    for step, rate in (published | between).items():
        assert learning_rate(stackbert, step, 400, (50, 70)) == pytest.approx(rate), step
    after = [learning_rate(stackbert, step, 400, (50, 70)) for step in range(10, 400)]
    assert after == sorted(after, reverse=True)  # no new warmup


def test_piecewise_may_warm_up_again_and_need_not_fall(optim: Callable[..., OptimArgs]) -> None:
    again = optim(*STACKBERT, "optim.at_growth=rewarm")
    assert learning_rate(again, 50, 400, (50, 70)) == pytest.approx(5.5e-5)
    assert learning_rate(again, 60, 400, (50, 70)) == pytest.approx(4.25e-4)
    rising = optim("optim.schedule=piecewise", "optim.knots=[[0.5,0],[1,1]]", "optim.warmup=0")
    assert [learning_rate(rising, step, 8) for step in range(8)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_a_growth_continues_or_warms_up_again_to_the_schedules_value(
    schedule: str, optim: Callable[..., OptimArgs]
) -> None:
    going_on = optim(f"optim.schedule={schedule}")
    plain = [learning_rate(going_on, step, 100) for step in range(100)]
    assert [learning_rate(going_on, step, 100, (30, 60)) for step in range(100)] == plain
    again = optim(f"optim.schedule={schedule}", "optim.at_growth=rewarm")
    rates = [learning_rate(again, step, 100, (30, 60)) for step in range(100)]
    ramp = [(step + 1) / 10 for step in range(10)]
    for start in (30, 60):
        assert rates[start : start + 10] == pytest.approx(
            [r * p for r, p in zip(ramp, plain[start : start + 10], strict=True)]
        )
    assert rates[40:60] + rates[70:] == plain[40:60] + plain[70:]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_growth_restarts_the_schedule_over_the_remaining_steps(
    schedule: str, optim: Callable[..., OptimArgs]
) -> None:
    plain = optim(f"optim.schedule={schedule}")
    again = optim(f"optim.schedule={schedule}", "optim.at_growth=restart")
    rates = [learning_rate(again, step, 100, (40,)) for step in range(100)]
    assert rates[:40] == [learning_rate(plain, step, 100) for step in range(40)]
    assert rates[40:51] == pytest.approx([0.2 * (step + 1) for step in range(10)] + [2.0])
    assert rates[75] == pytest.approx(1.0)  # half-way between 50 and 100


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_growth_rewinds_the_rate_to_its_peak(schedule: str, optim: Callable[..., OptimArgs]) -> None:
    again = optim(f"optim.schedule={schedule}", "optim.at_growth=rewind")
    rates = [learning_rate(again, step, 100, (40, 60)) for step in range(100)]
    assert rates[40] == rates[60] == 2.0
    assert rates[39] < 2.0
    assert rates[80] == pytest.approx(1.0)  # half-way between 60 and 100
    assert learning_rate(again, 5, 100, (40, 60)) == pytest.approx(1.2)  # the first warmup stays


@pytest.mark.parametrize("at_growth", ["restart", "rewind"])
def test_a_growth_does_not_move_the_decay_of_wsd(at_growth: str, optim: Callable[..., OptimArgs]) -> None:
    wsd = optim("optim.schedule=wsd", "optim.decay=0.2", f"optim.at_growth={at_growth}")
    assert {learning_rate(wsd, step, 100, (40,)) for step in range(50, 81)} == {2.0}
    assert learning_rate(wsd, 90, 100, (40,)) == pytest.approx(1.0)


def test_no_warmup(optim: Callable[..., OptimArgs]) -> None:
    assert learning_rate(optim("optim.warmup=0"), 0, 100) == 2.0


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_norms_and_biases_do_not_decay(kind: str, config: Callable[..., Config]) -> None:
    model = build(config(f"model={kind}").model_config, 2)
    decaying, still = build_optimizer(model, config("optim.weight_decay=0.3").optim).param_groups
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(decaying["params"]) + len(still["params"]) == len(names)
    assert all(names[id(p)].endswith("weight") and "norm" not in names[id(p)] for p in decaying["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in still["params"])


def test_betas_come_from_the_config(config: Callable[..., Config]) -> None:
    settings = config("optim.betas=[0.8,0.95]", "optim.eps=1e-6")
    optimizer = build_optimizer(build(settings.model_config, 1), settings.optim)
    assert (optimizer.betas, optimizer.eps) == ((0.8, 0.95), 1e-6)


def test_state_is_restored_by_name(config: Callable[..., Config]) -> None:
    settings = config("model=gpt")
    models = [build(settings.model_config, 2) for _ in range(2)]
    optimizers = [build_optimizer(model, settings.optim) for model in models]
    models[1].load_state_dict(models[0].state_dict())
    tokens = torch.arange(8).view(1, 8)

    def update(i: int) -> None:
        models[i].logits(tokens, (0, 1)).logsumexp(-1).sum().backward()
        optimizers[i].step()
        optimizers[i].zero_grad()

    update(0)
    state = deepcopy(models[0].state_dict() | state_by_name(models[0].named_parameters(), optimizers[0]))
    ParallelStrategy(models[1], lambda blocks: None).restore(state, optimizers[1])
    update(0)
    update(1)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "part",
    [
        {"exp_avg_sq": None},
        {"exp_avg": torch.zeros(())},
        {"step": torch.zeros(3)},
        {"exp_avg": torch.zeros(16, dtype=torch.float64)},
        {"more": torch.zeros(())},
    ],
    ids=["missing", "scalar", "many steps", "fp64", "more"],
)
def test_the_state_of_another_optimizer_is_refused(
    part: dict[str, torch.Tensor | None], config: Callable[..., Config]
) -> None:
    model = build(config().model_config, 1)
    optimizer = build_optimizer(model, config().optim)
    parameter = model.get_parameter("embedding_norm.weight")
    assert parameter.shape == (16,)
    whole = {"step": torch.zeros(()), "exp_avg": torch.zeros(16), "exp_avg_sq": torch.zeros(16)}
    name = "embedding_norm.weight"
    strategy, weights = ParallelStrategy(model, lambda blocks: None), deepcopy(model.state_dict())
    strategy.restore(weights | {f"{name}/{key}": value for key, value in whole.items()}, optimizer)
    changed = {f"{name}/{key}": value for key, value in (whole | part).items() if value is not None}
    with pytest.raises(ValueError, match=r"the checkpoint has .*embedding_norm\.weight"):
        strategy.restore(weights | changed, optimizer)


@pytest.mark.parametrize("kind", ["bert", "gpt", "llama"])
def test_completep_by_hand(kind: Kind, optim: Callable[..., OptimArgs]) -> None:
    """Four times the base's width, 3 stored layers of a base of 2: m_N = 4, m_L = 3/2."""
    base = CompleteP(16, 2, 16)
    config = ModelConfig(kind, 31, 12, 64, 4, 80, layers=6, tied=kind != "llama", complete_p=base, norm="pre")
    model, settings = build(config, 3), optim("optim.lr=0.5", "optim.eps=1e-8", "optim.weight_decay=0.1")
    optimizer = build_optimizer(model, settings)
    names = {p: name for name, p in model.named_parameters()}
    rules = {
        names[p]: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert rules.keys() == dict(model.named_parameters()).keys()
    for name, p in model.named_parameters():
        hidden = (name.startswith("blocks.") and p.ndim == 2) or name == "transform.weight"
        assert rules[name] == ((0.25, 0.4) if hidden else (1.0, 0.1 if p.ndim == 2 else 0.0)), name
    assert optimizer.eps == 1e-8 / (4 * 1.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():  # the first update of AdamW is the sign of the gradient
        scale, decay = rules[name]
        expected = before[name] * (1 - 0.5 * scale * decay) - 0.5 * scale
        torch.testing.assert_close(p, expected, msg=name)


def test_completep_at_its_base_has_the_standard_groups(optim: Callable[..., OptimArgs]) -> None:
    config = ModelConfig("gpt", 31, 12, 64, 4, 80, layers=6)
    plain, base = (
        build_optimizer(build(replace(config, complete_p=each), 6), optim())
        for each in (None, CompleteP(64, 6, 16))
    )
    shapes = [[(g["weight_decay"], [p.shape for p in g["params"]]) for g in o.param_groups] for o in (plain, base)]
    assert shapes[0] == shapes[1]
    assert all("lr_scale" not in group for group in base.param_groups)
    assert base.eps == plain.eps


@pytest.mark.parametrize(("adjust", "scale"), [("original", 1.0), ("match_rms_adamw", 0.5)])
def test_muon_with_completep_keeps_the_spectral_norm_of_an_update(
    adjust: str, scale: float, optim: Callable[..., OptimArgs]
) -> None:
    """Four times the width: orthogonal updates need no factor, those of match_rms_adamw, sqrt(4) as large, 1/2."""
    settings = optim("optim=muon", f"optim.adjust_lr_fn={adjust}", "optim.lr=1.0", "optim.weight_decay=0")
    norms = []
    for hidden in (16, 64):
        torch.manual_seed(0)
        base = CompleteP(16, 2, 8)
        config = ModelConfig("bert", 31, 12, hidden, 2, 4 * hidden, layers=2, complete_p=base, norm="pre")
        model = build(config, 2)
        optimizer = build_optimizer(model, settings)
        matrix = model.blocks[0].get_parameter("ffn_in.weight")
        before = matrix.detach().clone()
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        norms.append(torch.linalg.matrix_norm(matrix.detach() - before, 2).item())
        own = [group for group in optimizer.param_groups if "parts" in group]
        assert {group.get("lr_scale", 1.0) for group in own} == {scale if hidden == 64 else 1.0}
        transform = model.get_parameter("transform.weight")
        of_head = [g for g in optimizer.param_groups if any(p is transform for p in g["params"])]
        assert [g.get("lr_scale", 1.0) for g in of_head] == [0.25 if hidden == 64 else 1.0]  # AdamW's
    assert norms[1] == pytest.approx(norms[0], rel=0.3)  # singular values are between 0.7 and 1.2
