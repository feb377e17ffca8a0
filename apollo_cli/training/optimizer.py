"""The learning rate as a pure function of the step; the optimizer of a model and its state by name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import cos, pi, sqrt
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from apollo_cli.config.training import OptimArgs
from apollo_cli.models.build import build_on_meta
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import Batch
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.muon import Muon, newton_schulz_flops


class TrainableModel(Protocol):
    """What optimizer and training loop ask of a model; language models and classifiers have it."""

    @property
    def model_config(self) -> ModelConfig: ...
    @property
    def blocks(self) -> nn.ModuleList: ...
    def loss(self, batch: Batch, layer_map: Sequence[int], frozen: int, gates: Mapping[int, float]) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...


def learning_rate(
    optim: OptimArgs, step: int, steps: int, growth_steps: Sequence[int] = (), first_planned: int | None = None
) -> float:
    """The learning rate of update `step`, counted from 0, in a run of `steps`.

    Warmup rises linearly and reaches the peak at its last step. Then `cosine` and `linear` fall to
    `final_lr` x peak at the end, `wsd` is constant and falls over the last `decay` share (Hu 2024,
    arXiv 2404.06395), linearly or, with `decay_shape=sqrt`, as 1 - sqrt of the decay's progress (Haegele 2024,
    arXiv 2405.18392), `constant` is constant, and `piecewise` interpolates linearly between its `knots`, each at a
    share of all steps and of the peak (StackBERT, Gong 2019). With `at_growth=rewarm` every growth begins a new
    warmup to the value that the schedule has there; with `restart` warmup and schedule begin again, over the
    remaining steps (G_stack); with `rewind` they do so without a warmup, at the peak (MSG). `continue` ignores
    growths. The decay of `wsd` stays at the end of the run, whatever `at_growth`. The warmup is a share of the
    steps that were planned before the run was extended, `first_planned`.
    """
    growth = max((g for g in growth_steps if g <= step), default=0)
    begin = growth if optim.at_growth in ("restart", "rewind") else 0
    warmup = 0 if growth and optim.at_growth == "rewind" else round(optim.warmup * (first_planned or steps))
    last_start = 0 if optim.at_growth == "continue" else growth
    ramp = min(1.0, (step - last_start + 1) / warmup) if warmup else 1.0
    progress = max(0.0, (step - begin - warmup) / max(1, steps - begin - warmup))
    match optim.schedule:
        case "cosine":
            height = (1 + cos(pi * progress)) / 2
        case "linear":
            height = 1 - progress
        case "wsd":
            height = min(1.0, (steps - step) / max(1, round(optim.decay * steps)))
            if optim.decay_shape == "sqrt":
                height = 1 - sqrt(1 - height)
        case "constant":
            return optim.lr * ramp
        case "piecewise":
            reached, heights = zip((optim.warmup, 1.0), *(optim.knots or ()), strict=True)
            height = float(np.interp(step / steps, reached, heights))
    return optim.lr * ramp * (optim.final_lr + (1 - optim.final_lr) * height)


def parameter_groups(model: TrainableModel, optim: OptimArgs) -> list[dict[str, Any]]:
    """The parameters by their rate and decay; matrices and embeddings decay, norms and biases do not.

    With CompleteP the hidden matrices, those of the blocks and of BERT's head, have their own rate, and their decay
    a step stays that of the base model (Dey 2025, arXiv 2505.01618, table 1).
    """
    of_blocks = {name: p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    matrices = of_blocks if optim.kind == "muon" else {}
    of_head = {name: p for name, p in model.named_parameters() if name == "transform.weight"}
    scaled = of_blocks | of_head if model.model_config.width_ratio != 1 else {}
    by_adamw = {name: p for name, p in scaled.items() if name not in matrices}
    ids = {id(p) for p in (matrices | by_adamw).values()}
    others = [p for p in model.parameters() if id(p) not in ids]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    of_adamw, of_muon = hidden_lr_scales(model.model_config, optim)
    if by_adamw:
        groups.append({"params": list(by_adamw.values())} | _scaled(optim, of_adamw))
    by_parts: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for name, p in matrices.items():
        by_parts.setdefault(model.model_config.joined_rows(name, len(p)), []).append(p)
    return groups + [{"params": ps, "parts": rows} | _scaled(optim, of_muon) for rows, ps in by_parts.items()]


def _scaled(optim: OptimArgs, scale: float) -> dict[str, float]:
    """The decay and the factor of the rate of a group of matrices whose decay a step is that of all."""
    return {"weight_decay": optim.weight_decay / scale} | ({"lr_scale": scale} if scale != 1 else {})


def hidden_lr_scales(model_config: ModelConfig, optim: OptimArgs) -> tuple[float, float]:
    """The factors of AdamW's and Muon's rates of hidden matrices with CompleteP; 1 in the standard parametrization.

    An update may change features by the same amount at every width m_N times the base's: its spectral norm must not
    change, as rows and columns grow together (Yang 2023, arXiv 2310.17813, condition 1). AdamW's entries are of one
    size, and they are aligned, so the norm grows as the width: 1 / m_N. Muon's updates are orthogonal: 1, and with
    the factor of match_rms_adamw, which grows as the root of the width, 1 / sqrt(m_N).
    """
    ratio = model_config.width_ratio
    return 1 / ratio, 1.0 if optim.adjust_lr_fn == "original" else 1 / sqrt(ratio)


def scaled_eps(model_config: ModelConfig, layers: int, optim: OptimArgs) -> float:
    """AdamW's eps where `layers` are stored: with CompleteP / (m_N m_L), as the gradients."""
    return optim.eps / (model_config.width_ratio * model_config.depth_ratio(layers))


def build_optimizer(model: TrainableModel, optim: OptimArgs) -> AdamW:
    """The optimizer of all parameters.

    `optim.kind=muon` is Muon for the matrices of the blocks and AdamW for the rest.
    """
    groups, eps = parameter_groups(model, optim), scaled_eps(model.model_config, len(model.blocks), optim)
    of_adamw: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": eps, "ema": optim.ema}
    if optim.kind == "adamw":
        return AdamW(groups, **of_adamw)
    return Muon(
        groups,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        ns_steps=optim.ns_steps,
        adjust_lr_fn=optim.adjust_lr_fn,
        **of_adamw,
    )


def optimizer_flops(model_config: ModelConfig, optim: OptimArgs) -> int:
    """FLOPs of the optimizer's own matrix products in an update of one layer; 0 for AdamW."""
    if optim.kind == "adamw":
        return 0
    (block,) = build_on_meta(model_config, 1).blocks
    return sum(
        newton_schulz_flops(rows, p.shape[1], optim.ns_steps)
        for name, p in block.named_parameters()
        if p.ndim == 2
        for rows in model_config.joined_rows(name, len(p))
    )


def state_by_name(parameters: Iterable[tuple[str, nn.Parameter]], optimizer: AdamW) -> dict[str, Tensor]:
    """The optimizer's state as `parameter/key`, by the names of parameters: order and growth cannot confuse it.

    The average of a parameter's values is `parameter/ema`.
    """
    named = list(parameters)
    return {
        f"{name}/{key}": value
        for name, parameter in named
        for key, value in optimizer.state.get(parameter, {}).items()
    } | {f"{name}/ema": optimizer.averages[p] for name, p in named if p in optimizer.averages}
