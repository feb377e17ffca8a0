"""Speed of making rows from text: python -m benchmarks.text_to_rows PART KIND TEXT CACHE prints figures as JSON."""

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from apollo_cli.data import tokenizer as tokenizers
from apollo_cli.data.corpus import load_corpus
from apollo_cli.data.recipe import Recipe
from apollo_cli.data.sources import PyDocs, TextFiles

FOLDER = Path("outputs/bench")
TEXTS = FOLDER / "text"  # files that are measured; if there are none, the documentation of Python
LARGE, SMALL = 1_040_000_000, 30_000_000  # bytes
VOCABULARY, SEQ_LEN = 8192, 128


def text(size: int) -> Path:
    """A file of `size` bytes: the available text, repeated."""
    path = FOLDER / f"text_{size}.txt"
    if not path.exists():
        TEXTS.mkdir(parents=True, exist_ok=True)
        if not any(TEXTS.iterdir()):
            (TEXTS / "pydocs.txt").write_text("\n\n".join(PyDocs().documents()), encoding="utf-8")
        content = b"\n\n".join(file.read_bytes() for file in sorted(TEXTS.iterdir()))
        with path.open("wb") as file:
            for _ in range(-(-size // len(content))):
                file.write(content[: size - file.tell()].rpartition(b"\n")[0] + b"\n\n")
    return path


def distinct_bytes() -> int:
    """Size of the text before it is repeated."""
    return sum(file.stat().st_size for file in TEXTS.iterdir())


@contextmanager
def timed(found: dict[str, float]) -> Iterator[None]:
    """Adds the seconds of the block, and its CPU seconds on all cores."""
    wall, cpu = perf_counter(), process_time()
    yield
    found |= {"seconds": perf_counter() - wall, "cpu_seconds": process_time() - cpu}


def speed(kind: str, path: Path, cache: Path) -> dict[str, Any]:
    """Tokenizing and packing, in turns with the library alone on the same documents."""
    source = TextFiles((str(path),))
    found: dict[str, list[Any]] = {"ours": [], "library": []}
    file = cache / "tokenizer.json"
    cache.mkdir(parents=True, exist_ok=True)
    tokenizers.train_tokenizer(kind, VOCABULARY, islice(source.documents(), 5000)).save(str(file))
    recipe = Recipe(kind, str(file), VOCABULARY, SEQ_LEN, 0.02)
    tokenizer, documents = tokenizers.load_tokenizer(kind, str(file)), list(source.documents())

    def ours() -> None:
        load_corpus(source, recipe, cache / "ours", lambda line: None)
        shutil.rmtree(cache / "ours")

    def library() -> None:
        for first in range(0, len(documents), 1000):
            tokenizer.encode_batch(documents[first : first + 1000], add_special_tokens=False)

    turns: dict[str, Callable[[], None]] = {"ours": ours, "library": library}
    for _ in range(3):
        for name, turn in turns.items():
            figures: dict[str, float] = {}
            with timed(figures):
                turn()
            found[name].append(figures)
    return {"bytes": path.stat().st_size, **found}


def scale(kind: str, path: Path, cache: Path) -> dict[str, Any]:
    """Training a tokenizer, packing everything, and opening the corpus again."""
    recipe = Recipe(kind, "auto", VOCABULARY, SEQ_LEN, 0.02)
    lines: list[tuple[str, float, float]] = []
    opened: dict[str, float] = {}

    def note(line: str) -> None:
        lines.append((line, perf_counter(), process_time()))

    load_corpus(TextFiles((str(path),)), recipe, cache, note)
    with timed(opened):
        corpus = load_corpus(TextFiles((str(path),)), recipe, cache, note)
    begins = ("training a tokenizer", "tokenizing and packing", "packed")  # other lines belong to the part before
    spans = {}
    for (line, wall, cpu), (_, wall_after, cpu_after) in pairwise(
        line for line in lines if line[0].startswith(begins)
    ):
        spans[line.split(" of ")[0]] = {"seconds": wall_after - wall, "cpu_seconds": cpu_after - cpu}
    return {
        "bytes": path.stat().st_size,
        "distinct_bytes": distinct_bytes(),
        "documents": sum(corpus.packed.documents.values()),
        "copies": corpus.packed.copies,
        "tokens": corpus.packed.tokens,
        "training": spans["training a tokenizer"],
        "packing": spans["tokenizing and packing"],
        "opening": opened,
        "cores": len(os.sched_getaffinity(0)),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    part, kind, path, cache = sys.argv[1:]
    print(json.dumps({"speed": speed, "scale": scale}[part](kind, Path(path), Path(cache))))
