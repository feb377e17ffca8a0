"""The sweep that a shipped experiment brings along: its grid, and the baseline that runs before it."""

from collections.abc import Sequence
from math import prod

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override

from apollo_cli import guard

NO_OTHER = "hydra.sweeper.params=null"  # for Hydra: the whole grid is in the words beside it
_OF_GROWTH = ("sampler", "expander", "schedule", "optim.at_growth")  # all the same to a run that never grows
_SUBDIR = "hydra.sweep.subdir"


def grid(experiment: str, typed: Sequence[Override]) -> list[Override] | None:
    """The values that the shipped experiment of this name is swept over, but for keys that are typed.

    None if it is no sweep.
    """
    params = guard.composed([f"experiment={experiment}"]).hydra.sweeper.params
    if params is None:
        return None
    keys = {o.key_or_group for o in typed}
    parser = OverridesParser.create()
    return [parser.parse_override(f"{key}={values}") for key, values in params.items() if key not in keys]


def baseline(swept: Sequence[Override]) -> list[str]:
    """The words of the sweep over scratch runs that the cells of `swept` are compared with.

    One for each cell but for what only growth is concerned with, so that nothing is trained twice.
    """
    kept = [o for o in swept if not _is_of_growth(o.key_or_group) and o.key_or_group != _SUBDIR]
    subdir = [o.get_value_element_as_str() for o in swept if o.key_or_group == _SUBDIR]
    return [
        *(o.input_line or "" for o in kept),
        "schedule=scratch",
        NO_OTHER,
        f"{_SUBDIR}=scratch-{subdir[-1] if subdir else '${hydra.job.num}'}",
    ]


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
