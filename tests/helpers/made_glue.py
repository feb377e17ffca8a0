"""A GLUE small enough for tests, in the original form of its files, with their quirks."""

import random
from pathlib import Path

from apollo_cli.glue.tasks import TASKS, GlueTask

ROWS = {"train": 24, "dev": 12, "test": 8}
WORDS = [f"{a}{b}" for a in "bdfghklmnprst" for b in ("al", "on", "ie", "ur")]


def write(folder: Path) -> Path:
    """All tasks, in `folder`."""
    for name, task in TASKS.items():
        rng = random.Random(name)
        (folder / task.title).mkdir(parents=True)
        for split in (task.splits.train, *task.splits.dev, *task.splits.test):
            lines = _lines(task, split.name.partition("_")[0], rng)
            mark = "\N{ZERO WIDTH NO-BREAK SPACE}" if name == "mrpc" else ""
            (folder / task.title / split.file).write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _lines(task: GlueTask, part: str, rng: random.Random) -> list[str]:
    """The rows of a file; the last word of each sentence gives the label away."""
    labelled = part != "test"
    columns = _columns(task, labelled)
    lines = ["\t".join(columns)] if not (labelled and task.headless) else []
    for number in range(ROWS[part]):
        answer = number % (len(task.labels) or 6)
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) + f" {WORDS[answer]}" for _ in task.columns]
        if number == 1:
            sentences[0] = f"\"{sentences[0]} \N{LINE SEPARATOR} it's"  # a bare quote; no end of a line
        cells = dict.fromkeys(columns, "x") | dict(zip(task.columns, sentences, strict=True))
        cells |= {task.index: str(number)} if task.index in columns else {}
        cells |= {task.label: task.labels[answer] if task.labels else f"{answer:.3f}"} if labelled else {}
        lines.append("\t".join(cells[column] for column in columns))
    return lines


def _columns(task: GlueTask, labelled: bool) -> list[str]:
    """The columns of a file, in the order of the original as far as they are read."""
    if labelled and task.headless:
        return list(task.headless)
    between = {"stsb": ["genre", "filename", "year", "old_index", "source1", "source2"], "mrpc": ["#1 ID", "#2 ID"]}
    head = [] if task.name in ("mrpc", "sst2", "cola") and labelled else [task.index]
    columns = [*head, *between.get(task.name, []), *task.columns]
    if not labelled:
        return columns
    return [task.label, *columns] if task.name == "mrpc" else [*columns, task.label]
