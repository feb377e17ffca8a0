"""The report: Markdown, one HTML file that opens offline, pictures, JSON, CSV; text in it may be a stranger's."""

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from apollo_cli import __version__, files
from apollo_cli.errors import DataError, StorageError
from apollo_cli.report import plots, printed
from apollo_cli.report.comparison import AXES, Comparison
from apollo_cli.report.glue import glue_table
from apollo_cli.report.groups import differing
from apollo_cli.report.runs import plain
from apollo_cli.report.words import CROSSING_NOTE, METHOD_OF_INTERVALS, cells, headline, notes, spent, target
from apollo_cli.run_directory import RunDirectory


@dataclass(frozen=True)
class Heading:
    """Of a section; level 1 is the whole report's."""

    level: int
    text: str


@dataclass(frozen=True)
class Sentences:
    """A paragraph, or items of a list; a warning stands out."""

    items: Sequence[str]
    is_list: bool = False
    is_warning: bool = False


@dataclass(frozen=True)
class Grid:
    """A table; the first column has names, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file and what it shows."""

    name: str
    caption: str
    data: bytes


Block = Heading | Sentences | Grid | Picture

_HEAD = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What was saved</title>
"""
_STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
img { max-width: 100%; background: #fff; }
figure { margin: 1.5rem 0; }
figcaption, footer { opacity: .75; font-size: .9rem; }
.warning { border-left: .3rem solid #d55e00; padding-left: .8rem; font-weight: 600; }
"""


def write(folder: Path, comparisons: Sequence[Comparison], warnings: Sequence[str], words: Sequence[str]) -> Path:
    """Writes report.md, report.html, comparison.json, comparison.csv and the pictures; returns where the page is.

    Args:
        folder: made if missing; files of these names in it are replaced.
        comparisons: one a family.
        warnings: about all of them.
        words: the command, to be shown.

    Raises:
        DataError: the folder is a run's.
        StorageError: something cannot be written.
    """
    _refuse_run_directory(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {files.shown(folder)} cannot be made: {error.strerror}") from error
    blocks = list(_blocks(comparisons, warnings, words))
    contents = {block.name: block.data for block in blocks if isinstance(block, Picture)}
    contents["report.md"] = "\n".join(map(_markdown, blocks)).encode()
    contents["report.html"] = _page(blocks).encode()
    contents["comparison.json"] = json.dumps(
        printed.as_json(comparisons, warnings), indent=2, allow_nan=False
    ).encode()
    contents["comparison.csv"] = printed.as_csv(comparisons).encode()
    for name, data in contents.items():
        with files.writing(folder / name, len(data)):
            files.write_bytes(folder / name, data)
    return folder / "report.html"


def _refuse_run_directory(folder: Path) -> None:
    for place in (folder.resolve(), *folder.resolve().parents):
        directory = RunDirectory(place)
        if directory.is_claimed and (directory.plan_file.exists() or directory.metrics_file.exists()):
            raise DataError(
                f"--out {files.shown(folder)} is in the run directory {directory}; choose another folder"
            )


def _blocks(comparisons: Sequence[Comparison], warnings: Sequence[str], words: Sequence[str]) -> Iterator[Block]:
    yield Heading(1, "What was saved")
    for warning in warnings:
        yield Sentences([warning], is_warning=True)
    yield Sentences([sentence for sentence in map(headline, comparisons) if sentence], is_list=True)
    for comparison in comparisons:
        yield from _family(comparison)
    yield Heading(2, "How")
    command = shlex.join([Path(words[0]).name, *words[1:]])
    yield Sentences(
        [CROSSING_NOTE, METHOD_OF_INTERVALS, f"apollo-train {__version__}: {plain(command)}"], is_list=True
    )


def _family(comparison: Comparison) -> Iterator[Block]:
    yield Heading(2, comparison.family.title)
    yield Sentences([f"{comparison.family.description}. {target(comparison)}"])
    budget = comparison.question.at_flops
    at_budget = [] if budget is None else [f"loss at {budget:.4g} FLOPs (nats)"]
    costs = ("FLOPs to target", "FLOPs saved", "speedup in FLOPs", "seconds to target", "seconds saved", "speedup")
    rows = []
    for method in comparison.methods:
        of = cells(comparison, method)
        numbers = [part[axis] for axis in AXES for part in (of.costs, of.savings, of.speedups)]
        rows.append([of.method, of.runs, of.final, *([of.at_flops] if at_budget else []), *numbers])
    yield Grid(["method", "runs", "final validation loss (nats)", *at_budget, *costs], rows)
    yield Sentences(notes(comparison), is_list=True)
    if glue := glue_table(comparison):
        yield Heading(3, "GLUE")
        there = [method for method in comparison.methods if method.label in glue.scores]
        lines = [[m.label, cells(comparison, m).final, spent(m), *glue.cells(m)] for m in there]
        yield Grid(["method", "final validation loss (nats)", "FLOPs", *glue.head], lines)
        yield Sentences(glue.notes, is_list=True)
    if unlike := differing([method.outcomes[0].run for method in comparison.methods]):
        yield Heading(3, "Settings that differ")
        values = zip(*(each for _, each in unlike), strict=True)
        lines = [[method.label, *own] for method, own in zip(comparison.methods, values, strict=True)]
        yield Grid(["method", *(key for key, _ in unlike)], lines)
    slug = re.sub(r"[^a-z0-9]+", "_", comparison.family.title.lower())
    for name, caption, data in plots.pictures(comparison):
        yield Picture(f"{slug}_{name}.png", caption, data)


def _markdown(block: Block) -> str:
    """The block with a line after it; no text in it is markup."""
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_safe(text)}\n"
        case Sentences(items, is_list, is_warning):
            mark = "**Warning:** " if is_warning else "- " if is_list else ""
            return "\n".join([*(f"{mark}{_safe(item)}" for item in items), ""])
        case Grid(head, rows):
            rule = ["---", *["---:"] * (len(head) - 1)]
            lines = [list(map(_safe, head)), rule, *(list(map(_safe, row)) for row in rows)]
            return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), ""])
        case Picture(name, caption, _):
            return f"![{_safe(caption)}]({name})\n"


def _safe(text: str) -> str:
    return re.sub(r"([\\`*_\[\]{}#|~$!])", r"\\\1", escape(plain(text), quote=False))


def _page(blocks: Sequence[Block]) -> str:
    body = "\n".join(map(_html, blocks))
    return f"{_HEAD}<style>\n{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Sentences(items, True, _):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""
        case Sentences(items, _, is_warning):
            mark = ' class="warning"' if is_warning else ""
            return "".join(f"<p{mark}>{escape(item)}</p>" for item in items)
        case Grid(head, rows):
            top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
            lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
            return f'<div class="wide"><table><tr>{top}</tr>{lines}</table></div>'
        case Picture(_, caption, data):
            source = f"data:image/png;base64,{b64encode(data).decode()}"
            image = f'<img alt="{escape(caption)}" src="{source}">'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
