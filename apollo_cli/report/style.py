"""How pictures look: colours, lines, units, files."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: there may be no screen

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apollo_cli.report.comparison import Method

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, colour-blind safe
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP"
_LONGEST = 60  # characters of a label in a legend

SETTINGS: Any = {
    "figure.dpi": 150,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Look:
    """Of one method, the same in all pictures; colour, line and marker differ, so that one of them is enough."""

    label: str
    colour: str
    line: Any
    marker: str


def looks(methods: Sequence[Method]) -> dict[str, Look]:
    """By label; the baseline is black, the others take colours in turn, then the next kind of line."""
    others = [method for method in methods if not method.is_baseline]
    found = {}
    for method in methods:
        label = method.label if len(method.label) <= _LONGEST else f"{method.label[: _LONGEST - 1]}…"
        label = label.replace("$", r"\$").lstrip("_")  # a stranger's text is no formula, and hides nothing
        if method.is_baseline:
            found[method.label] = Look(label, "black", "-", "X")
            continue
        i = others.index(method)
        line = _LINES[(i // len(COLOURS) + (i % 2)) % len(_LINES)]
        found[method.label] = Look(label, COLOURS[i % len(COLOURS)], line, _MARKERS[i % len(_MARKERS)])
    return found


def unit(axis: str, largest: float) -> tuple[float, str]:
    """What to divide by, and the name of an axis that goes up to `largest` FLOPs or seconds."""
    if axis == "flops":
        power = math.floor(math.log10(largest)) if largest else 0
        return 10.0**power, f"model FLOPs (units of 1e{power})"
    for name, seconds in (("hours", 3600.0), ("minutes", 60.0)):
        if largest >= 3 * seconds:
            return seconds, f"training time ({name})"
    return 1.0, "training time (seconds)"


def legend(axes: Axes, count: int, **place: Any) -> None:
    """A legend of so many labels, in letters that leave room."""
    axes.legend(fontsize=10 if count <= 8 else 8, **place)


def png(figure: Figure) -> bytes:
    """The file, without a date or a version in it."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    plt.close(figure)
    return data.getvalue()
