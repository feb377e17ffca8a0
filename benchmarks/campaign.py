"""Trains the cells of a corpus, several in parallel, and keeps those that are complete."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from shutil import copyfile
from time import perf_counter
from typing import TypeVar

from apollo_cli import files
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import terminable
from benchmarks.archives import BenchmarkCorpus
from benchmarks.cells import ReproductionCell

RUNNING = Path("outputs/reproduction")

T = TypeVar("T")


@dataclass(frozen=True)
class Campaign(BenchmarkCorpus):
    """A corpus whose missing cells are trained.

    Attributes:
        words: overrides of all cells, which choose the text.
        thinned: whether of the rows of a run the evaluations are kept, and the last training row of each stage,
            which has its peak memory; else all.
        running: processes under way.
    """

    words: tuple[str, ...] = ()
    thinned: bool = False
    running: set["subprocess.Popen[bytes]"] = field(default_factory=set)

    def run_directory(self, cell: ReproductionCell) -> Path:
        return RUNNING / self.name / cell.name

    def train(self, cell: ReproductionCell, threads: int) -> None:
        """Trains or resumes a cell and keeps it."""
        began = perf_counter()
        self.keep(cell, self.trained(cell, threads))
        print(f"{cell.name}: validation loss {self.loss(cell)}, {clock(perf_counter() - began)}", flush=True)

    def trained(self, cell: ReproductionCell, threads: int) -> Path:
        """Run directory of a cell, trained to its end."""
        folder = self.run_directory(cell)
        if RunDirectory(folder).summary().get("status") != "completed":
            folder.parent.mkdir(parents=True, exist_ok=True)
            new = (*cell.words, *self.words, "tracking=local", f"hydra.run.dir={folder}")
            words = (f"resume={folder}",) if RunDirectory(folder).is_claimed else new
            self.run("apollo_cli.train", words, folder.with_name(f"{cell.name}.log"), threads)
        return folder

    def run(self, module: str, words: Sequence[str], log: Path, threads: int) -> None:
        """Runs a command in a process of its own.

        Raises:
            RuntimeError: its exit code is not 0.
        """
        command = [sys.executable, "-m", module, *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with log.open("a") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
            self.running.add(process)
        self.running.remove(process)
        if process.returncode:
            raise RuntimeError(f"{log.stem} ended with exit code {process.returncode}: see {log}")

    def run_all(self, items: Sequence[T], work: Callable[[T, int], object], at_once: int, command: str) -> None:
        """Does the work on each item, several in parallel, each with its share of the cores.

        Args:
            items: in the order in which they are wanted.
            work: takes an item and a number of threads.
            at_once: number of items under way.
            command: continues the work when it was stopped.
        """
        threads = max(1, (os.cpu_count() or 1) // at_once)
        with terminable(), ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(work, item, threads) for item in items]
            try:
                for future in running:
                    future.result()
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in self.running:
                    process.terminate()  # it saves a checkpoint
                sys.exit(f"stopped ({str(error) or type(error).__name__}); `{command}` continues")

    def rows(self, metrics: Path) -> bytes:
        """Rows of a run that are kept."""
        lines = metrics.read_bytes().splitlines(keepends=True)
        if not self.thinned:
            return b"".join(lines)
        rows = [json.loads(line) for line in lines]
        last = {row["stage"]: i for i, row in enumerate(rows) if "train/loss" in row and "eval/loss" not in row}
        kept = [i in last.values() or "eval/loss" in row for i, row in enumerate(rows)]
        return b"".join(line for line, is_kept in zip(lines, kept, strict=True) if is_kept)

    def keep(self, cell: ReproductionCell, folder: Path) -> None:
        """Copies a run without its weights to the complete cells, in one step."""
        unfinished = self.kept(cell).with_name(f".{cell.name}.tmp")
        files.remove(unfinished)
        unfinished.mkdir(parents=True)
        for name in ("config.yaml", "plan.json"):
            copyfile(folder / name, unfinished / name)
        summary = RunDirectory(folder).summary()
        del summary["run_dir"]  # a path of this machine
        files.write_json(unfinished / "summary.json", summary)
        files.write_bytes(unfinished / "metrics.jsonl", self.rows(folder / "metrics.jsonl"))
        unfinished.rename(self.kept(cell))


def text_words(text: Sequence[str]) -> tuple[str, ...]:
    """The overrides that choose these files; none for the default text."""
    quoted = ",".join(f'"{path}"' for path in text)
    return ("data=text", f"data.files=[{quoted}]") if text else ()


def clock(seconds: float) -> str:
    """H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))
