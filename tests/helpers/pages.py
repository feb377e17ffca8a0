"""README.md and the pages of docs/, by their paths in the repository, and the commands that they show."""

import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FILES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
README = PAGES["README.md"]


def blocks(language: str) -> list[str]:
    """The code blocks in this language, of all pages."""
    return [
        block for text in PAGES.values() for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    ]


def _commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each for i, each in enumerate(words) if each not in words[:i]]


COMMANDS = _commands()  # each once
