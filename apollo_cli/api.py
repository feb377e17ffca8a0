"""From Python and notebooks: train a run, load its model, compare runs. Nothing here exits or keeps a handler."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from matplotlib.figure import Figure
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException
from tokenizers import Tokenizer

from apollo_cli import files
from apollo_cli.cli.arguments import CommandLine
from apollo_cli.cli.error_help import explained
from apollo_cli.cli.resume import resume_overrides
from apollo_cli.config.conf_folder import CONF
from apollo_cli.config.config import Config
from apollo_cli.config.hydra_syntax import job_config
from apollo_cli.errors import ConfigError
from apollo_cli.inference.trained import load_trained
from apollo_cli.models.transformer import LanguageModel
from apollo_cli.report.comparison import Question, compare_runs
from apollo_cli.report.export import comparison_rows
from apollo_cli.report.plots import draw_comparison
from apollo_cli.report.runs import read_runs
from apollo_cli.sweeps.job import check_sweep_options
from apollo_cli.tracking.console import Console
from apollo_cli.training import run
from apollo_cli.training.distributed.environment import ProcessEnv
from apollo_cli.training.session import Result

_TO_SWEEP = "for sweeps type apollo-train -m in a shell"

__all__ = ["Compared", "OverridesError", "Result", "compare", "load", "train"]


class OverridesError(ConfigError, ValueError):
    """Overrides that cannot be run; the message has every problem of them, as that of the command."""


@dataclass(frozen=True)
class Compared:
    """What several runs need to reach the same loss.

    Attributes:
        rows: one a method, the columns of `apollo-compare --csv`: `pandas.DataFrame(rows)` makes a table of them.
            Losses are in nats, FLOPs are model FLOPs, savings and speedups are shares; None is what is not known.
        figures: by name: `frontier_flops`, `frontier_seconds`, `loss_against_flops`, `loss_against_seconds`,
            `growth`, `depths`, `strengths`, `lvps`, as far as the runs have data for them; before the name
            of one stands that of its family where there are several.
        warnings: what was left out, and why methods may not be comparable.
    """

    rows: list[dict[str, Any]]
    figures: dict[str, Figure]
    warnings: list[str]


def train(overrides: Sequence[str] = (), *, run_dir: str | Path | None = None) -> Result:
    """Trains a run to its end in this process, as `apollo-train` with these words does, and prints what it prints.

    Args:
        overrides: for example `["model=gpt", "budget.steps=100"]`; `resume=RUN_DIR` continues a run.
        run_dir: a new folder; by default `outputs/<name>/<date and time>`.

    Returns:
        The run directory, the plan, the last losses by name and the FLOPs. With `plan=true` nothing is trained.

    Raises:
        OverridesError: a ValueError; a word or value is wrong. Nothing was written.
        ApolloError: data, a checkpoint or the run itself failed; the message says what to do.
        Interrupted: an ApolloError; a signal, such as Ctrl-C, stopped the run, which has written a checkpoint.
    """
    missing: list[Path] = []
    try:
        if isinstance(overrides, str):
            raise ConfigError(f"overrides={overrides!r}: should be a list of words; type {overrides.split()}")
        line = CommandLine.parse(list(overrides))
        if line.flags:
            raise ConfigError(f"{line.flags[0]}: flags are for the command; here there are only KEY=VALUE words")
        if asked := resume_overrides(line):
            if run_dir is not None:
                raise ConfigError(f"run_dir={run_dir}: resume= names the folder of the run; leave run_dir out")
            return run.resume(Path(asked[0]), asked[1])
        config, typed = _composed(line)
        path = Path(run_dir or typed or _new_run_dir(config))
        missing = files.missing(path)
        return run.train(config, path)
    except ConfigError as error:
        raise OverridesError(*error.problems) from error
    finally:
        files.remove_empty(missing)


def _composed(line: CommandLine) -> tuple[Config, str | None]:
    """The config of a run with these words, and its directory if that is typed; a ConfigError has every problem."""
    try:
        with initialize_config_module(CONF, version_base="1.3"):
            values = compose("config", list(line.overrides), return_hydra_config=True)
        check_sweep_options(values.hydra, _TO_SWEEP)
        typed = values.hydra.run.dir if line.typed("hydra.run.dir") else None
        with open_dict(values):
            del values["hydra"]
        return job_config(values, line.overrides), typed
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(line, error, f"{_TO_SWEEP}, or ") from error


def _new_run_dir(config: Config) -> Path:
    if ProcessEnv.from_environ(os.environ):
        raise ConfigError("run_dir: several processes train one run; give all of them the same folder")
    folder = "plans" if config.run.plan else config.run.name
    return Path("outputs") / folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")


def load(run_dir: str | Path, checkpoint: str | None = None) -> tuple[LanguageModel, Tokenizer]:
    """A trained model, ready to be evaluated, and its tokenizer.

    Args:
        run_dir: of a run, or a folder with a BERT, GPT-2 or LLaMA in transformers' format.
        checkpoint: the name of one of the run's, for example "step_00000100"; by default its exported model.

    Returns:
        The model, whose `logits(tokens, layer_map)` take a (rows, seq_len) int64 tensor and the layers to run, for
        example `range(len(model.blocks))`; and the tokenizer, `encode(text).ids` and `decode(ids)`.

    Raises:
        CheckpointError: there is no such model.
        DataError: its tokenizer cannot be read.
    """
    trained = load_trained(Path(run_dir), Console(quiet=True), checkpoint)
    return trained.model, trained.tokenizer


def compare(
    paths: Sequence[str | Path],
    *,
    baseline: str | None = None,
    target_loss: float | None = None,
    at_flops: float | None = None,
) -> Compared:
    """What `apollo-compare` says about runs: FLOPs and seconds to the same loss, and what each method saved.

    Args:
        paths: run directories, folders of them, globs.
        baseline: the method to measure by; by default the one that trains all layers from the first step.
        target_loss: in nats; by default the final one of the baseline.
        at_flops: a budget at which the losses are compared, too.

    Raises:
        DataError: no run is there, or the baseline is none of them.
    """
    runs, left_out = read_runs([str(path) for path in paths])
    comparisons, warnings = compare_runs(runs, left_out, Question(baseline, target_loss, at_flops))
    figures: dict[str, Figure] = {}
    for comparison in comparisons:
        family = f"{comparison.family.title}: " if len(comparisons) > 1 else ""
        figures |= {f"{family}{picture.name}": picture.figure for picture in draw_comparison(comparison)}
    return Compared(comparison_rows(comparisons), figures, warnings)
