"""Micro-steps and updates replayed as CUDA graphs: one launch each, where the host would start every kernel."""

from collections.abc import Callable, Hashable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from apollo_cli.errors import TrainingError, first_line

Work = Callable[[Sequence[Tensor]], Tensor]  # from inputs to a result; it may change gradients and weights in place


class Graphs:
    """Work by a key: run as it is at first, then captured, from then on replayed.

    The work of a key must run the same kernels on the same tensors each time but for its inputs, which are copied
    to where they were at the capture. The first run is a step like any other, and makes what a capture must not
    make: gradients, the optimizer's state, compiled kernels.

    Attributes:
        seconds: spent on captures by this process.
    """

    def __init__(self, recorder: "CudaRecorder") -> None:
        self.recorder, self.seconds = recorder, 0.0
        self._warm: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[Sequence[Tensor], Callable[[], None], Tensor]] = {}

    def clear(self) -> None:
        """Forgets all graphs and frees their memory, before the tensors that they change are replaced."""
        self._warm.clear()
        self._graphs.clear()
        self.recorder.clear()

    def run(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        """The result of the work on these inputs, in a tensor of its own; a TrainingError if it cannot be captured.

        Works that differ in the shapes of their inputs alone may have one key.
        """
        key = (key, *(tensor.shape for tensor in inputs))
        if key not in self._warm:
            self._warm.add(key)
            return self.recorder.warm_up(work, inputs)
        if key not in self._graphs:
            began, static_inputs = perf_counter(), [tensor.clone() for tensor in inputs]
            try:
                self._graphs[key] = (static_inputs, *self.recorder.capture(work, static_inputs))
            except RuntimeError as error:  # torch says that its state cannot be repaired then
                raise TrainingError(
                    f"compile=graphs: a step cannot be captured ({first_line(error)}); resume with compile=true"
                ) from error
            self.seconds += perf_counter() - began
        kept_inputs, replay, result = self._graphs[key]
        for static, now in zip(kept_inputs, inputs, strict=True):
            static.copy_(now)
        replay()
        return result.clone()


class CudaRecorder:
    """Captures on a GPU; all graphs share a pool of memory, as none reads what another has left there.

    Everything runs on one stream, so that what a library allocates once for a stream is there before a capture. Its
    priority keeps it apart from torch's other streams, which are handed out in turn, also to the prefetch.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device, priority=-1)
        self.clear()

    def clear(self) -> None:
        """Called when all graphs are gone, for then their pool cannot be used again."""
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Work, inputs: Sequence[Tensor]) -> Tensor:
        """The result of the work, run as it is."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work(inputs)
        current.wait_stream(self.stream)
        for tensor in inputs:
            tensor.record_stream(self.stream)
        result.record_stream(current)
        return result

    def capture(self, work: Work, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Captures the work on these tensors without running it; returns what runs it, and its result.

        A RuntimeError if it cannot be captured; the device may be unusable from then on.
        """
        graph = torch.cuda.CUDAGraph()
        # thread_local: meanwhile another thread copies the next micro-batch
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            result = work(inputs)
        return graph.replay, result
