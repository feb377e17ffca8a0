"""After growth exactly the layers of the method are trained: the presets of the methods, at their own depth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from apollo_cli.config.config import Config, parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.training.run import train
from apollo_cli.training.trainer import Trainer

PRESETS = {  # steps of a run in which each stage has enough
    "gstack": 20,
    "stackbert": 40,
    "mslt": 10,
    "midas": 20,
    "lidas": 20,
    "one_layer": 10,
    "late_zero_init": 14,
    "raptr": 8,
    "msg": 40,
    "net2net_depth": 40,
    "net2net_width": 4,
    "bert2bert": 40,
    "ligo": 4,
    "lemon": 4,
}
# Steps at the beginning of each stage: what comes in silent has its first gradients in the second; in five with
# seed 3 a bottom of 3, 6, 9 and 12 layers has come (9, 12, 12, 3, 6).
WATCHED = dict.fromkeys(PRESETS, 2) | {"bert2bert": 5}
FROM_SOURCE = ("bert2bert", "ligo", "lemon")
# Each mechanism once where nobody asks for the slow ones
FAST = [
    *(("gstack", "gpt"), ("net2net_depth", "gpt"), ("msg", "bert"), ("mslt", "bert"), ("raptr", "gpt")),
    *(("bert2bert", "gpt"), ("net2net_width", "gpt"), ("lemon", "gpt")),
]
CELLS = [
    pytest.param(name, kind, marks=[] if (name, kind) in FAST else pytest.mark.slow)
    for name in PRESETS
    for kind in ("bert", "gpt")
]
HEAD = {"bert": {"transform", "transform_norm", "head_bias"}, "gpt": {"final_norm"}}
EMBEDDINGS = {"bert": {"tokens", "positions", "segments", "embedding_norm"}, "gpt": {"tokens", "positions"}}


@dataclass(frozen=True)
class Step:
    """The parameters that an update changed."""

    stage: int  # its index
    ran: tuple[int, ...]  # the stored layers that its forward pass ran
    moved: frozenset[str]  # the parameters that it changed
    parameters: frozenset[str]  # all of them


class Enough(Exception):
    """Raised when all wanted steps were seen."""


def watch(monkeypatch: pytest.MonkeyPatch, number: int) -> list[Step]:
    """Fills with the first steps of each stage; the run ends with `Enough` after those of the last stage."""
    seen: list[Step] = []
    original = Trainer.step

    def step(trainer: Trainer) -> None:
        stage = trainer.plan.schedule.index(trainer.state.step)
        if sum(each.stage == stage for each in seen) == number:
            original(trainer)
            return
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        ran: list[int] = []
        hooks = [
            block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
            for i, block in enumerate(trainer.model.blocks)
        ]
        original(trainer)
        for hook in hooks:
            hook.remove()
        moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(before[name], p)}
        seen.append(Step(stage, tuple(ran), frozenset(moved), frozenset(before)))
        if [each.stage for each in seen[-number:]] == [len(trainer.plan.stages) - 1] * number:
            raise Enough

    monkeypatch.setattr(Trainer, "step", step)
    return seen


def config(tiny: tuple[str, ...], kind: str, *words: str) -> Config:
    """With the stages and the depth of the preset, twelve layers; width, corpus and length are small."""
    own = ("model.layers", "schedule.", "budget.", "batch.micro", "eval.every", "checkpoint.every")
    small = [word for word in tiny if not word.startswith((*own, *(word.split("=")[0] for word in words)))]
    rare = ("batch.micro=4", "eval.every=1000", "checkpoint.every=1000")
    return parse(compose_values([*words, f"model={kind}", *small, *rare]))


@pytest.fixture(scope="module")
def source(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Trains a model of half the depth and half the width, once for each kind."""

    @cache
    def trained(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("source") / kind
        half = ("model.layers=6", "model.hidden=8", "model.heads=1", "model.ffn=16")
        train(config(tiny, kind, f"experiment=scratch_{kind}", "budget.steps=2", *half), folder)
        return folder

    return trained


def expected(name: str, kind: str, step: Step) -> set[str]:
    """The parameters that are trained in a step, by the papers."""
    layers, non_block_params = set(range(12)), EMBEDDINGS[kind]
    if name == "mslt" and step.stage in (1, 2, 3):  # Yang 2020: three more on top, alone, and the head
        layers, non_block_params = set(range(3 * step.stage, 3 * step.stage + 3)), set()
    if name == "raptr":  # Panigrahi 2024: what is left out is not there; 6, 8, 10, 12 with the first and the last
        layers = set(step.ran)
        assert len(step.ran) == 6 + 2 * step.stage
        assert {0, 11} <= layers
    if name == "bert2bert" and step.stage == 0:  # Chen 2022, 3.4: the top three layers of a bottom of the model
        depth = len(step.ran)
        layers, non_block_params = set(range(depth - 3, depth)), non_block_params if depth == 3 else set()
        assert step.ran == tuple(range(depth))
    non_block_params = non_block_params | HEAD[kind]

    def trains(parameter: str) -> bool:
        layer = layer_of(parameter)
        return parameter.split(".")[0] in non_block_params if layer is None else layer in layers

    return set(filter(trains, step.parameters))


def layer_of(parameter: str) -> int | None:
    """The number of its layer; None outside of the layers."""
    module, *rest = parameter.split(".")
    return int(rest[0]) if module == "blocks" else None


@pytest.mark.parametrize(("name", "kind"), CELLS)
def test_exactly_the_trained_layers_change(
    name: str,
    kind: str,
    source: Callable[[str], Path],
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [f"experiment={name}", f"budget.steps={PRESETS[name]}", "seed=3"]
    if name in FROM_SOURCE:
        words.append(f"init_from.path={source(kind)}")
    settings = config(tiny, kind, *words)
    seen = watch(monkeypatch, WATCHED[name])
    with pytest.raises(Enough):
        train(settings, tmp_path)
    for stage, layers in enumerate(settings.schedule.layers):
        steps = [step for step in seen if step.stage == stage]
        wanted = [expected(name, kind, step) for step in steps]
        assert len(steps) == WATCHED[name]
        for step, those in zip(steps, wanted, strict=True):
            assert {layer_of(p) for p in step.parameters} - {None} == set(range(layers))
            assert not step.moved - those, f"stage {stage}: moved and should not"
        moved = set[str]().union(*(step.moved for step in steps))
        assert not set[str]().union(*wanted) - moved, f"stage {stage}: stood still and should not"
        if stage == 0 and name in ("bert2bert", "raptr"):  # moments are there, and the layer has no gradient
            assert any(before - after for before, after in pairwise(wanted))
        if stage == 0 and name == "bert2bert":
            assert set[str]().union(*wanted) == seen[-1].parameters, "no layer is left out for good"
