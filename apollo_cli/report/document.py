"""The report: Markdown, one HTML file that opens offline, pictures, JSON, CSV; labels in it are untrusted text."""

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
from apollo_cli.report import plots
from apollo_cli.report.comparison import Comparison
from apollo_cli.report.export import comparisons_csv, comparisons_json
from apollo_cli.report.glue import compare_glue, glue_table
from apollo_cli.report.notes import CROSSING_NOTE, INTERVAL_NOTE, comparison_notes, headline
from apollo_cli.report.runs import printable
from apollo_cli.report.style import Picture
from apollo_cli.report.tables import ReportTable, results_table, settings_table, target_sentence
from apollo_cli.run_directory import RunDirectory


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the whole report's."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Text, as a paragraph or a warning."""

    text: str
    is_warning: bool = False


Block = Heading | Paragraph | list[str] | ReportTable | Picture  # a list has one item a text

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


def write_report(
    folder: Path, comparisons: Sequence[Comparison], warnings: Sequence[str], words: Sequence[str]
) -> Path:
    """Writes report.md, report.html, comparison.json, comparison.csv and the pictures; returns the HTML file.

    Args:
        folder: made if missing; files of these names in it are replaced.
        comparisons: one a family.
        warnings: on all of them.
        words: the command, to be shown.

    Raises:
        DataError: the folder is in a run directory.
        StorageError: something cannot be written.
    """
    _refuse_run_directory(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {files.shown(folder)} cannot be made: {error.strerror}") from error
    blocks = list(_blocks(comparisons, warnings, words))
    values = comparisons_json(comparisons, warnings)
    contents = {block.name: block.png for block in blocks if isinstance(block, Picture)} | {
        "report.md": "\n".join(map(_markdown, blocks)).encode(),
        "report.html": _page(blocks).encode(),
        "comparison.json": json.dumps(values, indent=2, allow_nan=False).encode(),
        "comparison.csv": comparisons_csv(comparisons).encode(),
    }
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
    yield from (Paragraph(warning, is_warning=True) for warning in warnings)
    yield [*filter(None, map(headline, comparisons))]
    for comparison in comparisons:
        yield from _family_blocks(comparison)
    yield Heading(2, "How")
    command = printable(shlex.join([Path(words[0]).name, *words[1:]]))
    yield [CROSSING_NOTE, INTERVAL_NOTE, f"apollo-train {__version__}: {command}"]


def _family_blocks(comparison: Comparison) -> Iterator[Block]:
    yield Heading(2, comparison.family.title)
    yield Paragraph(f"{comparison.family.description}. {target_sentence(comparison)}")
    yield results_table(comparison)
    yield comparison_notes(comparison)
    if glue := compare_glue(comparison):
        yield from (Heading(3, "GLUE"), glue_table(comparison, glue), [*glue.notes])
    if differing := settings_table(comparison):
        yield from (Heading(3, "Settings that differ"), differing)
    slug = re.sub(r"[^a-z0-9]+", "_", comparison.family.title.lower())
    for name, caption, png in plots.draw_comparison(comparison):
        yield Picture(f"{slug}_{name}.png", caption, png)


def _markdown(block: Block) -> str:
    """The block with a line after it; no text in it is markup."""
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_safe(text)}\n"
        case Paragraph(text, is_warning):
            return f"{'**Warning:** ' * is_warning}{_safe(text)}\n"
        case list(items):
            return "".join(f"- {_safe(item)}\n" for item in items)
        case ReportTable(head, rows):
            rule = ["---", *["---:"] * (len(head) - 1)]
            lines = [list(map(_safe, head)), rule, *(list(map(_safe, row)) for row in rows)]
            return "".join(f"| {' | '.join(line)} |\n" for line in lines)
        case Picture(name, caption, _):
            return f"![{_safe(caption)}]({name})\n"


def _safe(text: str) -> str:
    return re.sub(r"([\\`*_\[\]{}#|~$!])", r"\\\1", escape(printable(text), quote=False))


def _page(blocks: Sequence[Block]) -> str:
    body = "\n".join(map(_html, blocks))
    return f"{_HEAD}<style>\n{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text, is_warning):
            mark = ' class="warning"' if is_warning else ""
            return f"<p{mark}>{escape(text)}</p>"
        case list(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""
        case ReportTable(head, rows):
            top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
            lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
            return f'<div class="wide"><table><tr>{top}</tr>{lines}</table></div>'
        case Picture(_, caption, png):
            source = f"data:image/png;base64,{b64encode(png).decode()}"
            image = f'<img alt="{escape(caption)}" src="{source}">'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
