"""The sweep that a shipped experiment brings along: its grid, and what runs before it."""

from collections.abc import Sequence
from math import prod

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from apollo_cli.cli import config_safety

NO_OTHER = "hydra.sweeper.params=null"  # for Hydra: the whole grid is in the words beside it
_OF_GROWTH = ("sampler", "expander", "schedule", "init_from", "optim.at_growth")  # unused without growth
_SUBDIR, _DIR, _NUMBER = "hydra.sweep.subdir", "hydra.sweep.dir", "${hydra.job.num}"
_SOURCE = "source-${model.kind}-${seed}"  # where conf/experiment/_from_source.yaml finds it


def grid(experiment: str, typed: Sequence[Override]) -> list[Override] | None:
    """The values that the shipped experiment of this name is swept over, but for keys that are typed.

    A grid over other experiments stands in for it; what else it says of the sweep, its folder, is then a word.
    None if it is no sweep.
    """
    config = config_safety.composed([f"experiment={experiment}"])
    params = config.hydra.sweeper.params
    if params is None:
        return None
    keys = {o.key_or_group for o in typed} - {"experiment"}
    words = [f"{key}={values}" for key, values in params.items() if key not in keys]
    if "experiment" in params and _DIR not in keys:
        words.append(f"{_DIR}={config_safety.run_directory(config, multirun=True)}")
    return OverridesParser.create().parse_overrides(words)


def problems(experiment: str, typed: Sequence[Override], swept: Sequence[Override]) -> list[str]:
    """What may not stand beside a grid over other experiments, whose models and sources belong together."""
    if not any(o.key_or_group == "experiment" for o in swept):
        return []
    keys = [
        o.key_or_group
        for o in typed
        if o.key_or_group.startswith(("model.", "size", "schedule", "sampler", "expander", "init_from."))
    ]
    found = [
        f"{key}: experiment={experiment} has models and methods of its own that belong together; copy its file and "
        "those that it names into a folder for --config-dir, or run the methods one by one"
        for key in keys
    ]
    return found + [
        f"{o.input_line}: experiment={experiment} has one source for each model and seed; sweep seed= and model= "
        "alone, and type the command once for each value of others"
        for o in typed
        if o.is_sweep_override() and o.key_or_group not in ("seed", "model")
    ]


def before(experiment: str, swept: Sequence[Override]) -> list[list[str]]:
    """The words of the sweeps that run before the cells of `swept`, which this experiment brought.

    Scratch runs that they are compared with, one for each cell but for what only growth is concerned with, so that
    nothing is trained twice; and, where the experiment has some, the smaller models that cells of it begin from.
    """
    over_methods = any(o.key_or_group == "experiment" and o.is_sweep_override() for o in swept)
    kept = [
        o.input_line or ""
        for o in swept
        if not _is_of_growth(o.key_or_group) and o.key_or_group not in (_SUBDIR, *(["experiment"] * over_methods))
    ]
    subdir = [o.get_value_element_as_str() for o in swept if o.key_or_group == _SUBDIR]
    scratch = [*kept, "schedule=scratch", NO_OTHER, f"{_SUBDIR}=scratch-{subdir[-1] if subdir else _NUMBER}"]
    if not over_methods:
        return [scratch]
    source = [*kept, f"experiment=[{experiment},_source]", NO_OTHER, f"{_SUBDIR}={_SOURCE}"]
    return [["name=scratch", *scratch, f"experiment={experiment}"], source]


def num_cells(words: Sequence[str]) -> int | None:
    """How many cells these overrides make; None where Hydra alone knows."""
    counts: dict[str, int] = {}
    for override in OverridesParser.create().parse_overrides(list(words)):
        if isinstance(override.value(), Glob):
            return None
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [""]
        counts[override.get_key_element()] = len(values)
    return prod(counts.values())


def _is_of_growth(key: str) -> bool:
    return any(key == part or key.startswith(f"{part}.") for part in _OF_GROWTH)
