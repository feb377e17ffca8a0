"""Which work is captured and replayed; the recorder is one that a CPU has, CUDA's own is in `test_gpu`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apollo_cli.config.config import Config
from apollo_cli.errors import ConfigError
from apollo_cli.training import pretraining
from apollo_cli.training.cuda_graphs import Graphs, Work
from apollo_cli.training.device import Device, choose
from apollo_cli.training.run import resume, train
from tests.conftest import read_rows, without_clocks
from tests.training.test_resume import interrupt


class Recorder:
    """Runs captured work anew on the tensors of its capture, as a graph does."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.warm_ups, self.captures, self.replays = refuses, 0, 0, 0

    def warm_up(self, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        self.warm_ups += 1
        return work(inputs)

    def capture(self, work: Work, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        self.captures += 1
        result = torch.empty(())

        def replay() -> None:
            self.replays += 1
            result.copy_(work(inputs))

        return replay, result


def total(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def test_work_is_run_then_captured_then_replayed_on_new_inputs() -> None:
    recorder, said = Recorder(), list[str]()
    graphs = Graphs(recorder, said.append)
    results = [graphs.run("sum", total, [torch.full((3,), float(i))]) for i in range(4)]
    assert [result.item() for result in results] == [0, 3, 6, 9]  # each in a tensor of its own
    assert (recorder.warm_ups, recorder.captures, recorder.replays) == (1, 1, 3)
    assert graphs.seconds > 0
    assert not said


def test_each_key_and_each_shape_has_a_graph() -> None:
    graphs = Graphs(Recorder(), print)
    for _ in range(3):
        for key, size in (("a", 2), ("a", 3), ("b", 2)):
            graphs.run(key, total, [torch.ones(size)])
    assert len(graphs) == 3
    graphs.clear()
    assert len(graphs) == 0


def test_after_work_that_cannot_be_captured_all_runs_as_it_is_and_one_line_says_so() -> None:
    recorder, said = Recorder(refuses=True), list[str]()
    graphs = Graphs(recorder, said.append)
    for _ in range(3):
        assert [graphs.run(key, total, [torch.ones(2)]).item() for key in ("a", "b")] == [2, 2]
    assert recorder.warm_ups == 2
    assert said == [
        "compile=graphs: a step cannot be captured (operation not permitted when stream is capturing); "
        "it goes on with compiled blocks alone"
    ]


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Makes every run on this CPU one with graphs; returns the recorder of each."""
    made = list[Recorder]()

    def recorder(device: torch.device) -> Recorder:
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr(pretraining, "CudaRecorder", recorder)
    monkeypatch.setattr(Device, "graphs", property(lambda device: True, lambda device, value: None), raising=False)
    return made


WORDS = ("sampler=lvps", "sampler.k=2", "batch.micro=2", "log.every=1", "optim.clip=0.5")


@pytest.mark.parametrize(
    "more", [(), ("model.dropout=0.1",), ("optim.ema=0.9",), ("expander.lr_scale=2",)], ids=str
)
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_losses_and_flops_are_those_without_graphs(
    kind: str, more: tuple[str, ...], config: Callable[..., Config], tmp_path: Path, recorders: list[Recorder]
) -> None:
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
