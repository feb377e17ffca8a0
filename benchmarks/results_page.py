"""The pages of results, which render modules write part by part; and the pictures beside the archives."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apollo_cli import files
from apollo_cli.report.comparison import Comparison
from benchmarks import archives

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
PAGES = {  # of each part; RESULTS.md lists them
    "The paper's claims": "CLAIMS",
    "Every method on the same work": "METHODS",
    "How fast": "SPEED",
    "Beyond one machine: predicted": "SCALING",
    "What is saved on a GPU": "GPU",
    "GLUE: the scores of transformers' Trainer": "GLUE",
    "GLUE of the reproduction's models": "GLUE",
}


def page_of(title: str) -> Path:
    """The page with the part `# title`; that of a corpus has its name."""
    _, of_corpus, corpus = title.partition("What is saved: ")
    return FOLDER / f"{corpus.upper() if of_corpus else PAGES[title]}.md"


def sections(title: str) -> dict[str, str]:
    """{heading: text with its heading} of each `## heading` in the part `# title`."""
    page = page_of(title)
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    part = next((p for p in re.split(r"^(?=# )", text, flags=re.M) if p.startswith(f"# {title}\n")), "")
    found = re.split(r"^## (.*)\n", part, flags=re.M)[1:]
    return {name: f"## {name}\n{body.rstrip()}" for name, body in zip(found[::2], found[1::2], strict=True)}


def put(title: str, lines: Iterable[str], page: Path | None = None) -> None:
    """Replaces the part `# title` of a page, that of the title by default, or adds it at the end."""
    page = page or page_of(title)
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    parts = {
        part.partition("\n")[0]: part.strip() for part in re.split(r"^(?=# )", text, flags=re.M) if part.strip()
    }
    parts[f"# {title}"] = "\n".join([f"# {title}", "", *lines]).strip()
    page.write_text("\n\n".join(parts.values()) + "\n", encoding="utf-8")
    print(f"written: {page}, {title}")


def pictures(prefix: str, comparison: Comparison, names: Sequence[str]) -> Iterator[str]:
    """Draws these pictures of a comparison, as files with the prefix; the lines that show them."""
    from apollo_cli.report import plots  # imports matplotlib

    for name, caption, figure in plots.draw_comparison(comparison):
        if name in names:
            yield from picture(f"{prefix}_{name}", caption, figure)


def picture(name: str, caption: str, figure: "Figure") -> Iterator[str]:
    """Writes a figure beside the results; the lines that show it."""
    from apollo_cli.report import style  # imports matplotlib

    archives.RESULTS.mkdir(parents=True, exist_ok=True)
    files.write_text(archives.RESULTS / f"{name}.svg", style.svg_of(figure))
    yield from ["", f"![{caption}](results/{name}.svg)"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]] = ()) -> Iterable[str]:
    """A table of Markdown."""
    head = list(head)
    yield row(*head)
    yield row(*("---" for _ in head))
    for cells in rows:
        yield row(*cells)


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
