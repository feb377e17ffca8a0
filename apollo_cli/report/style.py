"""Style of the pictures: colours, lines, units, files."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from apollo_cli.report.comparison import Method
from apollo_cli.report.groups import shortened

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, colour-blind safe
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP"

SETTINGS: list[Any] = [Path(__file__).with_name("pictures.mplstyle")]


class Picture(NamedTuple):
    """A figure and what it shows."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Look:
    """Look of a method, the same in all pictures; colour, line and marker each distinguish it."""

    label: str
    colour: str
    line: Any
    marker: str

    @property
    def of_line(self) -> dict[str, Any]:
        """As matplotlib's keywords of a line."""
        return {"color": self.colour, "linestyle": self.line, "marker": self.marker}


def looks(methods: Sequence[Method]) -> dict[str, Look]:
    """The look of each label: the baseline is black, the others take colours and kinds of lines in turn."""
    found = {}
    for i, method in enumerate(sorted(methods, key=lambda method: method.is_baseline)):
        label = shortened(method.label, 60).replace("$", r"\$").lstrip("_")  # no formula, and not hidden
        line = _LINES[(i // len(COLOURS) + (i % 2)) % len(_LINES)]
        found[method.label] = Look(label, COLOURS[i % len(COLOURS)], line, _MARKERS[i % len(_MARKERS)])
        if method.is_baseline:
            found[method.label] = Look(label, "black", "-", "X")
    return found


def axis_unit(axis: str, largest: float) -> tuple[float, str]:
    """The divisor and the name of an axis that ends at `largest` FLOPs or seconds."""
    if axis == "flops":
        power = math.floor(math.log10(largest)) if largest else 0
        return 10.0**power, f"model FLOPs (units of 1e{power})"
    for name, seconds in (("hours", 3600.0), ("minutes", 60.0)):
        if largest >= 3 * seconds:
            return seconds, f"training time ({name})"
    return 1.0, "training time (seconds)"


def png_of(figure: Figure) -> bytes:
    """The PNG file of a figure, without date and version; needs no display."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
