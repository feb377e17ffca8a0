"""A Trainer without a run around it, to time a step at some depth, the work around a step, or a checkpoint."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any
from uuid import uuid4

from apollo_cli.data import cache_folder
from apollo_cli.growth.samplers import DepthSampler
from apollo_cli.growth.schedule import Schedule, Stage
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.run_directory import RunDirectory
from apollo_cli.tracking.console import Console
from apollo_cli.training.corpora import prepare_corpus
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan
from apollo_cli.training.pretraining import Pretraining
from apollo_cli.training.state import TrainerState
from apollo_cli.training.trainer import Trainer
from benchmarks.configs import config_of


class FixedDepth(DepthSampler):
    """Draws always the same depth."""

    def __init__(self, depth: int) -> None:
        self.fixed = depth

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        return {self.fixed: 1.0}


class _NoTracker:
    """A tracker that drops everything."""

    def metrics_bytes(self) -> int:
        return 0

    def row(self, *_: Any) -> None:
        pass

    step = say = row


def make_trainer(
    words: list[str], stored: int, sampler: DepthSampler | None, real_tracker: bool = False
) -> Trainer:
    """A Trainer at its first step, with `stored` of 12 layers and depths from `sampler` (None: all layers)."""
    fixed = ["device=cpu", "precision=fp32", "size=nano", "schedule=scratch", "sampler=full", "budget.steps=10000"]
    typed = {word.partition("=")[0] for word in words}
    config = config_of([*words, *(w for w in fixed if w.partition("=")[0] not in typed)])
    device, console = choose(config.run), Console()
    plan = make_plan(config, device)
    directory = RunDirectory(Path(mkdtemp()))
    corpus = prepare_corpus(config, cache_folder.path(config.data.cache_dir), console, plan.steps)
    session = Pretraining(config, plan, device, corpus, directory, console)
    state = TrainerState(data=corpus.content, run_id=uuid4().hex[:16])
    tracker: Any = session.tracker(state) if real_tracker else _NoTracker()
    trainer = session.make_trainer(None, state, tracker)
    assert isinstance(trainer.model, LanguageModel)
    trainer.model.blocks = trainer.model.blocks[:stored]
    trainer.optimizer.param_groups[:] = _groups_of_stored_layers(trainer)
    if sampler:
        trainer.plan = replace(plan, sampler=sampler, schedule=Schedule((Stage(stored, 0, plan.steps),)))
    if real_tracker:  # as on a terminal, into /dev/null
        console.out.file, console.out._force_terminal = open(os.devnull, "w"), True  # noqa: SIM115, PTH123
        console.start(plan)
    trainer.model.train()
    return trainer


def _groups_of_stored_layers(trainer: Trainer) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer without the layers that were removed."""
    kept = {id(p) for p in trainer.model.parameters()}
    return [g | {"params": [p for p in g["params"] if id(p) in kept]} for g in trainer.optimizer.param_groups]


class Stopwatch:
    """Sums the seconds spent in some methods."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, owner: Any, name: str) -> None:
        """Times this method of this object from now on."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            start = perf_counter()
            try:
                return method(*arguments)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

        setattr(owner, name, timed)
