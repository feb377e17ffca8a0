"""The real loop without a run around it: to time a step at a depth, what stands around a step, or a checkpoint."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any
from uuid import uuid4

from apollo_cli.config.config import parse
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.data import cache_folder
from apollo_cli.growth.samplers import DepthSampler
from apollo_cli.growth.schedule import Schedule, Stage
from apollo_cli.run_directory import RunDirectory
from apollo_cli.tracking.console import Console
from apollo_cli.training.corpora import prepare_corpus
from apollo_cli.training.device import choose
from apollo_cli.training.planning import make_plan
from apollo_cli.training.pretraining import Pretraining
from apollo_cli.training.state import TrainerState
from apollo_cli.training.trainer import Trainer


class FixedDepth(DepthSampler):
    """Always the same depth."""

    def __init__(self, depth: int) -> None:
        self.fixed = depth

    def probabilities(self, layers: int, target: int) -> dict[int, float]:
        """All at one."""
        return {self.fixed: 1.0}


class _Silent:
    """A tracker that keeps nothing."""

    def metrics_bytes(self) -> int:
        return 0

    def row(self, *_: Any) -> None:
        pass

    step = say = row


def make_loop(words: list[str], stored: int, sampler: DepthSampler | None, real_tracker: bool = False) -> Trainer:
    """A loop at its first step, with `stored` of 12 layers and depths from `sampler` (None: all layers)."""
    fixed = ["device=cpu", "schedule=scratch", "sampler=full", "budget.steps=10000"]
    typed = {word.partition("=")[0] for word in words}
    config = parse(compose_values([*words, *(w for w in fixed if w.partition("=")[0] not in typed)]))
    device, console = choose(config.run), Console()
    plan = make_plan(config, device)
    directory = RunDirectory(Path(mkdtemp()))
    corpus = prepare_corpus(config, cache_folder.path(config.data.cache_dir), console, plan.steps)
    session = Pretraining(config, plan, device, corpus, directory, console)
    progress = TrainerState(data=corpus.content, run_id=uuid4().hex[:16])
    tracker: Any = session.tracker(progress) if real_tracker else _Silent()
    loop = session.make_trainer(None, progress, tracker)
    model = loop.strategy.language_model()
    model.blocks = model.blocks[:stored]
    loop.optimizer.param_groups[:] = _of_model(loop)
    if sampler:
        loop.plan = replace(plan, sampler=sampler, schedule=Schedule((Stage(stored, 0, plan.steps),)))
    if real_tracker:  # on a terminal that nobody sees
        console.out.file, console.out._force_terminal = open(os.devnull, "w"), True  # noqa: SIM115, PTH123
        console.start(plan)
    loop.model.train()
    return loop


def _of_model(loop: Trainer) -> list[dict[str, Any]]:
    """The optimizer's groups without the layers that are not there."""
    kept = {id(p) for p in loop.model.parameters()}
    return [g | {"params": [p for p in g["params"] if id(p) in kept]} for g in loop.optimizer.param_groups]


class Stopwatch:
    """Sums up the seconds inside some methods."""

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
