"""benchmarks/RESULTS.md, whose parts are made by different programs."""

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image

from apollo_cli import files

RESULTS = Path(__file__).with_name("RESULTS.md")
COLOURS = 64  # of a picture that is kept: it looks the same and is a third as large


def sections(title: str) -> dict[str, str]:
    """What stands under each `## section` of the part `# title`, with its heading."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    part = next((p for p in re.split(r"^(?=# )", text, flags=re.M) if p.startswith(f"# {title}\n")), "")
    found = re.split(r"^## (.*)\n", part, flags=re.M)[1:]
    return {name: f"## {name}\n{body.rstrip()}" for name, body in zip(found[::2], found[1::2], strict=True)}


def put(title: str, lines: Iterable[str]) -> None:
    """Replaces the part `# title`, or adds it at the end."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    parts = {
        part.partition("\n")[0]: part.strip() for part in re.split(r"^(?=# )", text, flags=re.M) if part.strip()
    }
    parts[f"# {title}"] = "\n".join([f"# {title}", "", *lines]).strip()
    RESULTS.write_text("\n\n".join(parts.values()) + "\n", encoding="utf-8")
    print(f"written: {RESULTS}, {title}")


def picture(path: Path, png: bytes) -> None:
    """Writes a picture of ours with few colours."""
    small = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    files.write_bytes(path, small.getvalue())


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
