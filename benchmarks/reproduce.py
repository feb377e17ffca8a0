"""The headline, from nothing: `make reproduce`, which says how long it will take before it starts.

Every cell is a run of `apollo-train` by a shipped experiment. A complete one is kept without its weights in
benchmarks/reproduction/CORPUS/CELL and not trained again, here or elsewhere; an interrupted one is resumed.
`python -m benchmarks.reproduce CORPUS FILE...` takes text of your own, and the cells that say what is saved.
"""

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from apollo_cli import files
from apollo_cli.report.runs import RunFiles
from apollo_cli.run_directory import RunDirectory
from apollo_cli.signals import terminable

KEPT, RUNNING = Path(__file__).with_name("reproduction"), Path("outputs/reproduction")
KINDS, SEEDS = ("gpt", "bert"), (0, 1, 2)
METHODS = ("scratch", "stackbert", "apollo", "apollo_late", "late", "late_lvps", "late_zero_init")
VARIANTS = ("shallow", "uniform", "edge", "full", "stack")  # of apollo_late, at its rate and budget
RATES = {"gpt": ("2e-3", "4e-3", "8e-3"), "bert": ("1e-3", "2e-3", "4e-3")}  # of seed 0, the same for all
TUNED = {(kind, method): RATES[kind][1] for kind in KINDS for method in METHODS}  # until all RATES are done
FITTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("gpt", method): ("budget.flops=20.3e12",) for method in ("apollo_late", "late", "late_lvps", *VARIANTS)
}
FITTED["gpt", "late_zero_init"] = ("budget.flops=15e12", "schedule.layers=[3,6,12]", "schedule.ends=[0.6,0.92,1]")
LADDER = {"gpt": (1500, 2000, 2500, None), "bert": (1500, 2000, 2500, None, 3500, 4000)}  # steps from scratch
DEFAULT = "pydocs"  # the corpus on which everything was chosen
COMPARED = ("scratch", "stackbert", "apollo_late", "late_zero_init")  # on others, as chosen there
RUNGS = ("gpt", (2000, 2500))  # steps of more scratch runs on others
STEADIER = ("bert", "1e-3")  # a rate of more scratch runs there: at the chosen one some stay on the plateau
SHALLOW = (1, 3, 6)  # layers of the scratch runs that show whether depth pays
LONGER = ((3, 6000), (6, 4000))  # layers and steps of those that show what fewer layers reach with more of them

U = TypeVar("U")


@dataclass(frozen=True)
class Cell:
    """A run of a method; `layers` or `steps` where it is a scratch run of a shallower model or a shorter one."""

    kind: str
    method: str
    rate: str
    seed: int
    layers: int | None = None
    steps: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        method = f"{self.method}{self.layers or ''}" + (f"_{self.steps}steps" if self.steps else "")
        return f"{self.kind}_{method}_lr{self.rate}_seed{self.seed}"

    @property
    def words(self) -> tuple[str, ...]:
        """What is typed for it, but for the corpus."""
        whole = (f"model.layers={self.layers}", f"schedule.layers=[{self.layers}]", "schedule.ends=[1]")
        return (
            f"experiment=repro_{self.method}",
            f"model={self.kind}",
            f"optim.lr={self.rate}",
            f"seed={self.seed}",
            *FITTED.get((self.kind, self.method), ()),
            *(whole if self.layers else ()),
            *([f"budget.steps={self.steps}"] if self.steps else ()),
        )


def depth_cells(kind: str) -> list[Cell]:
    """Whether depth pays: scratch runs of equal steps."""
    tuned = TUNED[kind, "scratch"]
    return [*(Cell(kind, "scratch", tuned, 0, layers) for layers in SHALLOW), Cell(kind, "scratch", tuned, 0)]


def longer_cells(kind: str) -> list[Cell]:
    """What the cheaper model reaches with the FLOPs of a growing one."""
    return [Cell(kind, "scratch", TUNED[kind, "scratch"], 0, layers, steps) for layers, steps in LONGER]


def ladder_cells(kind: str, seed: int) -> list[Cell]:
    """Scratch runs of several budgets, each with a schedule of its own: what a loss costs without growth."""
    return [Cell(kind, "scratch", TUNED[kind, "scratch"], seed, steps=steps) for steps in LADDER[kind]]


def other_cells() -> list[Cell]:
    """On other text: what a loss costs from scratch, and whether scratch leaves the plateau at a smaller rate."""
    (kind, steps), (slow, rate) = RUNGS, STEADIER
    rungs = [Cell(kind, "scratch", TUNED[kind, "scratch"], seed, steps=n) for n in steps for seed in SEEDS]
    return [*rungs, *(Cell(slow, "scratch", rate, seed) for seed in SEEDS)]


def cosine_cell(kind: str) -> Cell:
    """Scratch under one cosine, as published."""
    return Cell(kind, "scratch_cosine", TUNED[kind, "scratch"], 0)


def rate_cells(kind: str) -> list[Cell]:
    """The learning rates of the methods compared; their variants take the rate of theirs."""
    return [Cell(kind, method, rate, 0) for method in COMPARED for rate in RATES[kind]]


def variant_cells(kind: str) -> list[Cell]:
    """What the sampler and the expander have to do with it."""
    tuned = TUNED[kind, "apollo_late"]
    return [Cell(kind, method, tuned, 0) for method in ("apollo_late", *VARIANTS)]


def headline_cells(kind: str, methods: Sequence[str] = METHODS) -> list[Cell]:
    """Methods at their rates, for all seeds."""
    return [Cell(kind, method, TUNED[kind, method], seed) for seed in SEEDS for method in methods]


def cells(corpus: str) -> list[Cell]:
    """All of a corpus, each once, in the order in which they are wanted."""
    wanted = [headline_cells(kind, COMPARED) for kind in KINDS]
    if corpus == DEFAULT:
        ladders = [ladder_cells(kind, seed) for seed in SEEDS for kind in KINDS]
        parts = (depth_cells, longer_cells, headline_cells, variant_cells, rate_cells)
        wanted = [*ladders, *wanted, *(of(kind) for of in parts for kind in KINDS)]
        wanted.append([cosine_cell(kind) for kind in KINDS])
    else:
        wanted.append(other_cells())
    return list(dict.fromkeys(cell for some in wanted for cell in some))


@dataclass(frozen=True)
class Corpus:
    """Where the cells of a corpus are, what is typed for it, and the processes that train some now."""

    name: str
    words: tuple[str, ...]
    running: set["subprocess.Popen[bytes]"] = field(default_factory=set)

    def kept(self, cell: Cell) -> Path:
        """The folder of a complete cell."""
        return KEPT / self.name / cell.name.replace("late_zero_init", "late_silent")  # its name when it was trained

    def folder(self, cell: Cell) -> Path:
        """Where a cell is trained."""
        return RUNNING / self.name / cell.name

    def missing(self) -> list[Cell]:
        """Those that are not complete."""
        return [cell for cell in cells(self.name) if not self.kept(cell).exists()]

    def train(self, cell: Cell, threads: int) -> None:
        """Trains a cell, or goes on with it, and keeps what is not its weights."""
        began = perf_counter()
        self.keep(cell, self.trained(cell, threads))
        loss = RunFiles(self.kept(cell)).summary["losses"]["eval/loss"]
        print(f"{cell.name}: validation loss {loss:.4f}, {clock(perf_counter() - began)}", flush=True)

    def trained(self, cell: Cell, threads: int) -> Path:
        """The run directory of a cell, trained to its end."""
        folder = self.folder(cell)
        if RunDirectory(folder).summary().get("status") != "completed":
            folder.parent.mkdir(parents=True, exist_ok=True)
            new = (*cell.words, *self.words, "tracking=local", f"hydra.run.dir={folder}")
            words = (f"resume={folder}",) if RunDirectory(folder).is_claimed else new
            self.run("apollo_cli.train", words, folder.with_name(f"{cell.name}.log"), threads)
        return folder

    def run(self, module: str, words: Sequence[str], log: Path, threads: int) -> None:
        """Runs a command in a process of its own, which `running` has meanwhile.

        Raises:
            RuntimeError: it did not succeed.
        """
        command = [sys.executable, "-m", module, *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with log.open("a") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
            self.running.add(process)
        self.running.remove(process)
        if process.returncode:
            raise RuntimeError(f"{log.stem} ended with exit code {process.returncode}: see {log}")

    def each(self, units: Sequence[U], step_cost: Callable[[U, int], None], at_once: int, command: str) -> None:
        """Does the work on each unit, several beside each other with their share of the cores.

        Args:
            units: in the order in which they are wanted.
            work: takes a unit and a number of threads.
            at_once: how many.
            command: that goes on later.
        """
        threads = max(1, (os.cpu_count() or 1) // at_once)
        with terminable(), ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(step_cost, unit, threads) for unit in units]
            try:
                for unit in running:
                    unit.result()
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in self.running:
                    process.terminate()  # it saves
                sys.exit(f"stopped ({str(error) or type(error).__name__}); `{command}` goes on")

    def rows(self, metrics: Path) -> bytes:
        """The rows that are kept of a run: all."""
        return metrics.read_bytes()

    def keep(self, cell: Cell, folder: Path) -> None:
        """Copies a run to where it is kept: whole or not at all."""
        unfinished = self.kept(cell).with_name(f".{cell.name}.tmp")
        files.remove(unfinished)
        unfinished.mkdir(parents=True)
        for name in ("config.yaml", "plan.json"):
            shutil.copyfile(folder / name, unfinished / name)
        summary = RunFiles(folder).summary
        del summary["run_dir"]  # where it was on this machine
        files.write_json(unfinished / "summary.json", summary)
        rows = gzip.compress(self.rows(folder / "metrics.jsonl"), mtime=0)
        files.write_bytes(unfinished / "metrics.jsonl.gz", rows)
        unfinished.rename(self.kept(cell))


def main(words: Sequence[str]) -> None:
    """Trains what is missing, several cells at once, and writes the report on what is there."""
    from benchmarks import saved

    name, *text = words or [DEFAULT]
    quoted = ",".join(f'"{path}"' for path in text)
    corpus = Corpus(name, ("data=text", f"data.files=[{quoted}]") if text else ())
    missing, cores = corpus.missing(), os.cpu_count() or 1
    at_once = max(1, min(cores, len(missing)))
    print(f"{len(cells(name))} cells on {name}, {len(missing)} to train, {at_once} at once", flush=True)
    if missing:
        _announce(corpus, missing, at_once)
    corpus.each(missing, corpus.train, at_once, "make reproduce")
    saved.write(corpus.name)


def _announce(corpus: Corpus, missing: Sequence[Cell], at_once: int) -> None:
    """How long it will take, from micro-steps timed here and now; cells beside each other slow each other."""
    import torch

    from apollo_cli.config.config import Config, parse
    from apollo_cli.config.hydra_syntax import compose_values
    from apollo_cli.training.calibration import seconds_by_depth
    from apollo_cli.training.device import choose
    from apollo_cli.training.planning import make_plan, make_task

    torch.set_num_threads(1)

    def config_of(cell: Cell) -> Config:
        return parse(compose_values([*cell.words, *corpus.words]))

    @cache
    def speed(kind: str) -> Callable[[int], float]:
        config = config_of(Cell(kind, "scratch", RATES[kind][0], 0))
        return seconds_by_depth(config, choose(config.run), make_task(config))

    @cache  # rate and seed change next to nothing
    def seconds(kind: str, method: str, layers: int | None, steps: int | None) -> float:
        config = config_of(Cell(kind, method, RATES[kind][0], 0, layers, steps))
        stages = make_plan(config, choose(config.run)).stages
        return sum(n * speed(kind)(depth) for stage in stages for depth, n in stage.depth_counts.items())

    total = sum(seconds(cell.kind, cell.method, cell.layers, cell.steps) for cell in missing)
    print(f"about {clock(1.25 * total / at_once)}; every cell that is done is kept", flush=True)


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    main(sys.argv[1:])
