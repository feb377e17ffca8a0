"""Micro-steps and updates replayed as CUDA graphs: one launch each, where the host would start every kernel."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

Work = Callable[[Sequence[Tensor]], Tensor]  # from inputs to a result; it may change gradients and weights in place


class Recorder(Protocol):
    """How work is warmed up and captured; `CudaRecorder` is that of a GPU."""

    def warm_up(self, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        """The result of the work, run as it is."""

    def capture(self, work: Work, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Captures the work on these tensors without running it.

        Returns:
            What runs it, and the tensor that has its result then.

        Raises:
            RuntimeError: it cannot be captured; nothing has changed.
        """


@dataclass(frozen=True)
class _Graph:
    inputs: Sequence[Tensor]
    replay: Callable[[], None]
    result: Tensor


class Graphs:
    """Work by a key: run as it is at first, then captured, from then on replayed.

    The work of a key must run the same kernels on the same tensors each time but for its inputs, which are copied
    to where they were at the capture. The first run is a step like any other, and warms up what is captured. After
    the first work that cannot be captured everything runs as it is.

    Args:
        recorder: of the device.
        say: prints a line for the user.
    """

    def __init__(self, recorder: Recorder, say: Callable[[str], None]) -> None:
        self.recorder, self.say = recorder, say
        self.is_off = False
        self.seconds = 0.0  # spent on captures
        self.clear()

    def clear(self) -> None:
        """Forgets all graphs, and frees their memory: the tensors that they change are replaced by others."""
        self._warm: set[Hashable] = set()
        self._graphs: dict[Hashable, _Graph] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        """The result of the work, in a tensor of its own.

        Args:
            key: of the work, apart from the shapes of its inputs.
            work: on inputs, see above.
            inputs: of this time.
        """
        key = (key, *(tensor.shape for tensor in inputs))
        if self.is_off:
            return work(inputs)
        if key not in self._warm:
            self._warm.add(key)
            return self.recorder.warm_up(work, inputs)
        if key not in self._graphs and not self._captured(key, work, inputs):
            return work(inputs)
        graph = self._graphs[key]
        for static, now in zip(graph.inputs, inputs, strict=True):
            static.copy_(now)
        graph.replay()
        return graph.result.clone()

    def _captured(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> bool:
        began, static = perf_counter(), [tensor.clone() for tensor in inputs]
        try:
            self._graphs[key] = _Graph(static, *self.recorder.capture(work, static))
        except RuntimeError as error:
            self.is_off = True
            self.clear()
            reason = str(error).strip().partition("\n")[0]
            self.say(f"compile=graphs: a step cannot be captured ({reason}); it goes on with compiled blocks alone")
            return False
        self.seconds += perf_counter() - began
        return True


class CudaRecorder:
    """Captures on a GPU; all graphs share one pool of memory, as none reads what another has left there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        """Runs on another stream, as torch asks for before a capture."""
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = work(inputs)
        current.wait_stream(side)
        result.record_stream(current)
        return result

    def capture(self, work: Work, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: meanwhile another thread copies the next micro-batch
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = work(inputs)
        return graph.replay, result
