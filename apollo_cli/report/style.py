"""Style of the pictures: colours, lines, units, labels at the ends of curves, files."""

import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from apollo_cli.errors import one_line
from apollo_cli.intervals import Interval
from apollo_cli.report.comparison import Comparison
from apollo_cli.report.groups import shortened

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito, colour-blind safe
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vP"
_INK = 0.7  # of a colour's brightness, so that a text in it can be read on white

WIDTH = 9.0  # of a picture, in inches
SMALL = 11  # points; the smallest text
_LINE_HEIGHT = 1.25 * SMALL  # points
_LABEL_WIDTH = 24  # characters of a line of a label
_MOST_TARGETS = 50  # points of a curve that show their values

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
        return {"color": self.colour, "linestyle": self.line, "marker": self.marker, "label": self.label}


class EndLabel(NamedTuple):
    """A text at the height of a point of a picture."""

    text: str
    x: float
    y: float
    colour: str


def looks(labels: Iterable[str], baseline: str | None = None) -> dict[str, Look]:
    """The look of each label: the baseline is black, the others take colours and kinds of lines in their order.

    What all names begin with is not shown.
    """
    labels = sorted(set(labels), key=lambda label: (label == baseline, label))
    words = [label.split("_") for label in labels]
    before = zip(*(each[:-1] for each in words), strict=False) if len(words) > 1 else ()  # a last word is shown
    start = len(list(takewhile(lambda each: len(set(each)) == 1, before)))
    found = {}
    for i, label in enumerate(labels):
        shown = shortened(one_line("_".join(words[i][start:])), 60).lstrip("_")  # with one matplotlib hides it
        line = _LINES[(i // len(COLOURS) + (i % 2)) % len(_LINES)]
        marker = _MARKERS[(i + i // len(COLOURS)) % len(_MARKERS)]  # another one where a colour comes again
        found[label] = Look(shown, COLOURS[i % len(COLOURS)], line, marker)
        if label == baseline:
            found[label] = Look(shown, "black", "-", "X")
    return found


def looks_of(comparison: Comparison) -> dict[str, Look]:
    labels = [method.label for method in comparison.methods]
    return looks(labels, comparison.baseline.label if comparison.baseline else None)


def axis_unit(axis: str, largest: float) -> tuple[float, str]:
    """The divisor and the name of an axis that ends at `largest` FLOPs or seconds."""
    if axis == "flops":
        power = math.floor(math.log10(largest)) if largest else 0
        return 10.0**power, f"model FLOPs (units of 1e{power})"
    for name, seconds in (("hours", 3600.0), ("minutes", 60.0)):
        if largest >= 3 * seconds:
            return seconds, f"training time ({name})"
    return 1.0, "training time (seconds)"


def saved_text(saving: Interval) -> str:
    """The change of a cost in percent: `−53.4 ± 11.7 %`; it is not broken into lines."""
    text = f"{Interval(-saving.mean, saving.half, saving.n).format(1, 100)} %".replace("-", "\N{MINUS SIGN}")
    return (text if text.startswith("\N{MINUS SIGN}") else f"+{text}").replace(" ", "\N{NO-BREAK SPACE}")


def ink(colour: str) -> tuple[float, ...]:
    """The colour of a text."""
    return tuple(_INK * part for part in to_rgb(colour))


def wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, _LABEL_WIDTH, max_lines=3, placeholder="…"))


def label_height(texts: Iterable[str]) -> float:
    """Inches of these labels above each other."""
    return sum(wrapped(text).count("\n") + 1 for text in texts) * _LINE_HEIGHT / 72


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Labels right of the axes at the heights of their points, moved apart; a thin line leads to each.

    The limits of the axes are set before. What is above or below the picture has its label at the edge.
    """
    to_share = axes.transData + axes.transAxes.inverted()
    found = [(*to_share.transform((label.x, label.y)).tolist(), label) for label in labels]
    inside = ((x, y, label) if 0 <= y <= 1 else (1.0, min(max(y, 0.0), 1.0), label) for x, y, label in found)
    points = sorted(inside, key=itemgetter(1))
    height = axes.get_position().height * axes.get_figure().get_figheight()  # type: ignore[union-attr]
    heights = [label_height([label.text]) / height for *_, label in points]
    for (x, y, label), place in zip(points, spread([y for _, y, _ in points], heights), strict=True):
        leader: dict[str, Any] = {"color": label.colour, "linewidth": 0.7, "alpha": 0.7, "clip_on": False}
        axes.add_line(Line2D([x, 1.025], [y, place], transform=axes.transAxes, **leader))
        at: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "fontsize": SMALL}
        axes.text(1.035, place, wrapped(label.text), color=ink(label.colour), **at)


def spread(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Rising places moved as little as possible, by least squares, until things of these heights do not overlap.

    They stay between 0 and 1 if there is room.
    """
    if not places:
        return []
    least = list(accumulate([(a + b) / 2 for a, b in pairwise(heights)], initial=0.0))
    free = isotonic_regression([place - offset for place, offset in zip(places, least, strict=True)]).x.tolist()
    bottom, top = heights[0] / 2, 1 - heights[-1] / 2 - least[-1]
    return [max(min(value, top), bottom) + offset for value, offset in zip(free, least, strict=True)]


def drawn(figure: Figure) -> tuple[bytes, str]:
    """The PNG file and the SVG text of a figure, without date and version; needs no display."""
    png = io.BytesIO()
    with style.context(SETTINGS):
        figure.savefig(png, format="png", metadata={"Software": None})
    figure.set_layout_engine(None)  # the layout stays
    return png.getvalue(), svg_of(figure)


def svg_of(figure: Figure) -> str:
    """The SVG text of a figure, made smaller: without names of groups, with rounded places, styles once a line."""
    svg = io.StringIO()
    with style.context(SETTINGS):
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = re.sub(r' id="[A-Za-z0-9]+_\d+"|^ +', "", svg.getvalue(), flags=re.M)
    text = re.sub(r' (d|x|y)="[^"]*"', lambda places: re.sub(r"(\.\d\d)\d+", r"\1", places[0]), text)
    markers = r'<g([^>]*)>\n((?:<use [^>]*)( style="[^"]*")/>\n(?:<use [^>]*\3/>\n)+)</g>'
    return re.sub(markers, lambda group: f"<g{group[1]}{group[3]}>\n{group[2].replace(group[3], '')}</g>", text)


def with_values(svg: str, figure: Figure) -> str:
    """The SVG of a drawn figure, with the values of points as titles, which browsers show under the mouse.

    The points are those of lines that have a label.
    """
    targets = "".join(_targets(figure))
    return svg.replace("</svg>", f'<g class="values" fill-opacity="0">\n{targets}</g>\n</svg>')


def _targets(figure: Figure) -> Iterator[str]:
    """Invisible circles at the points of the labelled lines, with their values."""
    scale, height = 72 / figure.dpi, figure.bbox.height
    for axes in figure.axes:
        names = [
            name.partition(" (nats")[0] for name in (axes.get_ylabel() or axes.get_title("left"), axes.get_xlabel())
        ]
        for line in axes.get_lines():
            label = str(line.get_label())
            points = [] if label.startswith("_") else line.get_xydata().tolist()  # type: ignore[union-attr]
            step = max(1, math.ceil(len(points) / _MOST_TARGETS))
            for x, y in points[::-step][::-1]:
                across, up = axes.transData.transform((x, y))
                if axes.bbox.contains(across, up):
                    values = f"{label}\n{names[0]}: {y:.5g}\n{names[1]}: {x:.5g}"
                    place = f'cx="{scale * across:.1f}" cy="{scale * (height - up):.1f}"'
                    yield f'<circle {place} r="5"><title>{escape(values)}</title></circle>\n'
