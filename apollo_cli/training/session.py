"""A run in its directory, from a checkpoint or from the start, to its summary, however it ends."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from apollo_cli import files
from apollo_cli.errors import CheckpointError, TrainingError
from apollo_cli.growth.plan import Plan
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import Interrupted, StopRequest, Terminated
from apollo_cli.tracking.console import Console
from apollo_cli.tracking.tracker import Tracker
from apollo_cli.training.adamw import AdamW
from apollo_cli.training.device import Device, is_out_of_memory
from apollo_cli.training.distributed.ddp import ParallelStrategy
from apollo_cli.training.profiling import profiled
from apollo_cli.training.state import Checkpoint, TrainerState, restore_rng_state
from apollo_cli.training.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a finished run leaves. `losses` has the last `train/loss` and `eval/...`."""

    run_dir: Path
    plan: Plan = field(repr=False)
    losses: dict[str, float]

    @property
    def flops(self) -> int:
        """Model FLOPs of its steps; of a plan those that it counts."""
        totals = RunDirectory(self.run_dir).summary().get("totals", {})
        return totals.get("flops", self.plan.flops)


class Session(ABC):
    """A run from its start to its end; subclasses define what is trained. `data` is the fingerprint of its data."""

    profiles = False  # whether a few steps are profiled
    out_of_memory_hint = "a new run with a smaller batch.micro needs less; its micro-steps draw their own depths"

    def __init__(self, plan: Plan, device: Device, directory: RunDirectory, console: Console, data: str) -> None:
        self.plan, self.device, self.directory, self.console, self.data = plan, device, directory, console, data

    @abstractmethod
    def tracker(self, state: TrainerState) -> Tracker:
        """Where rows go."""

    @abstractmethod
    def make_trainer(self, checkpoint: Checkpoint | None, state: TrainerState, tracker: Tracker) -> Trainer:
        """The trainer, new or with the state of the checkpoint."""

    @abstractmethod
    def finish(self, trainer: Trainer) -> None:
        """Writes what is made of the trained model; all processes call it."""

    @abstractmethod
    def summary(self, status: str, state: TrainerState) -> dict[str, Any]:
        """summary.json; `status` is completed, interrupted or failed."""

    @abstractmethod
    def print_summary(self, summary: dict[str, Any]) -> None:
        """Prints the end of the run to the console."""

    def run(self, checkpoint: Checkpoint | None) -> Result:
        """Trains from the checkpoint or from the start, finishes, and writes summary.json however it ends."""
        if self.device.processes.is_main:
            self.console.log_to(self.directory.log_file)
        state = checkpoint.state if checkpoint else self.new_state()
        state.planned_steps, processes = self.plan.steps, self.device.processes
        if state.devices != processes.world_size and checkpoint:
            self.console.say(
                f"note: the run had {files.counted(state.devices, 'device')} and continues on "
                f"{processes.world_size}: the same rows, depths and FLOPs, but sums in another order, so that "
                "losses differ in their last digits"
            )
        state.devices = processes.world_size
        tracker = self.tracker(state)
        status = "failed"
        try:
            trainer = self.make_trainer(checkpoint, state, tracker)
            self.console.start(self.plan)
            with ExitStack() as open_parts:
                if self.profiles:
                    profiling = profiled(self.device.device, self.directory.path, self.console.say)
                    trainer.after_step = open_parts.enter_context(profiling)
                stop = open_parts.enter_context(StopRequest())
                trainer.run(stop)
            self.finish(trainer)
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
            with StopRequest():  # only a second signal cuts the closing short
                self._close(status, state, tracker)
        return Result(self.directory.path, self.plan, state.losses)

    def new_state(self) -> TrainerState:
        return TrainerState(data=self.data, run_id=uuid4().hex[:16])

    def restore(self, checkpoint: Checkpoint, strategy: ParallelStrategy, optimizer: AdamW) -> None:
        """Restores model, optimizer and torch's generators; a CheckpointError if the state is of another model."""
        with readable(self.directory):
            strategy.restore(checkpoint.tensors, optimizer)
            restore_rng_state(checkpoint.rng, self.device.device)

    def _close(self, status: str, state: TrainerState, tracker: Tracker) -> None:
        if not self.device.processes.is_main:
            return
        self.console.stop()
        summary = self.summary(status, state)
        try:
            files.write_json(self.directory.summary_file, summary)
        except OSError as error:  # the disk is full or gone; if the run failed, its own message says why
            if status == "completed":
                raise files.unwritable(self.directory.summary_file, 10_000, error) from error
        finally:
            tracker.close(status, summary)
            if tracker.page:  # the server may have named it only now
                with suppress(OSError):
                    files.write_json(self.directory.summary_file, summary | {"wandb": tracker.page})
            self.print_summary(summary)


@contextmanager
def readable(directory: RunDirectory) -> Iterator[None]:
    """Raises a CheckpointError for what restoring a checkpoint of that run may raise."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{directory}: the checkpoint cannot be read: {error}") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{directory}: the checkpoint is of another model than config.yaml says") from error
