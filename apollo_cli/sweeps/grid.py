"""The combinations of a sweep, and the runs that a shipped one trains first."""

import math
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from apollo_cli.cli.arguments import CommandLine
from apollo_cli.config.conf_folder import conf_folder
from apollo_cli.config.hydra_syntax import in_quotes
from apollo_cli.errors import ConfigError

# without effect on a run that never grows
_OF_GROWTH = ("sampler", "expander", "schedule", "init_from", "optim.at_growth")
_SUBDIR, _DIR, _NUMBER = "hydra.sweep.subdir", "hydra.sweep.dir", "${hydra.job.num}"
_MOST_JOBS = 10_000
NO_PARAMS = "hydra.sweeper.params=null"  # the grid is in the words
_SOURCE = "source-${model.kind}-${seed}"  # where conf/experiment/_from_source.yaml looks for it


def combinations(overrides: Sequence[Override], is_grid: bool) -> list[list[str]]:
    """The words of each job of a sweep with these overrides.

    In a grid every combination is run, as by Hydra's own sweeper. Of a search the jobs are not known, so each key
    is varied alone, an interval at its two ends. A ConfigError for a key that cannot be swept so, or too many jobs.
    """
    swept = [o for o in overrides if o.is_sweep_override()]
    problems = [f"{o.input_line}: {problem}" for o in swept if (problem := _problem_of_sweep(o, is_grid))]
    if not problems and is_grid and (jobs := math.prod(len(_values(o)) for o in swept)) > _MOST_JOBS:
        typed = " ".join(o.input_line or "" for o in swept)
        problems.append(f"{typed}: {jobs:,} jobs, and a sweep has at most {_MOST_JOBS:,}; type fewer values")
    if problems:
        raise ConfigError(*problems)
    if is_grid:
        return BasicSweeper.split_arguments(list(overrides), max_batch_size=None)[0]
    fixed = [o.input_line or "" for o in overrides if not o.is_sweep_override()]
    varied = [(o.get_key_element(), _values(o)) for o in swept]
    first = [f"{key}={values[0]}" for key, values in varied]
    words = [fixed + first]
    for i, (key, values) in enumerate(varied):
        words += [[*fixed, *first[:i], f"{key}={value}", *first[i + 1 :]] for value in values[1:]]
    return words


def _problem_of_sweep(override: Override, is_grid: bool) -> str:
    if is_grid and isinstance(override.value(), IntervalSweep):
        return "an interval is searched, by hydra/sweeper=optuna; for a grid type a list, choice() or range()"
    try:
        values = _values(override)
    except ValueError as error:  # range(0,3,0)
        return str(error)
    if not values:
        return "no value is in it; type at least one"
    if len(values) > _MOST_JOBS:
        return f"more than {_MOST_JOBS:,} values; type fewer"
    if is_grid and len(set(values)) < len(values):
        twice = next(value for i, value in enumerate(values) if value in values[:i])
        return f"{twice} stands there twice; type each value once"
    return ""


def _values(override: Override) -> list[str]:
    """The values of a key, at most one more than a sweep may have; an interval's ends."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    # a shuffled range would be made as a whole first
    values = map(str, value.range()) if isinstance(value, RangeSweep) else override.sweep_string_iterator()
    return list(islice(values, _MOST_JOBS + 1))


def commands(line: CommandLine) -> list[list[str]]:
    """The overrides of each of Hydra's sweeps that a command stands for: one, but for a shipped sweep.

    A shipped sweep (an experiment with `hydra.sweeper.params`) is preceded by the scratch runs that it is compared
    with: one for each job, but for what growth alone is concerned with, so that nothing is trained twice. One that
    varies nothing of growth is made of scratch runs, and nothing precedes it. One over other experiments is also
    preceded by the smaller models that some of these begin from. A ConfigError for words that do not suit it.
    """
    name = next((w.partition("=")[2] for w in reversed(line.overrides) if w.startswith("experiment=")), "")
    params = shipped_params(name)
    if not line.multirun or not any(key == "experiment" or _is_of_growth(key) for key in params):
        return [list(line.overrides)]
    typed = OverridesParser.create().parse_overrides(list(line.overrides))
    if other := [o for o in typed if o.key_or_group == "hydra/sweeper" and o.value() != "basic"]:
        raise ConfigError(
            f"{other[-1].input_line}: experiment={name} is a grid, with scratch runs beside it; leave this out"
        )
    keys = {o.key_or_group for o in typed} - {"experiment"}
    swept = [f"{key}={values}" for key, values in params.items() if key not in keys]
    over_methods = "experiment" in params
    if over_methods:
        _check_words_beside_methods(name, typed)
        if _DIR not in keys:
            parent = f"${{apollo_parent:${{plan}},{Path(name).name}}}"  # as in conf/config.yaml
            folder = f"outputs/{parent}/{os.environ['APOLLO_STAMP']}"
            swept.append(f"{_DIR}={in_quotes(folder)}")
    words = [w for w in line.overrides if not (over_methods and w.startswith("experiment="))] + swept
    left_out = (f"{_SUBDIR}=", "experiment=") if over_methods else (f"{_SUBDIR}=",)
    kept = [w for w in words if not _is_of_growth(w) and not w.startswith(left_out)]
    subdir = in_quotes(f"scratch-{[_NUMBER, *(o.value() for o in typed if o.key_or_group == _SUBDIR)][-1]}")
    scratch = [*kept, "schedule=scratch", NO_PARAMS, f"{_SUBDIR}={subdir}"]
    if not over_methods:
        return [scratch, list(line.overrides)]
    source = [*kept, f"experiment=[{name},_source]", NO_PARAMS, f"{_SUBDIR}={_SOURCE}"]
    return [["name=scratch", *scratch, f"experiment={name}"], source, [*words, NO_PARAMS]]


def shipped_params(experiment: str) -> dict[str, Any]:
    """What the shipped experiment of this name is swept over; empty if it is no sweep, or not shipped."""
    file = conf_folder() / "experiment" / f"{experiment}.yaml"
    if not experiment or not file.resolve().is_relative_to(conf_folder().resolve()) or not file.is_file():
        return {}
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return (values.get("hydra") or {}).get("sweeper", {}).get("params") or {}


def _check_words_beside_methods(name: str, typed: Sequence[Override]) -> None:
    """Refuses what would part the methods of a sweep over experiments from the smaller models they begin from."""
    models = ("model.", "size", "schedule", "sampler", "expander", "init_from")
    problems = [
        f"{o.key_or_group}: experiment={name} has models and methods of its own that belong together; copy its "
        "file and those that it names into a folder for --config-dir, or run the methods one by one"
        for o in typed
        if o.key_or_group.startswith(models)
    ]
    problems += [
        f"{o.input_line}: experiment={name} has one source for each model and seed; sweep seed= and model= alone, "
        "and type the command once for each value of others"
        for o in typed
        if o.is_sweep_override() and o.key_or_group not in ("seed", "model")
    ]
    if problems:
        raise ConfigError(*problems)


def _is_of_growth(word: str) -> bool:
    key = word.partition("=")[0]
    return any(key == part or key.startswith(f"{part}.") for part in _OF_GROWTH)
