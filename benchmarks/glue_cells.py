"""GLUE of the reproduction's BERT models as data: models, tasks, learning rates, and the results that are kept."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apollo_cli import files
from apollo_cli.glue.results import averages
from apollo_cli.glue.tasks import TASKS
from apollo_cli.report.runs import GLUE_FILE
from benchmarks.archives import BenchmarkCorpus
from benchmarks.cells import DEFAULT, SEEDS, TUNED, ReproductionCell

FINE_TUNING_SEEDS = (0,)  # of each model; the models have seeds of their own
EPOCHS, BATCH = 3, 32
CORPUS = DEFAULT


@dataclass(frozen=True)
class GlueGroup:
    """Tasks, and the learning rates of which the best one counts."""

    tasks: tuple[str, ...]
    rates: tuple[str, ...]


GROUPS = (
    GlueGroup(("cola", "mrpc", "stsb", "rte", "wnli"), ("1e-4", "3e-4", "1e-3")),  # for a width of 64
    GlueGroup(("sst2",), ("3e-4",)),  # has three times the rows of all others, and one rate takes as long as theirs
)


def models(seed: int) -> dict[str, ReproductionCell]:
    """The compared models by their name in the table; scratch also with the FLOPs of `apollo_late`."""
    rate = TUNED["bert", "scratch"]
    others = ("stackbert", "apollo_late", "late_zero_init")
    return {
        "scratch": ReproductionCell("bert", "scratch", rate, seed),
        "scratch, 2000 steps": ReproductionCell("bert", "scratch", rate, seed, steps=2000),
        **{name: ReproductionCell("bert", name, TUNED["bert", name], seed) for name in others},
    }


@dataclass(frozen=True)
class GlueUnit:
    """A group of tasks of a model."""

    cell: ReproductionCell
    group: GlueGroup

    @property
    def missing(self) -> tuple[str, ...]:
        """Tasks whose results are not kept with every rate."""
        done, rates = kept(self.cell).get("tasks", {}), sorted(map(float, self.group.rates))
        return tuple(name for name in self.group.tasks if name not in done or done[name]["rates"] != rates)


def units() -> list[GlueUnit]:
    """All units in the order in which they are fine-tuned."""
    return [GlueUnit(cell, group) for group in GROUPS for seed in SEEDS for cell in models(seed).values()]


def kept(cell: ReproductionCell) -> dict[str, Any]:
    """Results of a cell; empty if there are none."""
    path = _file(cell)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(cell: ReproductionCell, folder: Path) -> None:
    """Adds the results of a run directory to those that are kept.

    Raises:
        RuntimeError: the kept ones are of other weights, or the new ones of learning rates that no group has.
    """
    path, before = _file(cell), kept(cell)
    found = json.loads((folder / GLUE_FILE).read_text(encoding="utf-8"))
    if before and before["pretrained"]["weights"] != found["pretrained"]["weights"]:
        raise RuntimeError(f"{path} is of other weights than {folder}: remove it to fine-tune all tasks again")
    found["pretrained"].pop("run_dir", None)  # a path of this machine
    rates = {name: set(map(float, group.rates)) for group in GROUPS for name in group.tasks}
    found["tasks"] = {name: task for name, task in found["tasks"].items() if name in rates}
    for name, task in found["tasks"].items():
        if others := set(task["rates"]) - rates[name]:
            raise RuntimeError(f"{folder}: {name} was fine-tuned at {sorted(others)}, too; remove those runs")
    tasks = {**before.get("tasks", {}), **found["tasks"]}
    found["tasks"] = {name: tasks[name] for name in TASKS if name in tasks}
    found["average"] = averages(found["tasks"])
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, found)


def _file(cell: ReproductionCell) -> Path:
    return BenchmarkCorpus(CORPUS).kept(cell) / GLUE_FILE
