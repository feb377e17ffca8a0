"""A run that is made longer than it was planned: which length it gets, and whether its rate allows it."""

from pathlib import Path
from typing import Any

from apollo_cli import files
from apollo_cli.config.config import Config, parse
from apollo_cli.config.data import is_streamed
from apollo_cli.config.hydra_syntax import pasted
from apollo_cli.config.training import LENGTHS
from apollo_cli.errors import ConfigError
from apollo_cli.growth.plan import Plan
from apollo_cli.run_directory import RunDirectory
from apollo_cli.training.checkpoint import checkpoint_names
from apollo_cli.training.device import Device
from apollo_cli.training.optimizer import learning_rate
from apollo_cli.training.planning import make_plan
from apollo_cli.training.state import Checkpoint


def extended(
    config: Config,
    typed: dict[str, Any],
    planned: Plan,
    device: Device,
    directory: RunDirectory,
    checkpoint: Checkpoint | None,
) -> tuple[Config, Plan]:
    """The config and the plan of a run that is made longer, from its plan until now.

    The stages end where they did, but for the last one; warmup and gates keep their steps. `typed` has the new
    length, as in `budget`.

    Raises:
        ConfigError: it is no longer than before, the steps that are done would have had another rate, the ends of
            its stages are not decided yet, or its corpus is a stream.
    """
    ((unit, value),) = typed.items()
    if is_streamed(config.data):
        raise ConfigError(
            f"budget.{unit}={value}: of a stream so many rows were packed as the run needed, and a longer run "
            "would read them in another order; begin a new run with its weights: "
            f"{pasted('init_from.path', str(directory))}"
        )
    ended = checkpoint.state.stage_ends if checkpoint else []
    if config.schedule.when == "plateau" and len(ended) < len(config.schedule.layers) - 1:
        raise ConfigError(
            f"budget.{unit}={value}: with schedule.when=plateau a run is made longer in its last stage; type "
            f"resume={files.shown(Path(directory.path))} alone until then"
        )
    lengths = dict.fromkeys(LENGTHS) | typed
    earlier = [*config.budget.extended_from, planned.steps]
    budget = config.raw["budget"] | lengths | {"extended_from": earlier}
    longer = parse({**config.raw, "budget": budget})
    run_plan = make_plan(longer, device, recorded=planned.source, ended=ended)
    changed = first_changed_rate(config, planned, run_plan, checkpoint.state.step if checkpoint else 0)
    if changed is not None:
        assert checkpoint
        raise ConfigError(_refusal(config, typed, planned, directory, changed, checkpoint.state.step))
    return longer, run_plan


def record_extension(config: Config, run_plan: Plan, directory: RunDirectory) -> None:
    """Writes the length of a run that was made longer to config.yaml and plan.json of its locked directory."""
    budget = dict.fromkeys(LENGTHS) | config.budget.lengths | {"extended_from": list(config.budget.extended_from)}
    with files.writing(directory.config_file, 100_000):
        directory.summary_file.unlink(missing_ok=True)  # the run is under way again
        saved = directory.config()
        directory.write_config(saved | {"budget": saved["budget"] | budget})
        files.write_json(directory.plan_file, run_plan.as_dict())


def first_changed_rate(config: Config, planned: Plan, longer: Plan, done: int) -> int | None:
    """The first of the steps done whose learning rate would be another in the longer plan; None without one."""

    def rate(plan: Plan, step: int) -> float:
        schedule = plan.schedule
        return learning_rate(config.optim, step, schedule.steps, schedule.growth_steps, schedule.first_planned)

    return next((step for step in range(done) if rate(planned, step) != rate(longer, step)), None)


def _refusal(
    config: Config, typed: dict[str, Any], planned: Plan, directory: RunDirectory, changed: int, done: int
) -> str:
    """Why the rate does not allow it, and the new run that goes on instead."""
    ((unit, value),) = typed.items()
    names = checkpoint_names(directory.checkpoints)
    early = [name for name in names if int(name.removeprefix("step_")) <= changed]
    path = pasted("init_from.path", str(directory))
    from_earlier = (
        f", or with the checkpoint before that: {path} init_from.checkpoint={early[-1]}"
        if early and changed
        else ""
    )
    return (
        f"budget.{unit}={value}: with optim.schedule={config.optim.schedule} the rate of steps {changed} to "
        f"{done - 1} was laid out for {planned.steps} steps, and would have been another one in a longer run. "
        f"Begin a new run with its weights: {path}, with its moments: init_from.optimizer=true, and with the rows "
        f"after its own: init_from.data=true{from_earlier}. A run with optim.schedule=constant, or wsd before its "
        "decay, goes on"
    )
