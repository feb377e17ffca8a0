"""A run that has its directory: from a checkpoint, or from nothing, to its summary, whatever happens on the way."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from apollo_cli import files
from apollo_cli.errors import CheckpointError, TrainingError
from apollo_cli.growth.plan import Plan
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import Interrupted, StopRequest, Terminated
from apollo_cli.tracking.console import Console
from apollo_cli.tracking.tracker import NullTracker, Tracker
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.device import Device, is_out_of_memory
from apollo_cli.training.distributed.ddp import ParallelStrategy
from apollo_cli.training.state import Checkpoint, TrainerState, restore_random_state
from apollo_cli.training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a finished run leaves. `losses` has the last `train/loss` and `eval/...`."""

    run_dir: Path
    plan: Plan
    losses: dict[str, float]


class Session(ABC):
    """The story of a run; what it trains, and on what, is said by a subclass."""

    out_of_memory_hint = "a smaller batch.micro needs less, with the same result but for rounding"  # memory

    def __init__(self, plan: Plan, device: Device, directory: RunDirectory, console: Console) -> None:
        self.plan, self.device, self.directory, self.console = plan, device, directory, console

    @property
    @abstractmethod
    def data(self) -> str:
        """The fingerprint of what it trains on."""

    @abstractmethod
    def tracker(self, state: TrainerState) -> Tracker:
        """Where rows go."""

    @abstractmethod
    def loop(self, checkpoint: Checkpoint | None, state: TrainerState, tracker: Tracker) -> Trainer:
        """The moving parts, new or as the checkpoint has them."""

    @abstractmethod
    def finish(self, loop: Trainer) -> None:
        """What is made of a model that is trained."""

    @abstractmethod
    def summary(self, status: str, state: TrainerState) -> dict[str, Any]:
        """summary.json; `status` is completed, interrupted or failed."""

    @abstractmethod
    def print_summary(self, summary: dict[str, Any]) -> None:
        """What a person is told at the end."""

    def run(self, checkpoint: Checkpoint | None) -> Result:
        """Trains from the checkpoint or from the start, finishes, and writes summary.json whatever happens."""
        if self.device.processes.is_main:
            self.console.log_to(self.directory.log_file)
        state = checkpoint.state if checkpoint else TrainerState(data=self.data, run_id=uuid4().hex[:16])
        state.planned_steps, processes = self.plan.steps, self.device.processes
        if state.devices != processes.world_size and checkpoint:
            self.console.say(
                f"note: it ran on {state.devices} and goes on with {processes.world_size} devices: the same rows, "
                "depths and FLOPs, but sums in another order, so that losses differ in their last digits"
            )
        state.devices = processes.world_size
        tracker = self.tracker(state)
        status = "failed"
        try:
            loop = self.loop(checkpoint, state, tracker)
            self.console.start(self.plan)
            with StopRequest() as stop:
                loop.run(stop)
            self.finish(loop)  # by all, for the model may lie on all
            status = "completed"
        except (Interrupted, KeyboardInterrupt, Terminated):
            status = "interrupted"
            raise
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise TrainingError(
                    f"step {state.step}: the memory of {self.device.name} is used up; {self.out_of_memory_hint}"
                ) from error
            raise
        finally:
            with StopRequest():  # what is done is done; only a second signal cuts the closing short
                self._close(status, state, tracker)
        return Result(self.directory.path, self.plan, state.losses)

    def restore(self, checkpoint: Checkpoint, strategy: ParallelStrategy, optimizer: AdamW) -> None:
        """Gives model and optimizer, and torch's generators, the state of the checkpoint.

        Raises:
            CheckpointError: it is of another model.
        """
        try:
            strategy.restore(checkpoint, optimizer)
            restore_random_state(checkpoint.rng, self.device.device)
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(
                f"{self.directory}: the checkpoint is of another model than config.yaml says"
            ) from error

    def _close(self, status: str, state: TrainerState, tracker: Tracker) -> None:
        """The summary, for the directory, for whoever listens and for the screen."""
        if isinstance(tracker, NullTracker):
            return
        self.console.stop()
        summary = self.summary(status, state)
        try:
            files.write_json(self.directory.summary_file, summary)
        except OSError as error:  # the disk is full or gone; why the run ended is said by its own message
            if status == "completed":
                raise files.unwritable(self.directory.summary_file, 10_000, error) from error
        finally:
            tracker.close(status, summary["totals"] | summary["losses"])
            self.print_summary(summary)
