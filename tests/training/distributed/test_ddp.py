"""When the replicas of a model exchange gradients."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from apollo_cli.growth.expanders import CopyLayers
from apollo_cli.growth.layer_maps import layer_map
from apollo_cli.growth.samplers import ForwardPath
from apollo_cli.models.build import build
from apollo_cli.models.model_config import Initialization, ModelConfig
from apollo_cli.models.transformer import Batch
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.distributed.ddp import DataParallel
from apollo_cli.training.init_from.weights import init_from_smaller

SHAPE = ModelConfig("gpt", 50, 8, 16, 2, 32, 6, 0.0, Initialization(0.02, "random", 0.02, "plain"))
TOKENS = torch.arange(16).view(2, 8)
BATCH = Batch(TOKENS, torch.arange(7), TOKENS.flatten()[torch.arange(7) + 1])


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", world_size=1, rank=0)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group")
def test_each_gradient_is_sent_once_a_step_also_after_a_growth() -> None:
    """A layer that runs three times has one gradient; micro-steps before the last one send nothing."""
    model, compiled = build(SHAPE, 2), list[torch.nn.Module]()
    strategy = DataParallel(model, compiled.extend, trains_all=True)
    groups, first = [{"params": [*model.parameters()], "weight_decay": 0.0}], [*model.blocks]
    optimizer = AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    for layers in (2, 4):
        if layers != len(model.blocks):
            strategy.grow(optimizer, CopyLayers("nearest").growth(len(model.blocks), layers), "map", {})
        sent: list[int] = []

        def count(
            state: Any, bucket: dist.GradBucket, sent: list[int] = sent
        ) -> torch.futures.Future[torch.Tensor]:
            sent.append(bucket.buffer().numel())
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        strategy.replica.register_comm_hook(None, count)
        for last in (False, False, True):
            assert not sent
            with strategy.no_sync(last):
                strategy.loss(BATCH, ForwardPath(layer_map("nearest", layers, 6))).backward()
        assert sum(sent) == model.num_parameters()
        once = build(SHAPE, layers)
        once.load_state_dict(model.state_dict())
        once.loss(BATCH, layer_map("nearest", layers, 6)).backward()
        for mine, whole in zip(model.parameters(), once.parameters(), strict=True):
            assert mine.grad is not None
            assert whole.grad is not None
            torch.testing.assert_close(mine.grad, 3 * whole.grad)
        optimizer.step()
        optimizer.zero_grad()
    assert compiled == [*first, *model.blocks]


@pytest.mark.usefixtures("_group")
def test_all_gradients_of_a_widened_replica_are_averaged() -> None:
    model, compiled = build(SHAPE, 2), list[torch.nn.Module]()
    strategy = DataParallel(model, compiled.extend, trains_all=True)
    large = replace(SHAPE, hidden=32, heads=4, ffn=64)
    strategy.enlarge(
        large,
        3,
        lambda wide, narrow: init_from_smaller(wide, narrow, CopyLayers("stack"), np.random.default_rng(0)),
    )
    assert strategy.model.model_config == large
    assert compiled == [*model.blocks, *strategy.model.blocks]
    assert strategy.replica.module is strategy.model
    strategy.loss(BATCH, ForwardPath((0, 1, 2))).backward()
    assert all(p.grad is not None for p in strategy.model.parameters())
