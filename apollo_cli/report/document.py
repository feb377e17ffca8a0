"""The report: Markdown, one HTML file that opens offline, pictures, JSON, CSV; labels in it are untrusted text.

The page has the pictures as SVG, with their values under the mouse, and tables that are sorted by a click. Nothing
else is loaded or executed: its policy names the one script by its hash.
"""

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from apollo_cli import __version__, files
from apollo_cli.errors import ConfigError, StorageError, in_markdown, one_line
from apollo_cli.report import plots, tables
from apollo_cli.report.commands import commands
from apollo_cli.report.comparison import Comparison
from apollo_cli.report.export import comparisons_csv, comparisons_json
from apollo_cli.report.mixing import MIXING_NOTE, mixing_table, mixings
from apollo_cli.report.notes import CROSSING_NOTE, INTERVAL_NOTE, comparison_notes, headline
from apollo_cli.report.style import drawn, with_values

_COMMANDS = "Commands of the runs"
_PAGE = Path(__file__).with_name("page.html")


def write_report(
    folder: Path, comparisons: Sequence[Comparison], warnings: Sequence[str], words: Sequence[str]
) -> Path:
    """Writes report.md, report.html, comparison.json, comparison.csv and the pictures, PNG and SVG.

    Returns the HTML file. The folder is made if it is missing; `words` are the command, to be shown. A StorageError
    if something cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {files.shown(folder)} cannot be made: {error.strerror}") from error
    pictures: dict[str, Figure] = {}
    text = "\n".join(_lines(comparisons, warnings, words, pictures)) + "\n"
    values = comparisons_json(comparisons, warnings)
    drawings = {name: drawn(figure) for name, figure in pictures.items()}
    page = _page(text, {f"{name}.png": with_values(svg, pictures[name]) for name, (_, svg) in drawings.items()})
    contents = {f"{name}.png": png for name, (png, _) in drawings.items()} | {
        **{f"{name}.svg": svg.encode() for name, (_, svg) in drawings.items()},
        "report.md": text.encode(),
        "report.html": page.encode(),
        "comparison.json": json.dumps(values, indent=2, allow_nan=False).encode(),
        "comparison.csv": comparisons_csv(comparisons).encode(),
    }
    for name, data in contents.items():
        with files.writing(folder / name, len(data)):
            files.write_bytes(folder / name, data)
    return folder / "report.html"


def _lines(
    comparisons: Sequence[Comparison],
    warnings: Sequence[str],
    words: Sequence[str],
    pictures: dict[str, Figure],
) -> Iterator[str]:
    """The report in Markdown; adds the figures that it shows to `pictures`, by their names."""
    yield from ("# What was saved", "")
    for warning in warnings:
        yield from (f"> **Warning:** {in_markdown(warning)}", "")
    yield from _list(filter(None, map(headline, comparisons)))
    for comparison in comparisons:
        title, glue = comparison.family.title, tables.compare_glue(comparison)
        yield from (f"## {in_markdown(title)}", "")
        yield from (in_markdown(f"{comparison.family.description}. {tables.target_sentence(comparison)}"), "")
        yield from (*markdown_table(tables.results_table(comparison)), *_list(comparison_notes(comparison)))
        if glue:
            yield from ("### GLUE", "", *markdown_table(tables.glue_table(comparison, glue)), *_list(glue.notes))
        if mixed := list(mixings(comparison)):
            yield from ("### How the new layers mixed", "", *markdown_table(mixing_table(mixed)))
            yield from _list([MIXING_NOTE])
        if settings := tables.settings_table(comparison):
            yield from ("### Settings that differ", "", *markdown_table(settings))
        slug = re.sub(r"[^a-z0-9]+", "_", title.lower())
        for name, caption, figure in plots.draw_comparison(comparison):
            pictures[f"{slug}_{name}"] = figure
            yield from (f"![{in_markdown(caption)}]({slug}_{name}.png)", "")
    yield from (f"## {_COMMANDS}", "", *_commands(comparisons))
    command = one_line(shlex.join([Path(words[0]).name, *words[1:]]))
    yield from ("## How", "", *_list([CROSSING_NOTE, INTERVAL_NOTE, f"apollo-train {__version__}: {command}"]))


def _commands(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What is typed to make each run again; code, so that untrusted text in it is no markup."""
    yield from ("Each makes one run again, on the same data, with the code of that time.", "")
    for comparison in comparisons:
        for method in comparison.methods:
            for run in (outcome.run for outcome in method.outcomes):
                commit = f", commit {run.made_with['git_commit'][:12]}" if "git_commit" in run.made_with else ""
                name = f"{comparison.family.title}, {method.label}, seed {run.seed}: {run.place}{commit}"
                try:
                    lines = [f"    {line}" for line in commands(run)]
                except ConfigError as error:
                    lines = [in_markdown(f"no command: {error}")]
                yield from (in_markdown(name), "", *lines, "")


def _list(items: Iterable[str]) -> Iterator[str]:
    yield from (f"- {in_markdown(item)}" for item in items)
    yield ""


def markdown_table(table: tables.ReportTable) -> Iterator[str]:
    """The lines of a table in Markdown, and an empty one."""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    for line in (map(in_markdown, table.head), rule, *(map(in_markdown, row) for row in table.rows)):
        yield f"| {' | '.join(line)} |"
    yield ""


def _page(text: str, pictures: dict[str, str]) -> str:
    """The Markdown as one HTML file with these SVG pictures in place of the PNG ones."""

    def figure(found: re.Match[str]) -> str:
        svg = pictures[found[1]]
        drawing = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{found[2]}"', 1)
        return f"<figure>{drawing}<figcaption>{found[2]}</figcaption></figure>"

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'<p><img src="([^"]*)" alt="([^"]*)" /></p>', figure, body)
    folded = rf"<details><summary>{_COMMANDS}</summary>\1</details>"
    body = re.sub(rf"<h2>{_COMMANDS}</h2>(.*)(?=<h2>How</h2>)", folded, body, flags=re.S)
    page = _PAGE.read_text(encoding="utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0]
    allowed = b64encode(sha256(script.encode()).digest()).decode()
    return page.replace("HASH", allowed, 1).replace("<!-- report -->", body)
