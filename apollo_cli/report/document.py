"""The report: Markdown, one HTML file that opens offline, pictures, JSON, CSV; labels in it are untrusted text."""

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from markdown_it import MarkdownIt

from apollo_cli import __version__, files
from apollo_cli.errors import StorageError, in_markdown, one_line
from apollo_cli.report import plots
from apollo_cli.report.comparison import Comparison
from apollo_cli.report.export import comparisons_csv, comparisons_json
from apollo_cli.report.notes import CROSSING_NOTE, INTERVAL_NOTE, comparison_notes, headline
from apollo_cli.report.style import png_of
from apollo_cli.report.tables import (
    ReportTable,
    compare_glue,
    glue_table,
    results_table,
    settings_table,
    target_sentence,
)

_PAGE = Path(__file__).with_name("page.html")


def write_report(
    folder: Path, comparisons: Sequence[Comparison], warnings: Sequence[str], words: Sequence[str]
) -> Path:
    """Writes report.md, report.html, comparison.json, comparison.csv and the pictures; returns the HTML file.

    The folder is made if it is missing; `words` are the command, to be shown.

    Raises:
        StorageError: something cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {files.shown(folder)} cannot be made: {error.strerror}") from error
    pictures: dict[str, bytes] = {}
    text = "\n".join(_lines(comparisons, warnings, words, pictures)) + "\n"
    values = comparisons_json(comparisons, warnings)
    contents = pictures | {
        "report.md": text.encode(),
        "report.html": _page(text, pictures).encode(),
        "comparison.json": json.dumps(values, indent=2, allow_nan=False).encode(),
        "comparison.csv": comparisons_csv(comparisons).encode(),
    }
    for name, data in contents.items():
        with files.writing(folder / name, len(data)):
            files.write_bytes(folder / name, data)
    return folder / "report.html"


def _lines(
    comparisons: Sequence[Comparison], warnings: Sequence[str], words: Sequence[str], pictures: dict[str, bytes]
) -> Iterator[str]:
    """The report in Markdown; adds the PNG files that it shows to `pictures`, by name."""
    yield from ("# What was saved", "")
    for warning in warnings:
        yield from (f"> **Warning:** {in_markdown(warning)}", "")
    yield from _list(filter(None, map(headline, comparisons)))
    for comparison in comparisons:
        title, glue, settings = comparison.family.title, compare_glue(comparison), settings_table(comparison)
        yield from (f"## {in_markdown(title)}", "")
        yield from (in_markdown(f"{comparison.family.description}. {target_sentence(comparison)}"), "")
        yield from (*markdown_table(results_table(comparison)), *_list(comparison_notes(comparison)))
        if glue:
            yield from ("### GLUE", "", *markdown_table(glue_table(comparison, glue)), *_list(glue.notes))
        if settings:
            yield from ("### Settings that differ", "", *markdown_table(settings))
        slug = re.sub(r"[^a-z0-9]+", "_", title.lower())
        for name, caption, figure in plots.draw_comparison(comparison):
            pictures[f"{slug}_{name}.png"] = png_of(figure)
            yield from (f"![{in_markdown(caption)}]({slug}_{name}.png)", "")
    command = one_line(shlex.join([Path(words[0]).name, *words[1:]]))
    yield from ("## How", "", *_list([CROSSING_NOTE, INTERVAL_NOTE, f"apollo-train {__version__}: {command}"]))


def _list(items: Iterable[str]) -> Iterator[str]:
    yield from (f"- {in_markdown(item)}" for item in items)
    yield ""


def markdown_table(table: ReportTable) -> Iterator[str]:
    """The lines of a table in Markdown, and an empty one."""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    for line in (map(in_markdown, table.head), rule, *(map(in_markdown, row) for row in table.rows)):
        yield f"| {' | '.join(line)} |"
    yield ""


def _page(text: str, pictures: dict[str, bytes]) -> str:
    """The Markdown as one HTML file with the pictures in it."""

    def figure(found: re.Match[str]) -> str:
        source = f"data:image/png;base64,{b64encode(pictures[found[1]]).decode()}"
        return f'<figure><img alt="{found[2]}" src="{source}"><figcaption>{found[2]}</figcaption></figure>'

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'<p><img src="([^"]*)" alt="([^"]*)" /></p>', figure, body)
    return _PAGE.read_text(encoding="utf-8").replace("<!-- report -->", body)
