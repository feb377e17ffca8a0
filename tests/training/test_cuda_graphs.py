"""Which work is captured and replayed; the recorder is one that a CPU has, CUDA's own is in `test_gpu`."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apollo_cli.config.config import Config
from apollo_cli.errors import ConfigError, TrainingError
from apollo_cli.training import muon, pretraining
from apollo_cli.training.cuda_graphs import CudaRecorder, Graphs, Work
from apollo_cli.training.device import Device, choose
from apollo_cli.training.run import resume, train
from apollo_cli.training.trainer import Trainer
from tests.conftest import read_rows, without_clocks
from tests.training.test_resume import interrupt


class Recorder(CudaRecorder):
    """Runs captured work anew on the tensors of its capture; what it reads and changes must be where it was."""

    trainer: Trainer | None = None

    def __init__(self) -> None:
        self.warm_ups, self.captures, self.replays, self.clears = 0, 0, 0, 0

    def clear(self) -> None:
        self.clears += 1

    def warm_up(self, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        self.warm_ups += 1
        return work(inputs)

    def capture(self, work: Work, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captures += 1
        updates = len(inputs) == 1  # of the losses
        result, addresses = torch.empty(()), self.addresses(updates)

        def replay() -> None:
            self.replays += 1
            result.copy_(work(inputs))
            assert self.addresses(updates) == addresses

        return replay, result

    def addresses(self, updates: bool) -> list[int]:
        """Of weights and gradients, and of the optimizer's state if the work updates; all of them must be there."""
        if self.trainer is None:
            return []
        parameters, optimizer = list(self.trainer.model.parameters()), self.trainer.optimizer
        tensors = [*parameters, *optimizer.averages.values(), self.trainer.blocked]
        for parameter in parameters:
            assert parameter.grad is not None
            state = optimizer.state.get(parameter, {})
            assert state or not updates
            tensors += [parameter.grad, *(state.values() if updates else ())]
        return [tensor.data_ptr() for tensor in tensors]


def total(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def test_work_is_run_then_captured_then_replayed_on_new_inputs() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    results = [graphs.run("sum", total, [torch.full((3,), float(i))]) for i in range(4)]
    assert [result.item() for result in results] == [0, 3, 6, 9]  # each in a tensor of its own
    assert (recorder.warm_ups, recorder.captures, recorder.replays) == (1, 1, 3)
    assert graphs.seconds > 0


def test_each_key_and_each_shape_has_a_graph_until_all_are_cleared() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    for _ in range(3):
        for key, size in (("a", 2), ("a", 3), ("b", 2)):
            graphs.run(key, total, [torch.ones(size)])
    assert recorder.captures == 3
    graphs.clear()
    assert recorder.clears == 1
    graphs.run("a", total, [torch.ones(2)])
    assert (recorder.warm_ups, recorder.captures) == (4, 3)


def test_work_that_cannot_be_captured_ends_the_run_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(Recorder, "capture", capture)
    graphs = Graphs(Recorder())
    graphs.run("a", total, [torch.ones(2)])
    message = r"compile=graphs: a step cannot be captured \(operation .* capturing\); resume with compile=true$"
    with pytest.raises(TrainingError, match=message):
        graphs.run("a", total, [torch.ones(2)])


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Makes every run on this CPU one with graphs; returns the recorder of each."""
    made = list[Recorder]()

    def recorder(device: torch.device) -> Recorder:
        made.append(Recorder())
        return made[-1]

    def trainer(self: Trainer) -> None:
        original(self)
        if self.graphs is not None:
            made[-1].trainer = self

    original = Trainer.__post_init__
    monkeypatch.setattr(Trainer, "__post_init__", trainer)
    monkeypatch.setattr(pretraining, "CudaRecorder", recorder)
    monkeypatch.setattr(Device, "graphs", property(lambda device: True, lambda device, value: None), raising=False)
    return made


WORDS = ("sampler=lvps", "sampler.k=2", "batch.micro=2", "log.every=1", "optim.clip=0.5")


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        pytest.param(kind, more, id=f"{kind}-{more}", marks=[] if (i + j) % 2 == 0 else pytest.mark.slow)
        for (i, kind), (j, more) in product(
            enumerate(["bert", "gpt"]),
            enumerate([(), ("optim=muon",), ("model.dropout=0.1",), ("optim.ema=0.9",), ("expander.lr_scale=2",)]),
        )
    ],
)
def test_losses_and_flops_are_those_without_graphs(
    kind: str,
    more: tuple[str, ...],
    config: Callable[..., Config],
    tmp_path: Path,
    recorders: list[Recorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(muon, "products_dtype", lambda device: torch.float32)  # bf16 would round the last digits up
    words = (f"model={kind}", *WORDS, *more)
    train(config(*words), tmp_path / "graphs")
    (recorder,) = recorders
    recorders.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining.Pretraining, "_make_graphs", lambda *_: None)
        train(config(*words), tmp_path / "plain")
    graphs, plain = (without_clocks(read_rows(tmp_path / name)) for name in ("graphs", "plain"))
    for row, of_plain in zip(graphs, plain, strict=True):
        assert row == pytest.approx(of_plain, rel=1e-5)  # the rate is a number in fp32
        assert row["flops"] == of_plain["flops"]
    assert recorder.replays > recorder.captures >= 3


def test_a_resumed_run_with_graphs_equals_an_undisturbed_one(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorders: list[Recorder]
) -> None:
    words = (*WORDS, "model.dropout=0.1")
    train(config(*words), tmp_path / "straight")
    interrupt(lambda: train(config(*words), tmp_path / "stopped"), 5, monkeypatch)
    resume(tmp_path / "stopped")
    straight, stopped = (without_clocks(read_rows(tmp_path / name)) for name in ("straight", "stopped"))
    assert stopped == straight


def test_a_stage_of_one_step_leaves_nothing_to_the_next(
    config: Callable[..., Config], tmp_path: Path, recorders: list[Recorder]
) -> None:
    """Else the first update of a grown model would be captured, with the making of its moments."""
    train(config(*WORDS, "schedule.ends=[0.1,0.2,1]", "budget.steps=10"), tmp_path)
    assert recorders[0].clears == 2
    assert recorders[0].replays


def test_a_stage_has_a_graph_for_each_depth_and_one_for_the_update(
    config: Callable[..., Config], tmp_path: Path, recorders: list[Recorder]
) -> None:
    words = ("schedule.layers=[2,4]", "schedule.ends=[0.9,1]", "budget.steps=40", "model.layers=4")
    result = train(config(*WORDS, *words), tmp_path)
    assert [set(stage.depth_counts) for stage in result.plan.stages] == [{2, 3, 4}, {4}]
    assert recorders[0].captures == (3 + 1) + (1 + 1)


def test_steps_without_a_gradient_for_all_layers_are_not_captured(
    config: Callable[..., Config], tmp_path: Path, recorders: list[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    train(config("sampler=prefixes", "sampler.multiple=1", "sampler.trained=1", "sampler.stages=3"), tmp_path)
    assert not recorders
    assert "compile=graphs: not every step has gradients for all stored layers" in capsys.readouterr().out


def test_a_cpu_has_no_graphs(config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="compile=graphs: cpu has no CUDA graphs; type compile=auto"):
        choose(config("compile=graphs", "device=cpu").run)
