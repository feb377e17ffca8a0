"""The coordinate check: how large activations are, and how far training moves them, by width and depth.

`python -m benchmarks.run_coordinates gpt` draws both parametrizations side by side, in about a minute, into
benchmarks/results/coordinates_gpt.svg; `llama` and `bert`, pre-norm, likewise. In CompleteP the lines are flat
(Dey 2025, arXiv 2505.01618), so one learning rate suits every width and depth.
"""

import sys
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from apollo_cli import files
from apollo_cli.config.training import OptimArgs
from apollo_cli.models.bert import Bert
from apollo_cli.models.build import build
from apollo_cli.models.model_config import CompleteP, Initialization, Kind, ModelConfig, Parametrization
from apollo_cli.models.transformer import Batch, Block, LanguageModel
from apollo_cli.training.optimizer import build_optimizer
from benchmarks.archives import RESULTS

WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8, 16, 32)
BASE_HIDDEN, BASE_LAYERS, HEAD_WIDTH = 64, 2, 32
_STEPS, _VOCABULARY, _ROWS, _LENGTH = 10, 64, 8, 16
# a small deviation, so that after ten steps what is learned outweighs what was drawn
_INIT = Initialization(std=0.01, positions_std=0.01)
_OPTIM = OptimArgs(
    lr=2e-3,
    schedule="constant",
    knots=None,
    warmup=0.0,
    decay=0.1,
    final_lr=0.0,
    at_growth="continue",
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.1,
    clip=0.0,
)


@dataclass(frozen=True)
class Coordinate:
    """A module's mean absolute activation after training, and the mean absolute change by it.

    Attention and feed-forward part before the multiplier of the branch, mean over all layers; the residual stream
    after the last layer; for BERT the head's dense layer. Logits are those of the targets, less the mean logit,
    averaged before the absolute value: what is drawn and has the mean 0 falls as 1 / sqrt(width) in every
    parametrization, what is learned must not.
    """

    after: float
    change: float


def coordinates(
    kind: Kind, hidden: int, layers: int, parametrization: Parametrization, optimizer: str = "adamw", seed: int = 0
) -> dict[str, Coordinate]:
    """The coordinates of a model of this size after ten steps on one batch."""
    torch.manual_seed(seed)
    base = CompleteP(BASE_HIDDEN, BASE_LAYERS, HEAD_WIDTH) if parametrization == "completep" else None
    config = ModelConfig(
        *(kind, _VOCABULARY, _LENGTH, hidden, hidden // HEAD_WIDTH, 4 * hidden, layers),
        init=_INIT,
        complete_p=base,
        norm="pre",
    )
    model = build(config, layers)
    trained = build_optimizer(model, _OPTIM.model_copy(update={"kind": optimizer}))
    tokens = torch.randint(_VOCABULARY, (_ROWS, _LENGTH))
    batch = Batch(tokens, torch.arange(tokens.numel()), (7 * tokens + 3).flatten() % _VOCABULARY)
    before = _activations(model, batch)
    for _ in range(_STEPS):
        model.loss(batch, range(layers)).backward()
        trained.step()
        trained.zero_grad()
    after = _activations(model, batch)
    return {
        name: Coordinate(after[name].abs().mean().item(), (after[name] - before[name]).abs().mean().item())
        for name in after
    }


@torch.no_grad()
def _activations(model: LanguageModel, batch: Batch) -> dict[str, Tensor]:
    hidden, depth = model.embed(batch.tokens), len(model.blocks)
    multiplier, rotation = model.model_config.multipliers(depth).branch, model._rotation(0, _LENGTH)
    found, attention, feed_forward = {"embedding": hidden}, [], []
    for block in model.blocks:
        assert isinstance(block, Block)
        attention.append(block._attention(block.attention_norm(hidden), None, None, rotation, None))
        hidden = hidden + multiplier * attention[-1]
        feed_forward.append(block._feed_forward(block.ffn_norm(hidden)))
        hidden = hidden + multiplier * feed_forward[-1]
    logits = model.head(hidden).flatten(0, 1)
    learned = logits.gather(1, batch.targets[:, None]) - logits.mean(1, keepdim=True)
    stacked = {"attention": torch.stack(attention), "feed-forward": torch.stack(feed_forward)}
    head = {"transform": model.transform(model.last_norm(hidden))} if isinstance(model, Bert) else {}
    return found | stacked | {"residual stream": hidden} | head | {"logits": learned.mean()}


def spreads(found: list[dict[str, Coordinate]]) -> dict[str, float]:
    """The largest ratio of each module's coordinates between models, after training and of the change."""

    def spread(module: str) -> float:
        values = [[getattr(each[module], key) for each in found] for key in ("after", "change")]
        return max(max(of) / min(of) for of in values)

    return {module: spread(module) for module in found[0]}


def draw(kind: Kind) -> str:
    """A picture as SVG: coordinates over widths at 4 layers, and over depths at a width of 64."""
    from matplotlib import style
    from matplotlib.figure import Figure

    from apollo_cli.report.style import SETTINGS, WIDTH, EndLabel, label_ends, looks, svg_of

    with style.context(SETTINGS):
        figure = Figure(figsize=(WIDTH, 6.5), layout="constrained")
        panels, last = figure.subplots(2, 2, sharey=True), []
        for row, parametrization in zip(panels, get_args(Parametrization), strict=True):
            grids = {"width": [(width, 4) for width in WIDTHS], "depth": [(BASE_HIDDEN, depth) for depth in DEPTHS]}
            for axes, (name, grid) in zip(row, grids.items(), strict=True):
                found = [coordinates(kind, *sizes, parametrization) for sizes in grid]
                sizes = [size[name == "depth"] for size in grid]
                changes = {module: [each[module].change for each in found] for module in found[0]}
                looks_of = looks(changes)
                for module, values in changes.items():
                    axes.plot(sizes, values, **looks_of[module].of_line)
                axes.set_xscale("log", base=2)
                axes.set_xticks(sizes, list(map(str, sizes)))
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.set_xlabel(name)
                axes.set_title(f"{parametrization}: change in {_STEPS} steps")
            row[0].set_ylabel("mean absolute change")
            last.append((axes, [EndLabel(m, sizes[-1], of[-1], looks_of[m].colour) for m, of in changes.items()]))
        for axes, ends in last:  # when all have set the limits that they share
            label_ends(axes, ends)
        return svg_of(figure)


if __name__ == "__main__":
    for kind in sys.argv[1:] or ["gpt"]:
        path = RESULTS / f"coordinates_{kind}.svg"
        files.write_text(path, draw(kind))  # type: ignore[arg-type]  # build names a kind that does not exist
        print(f"written: {path}")
