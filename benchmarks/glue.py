"""GLUE of the reproduction's BERT models: scratch beside StackBERT beside Apollo.

`python -m benchmarks.glue GLUE_DIR` fine-tunes them on the small tasks, from a folder with the original files. It
says how long that takes before it starts. A model whose weights are not in outputs/reproduction is trained anew.
Results are kept beside the rows of each cell, in benchmarks/reproduction/pydocs/CELL/glue; what is done, here or
elsewhere, is not done again, and an interrupted run is resumed. Without words the table alone is made anew.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from threading import Lock
from typing import Any

from apollo_cli import files
from apollo_cli.glue.results import averages
from apollo_cli.glue.tasks import TASKS
from apollo_cli.report import glue_scores
from apollo_cli.report.savings import interval
from benchmarks import results
from benchmarks.reproduce import DEFAULT, RATES, SEEDS, TUNED, Cell, Corpus, clock

FREQUENT = {"sst2": (444, 872), "mrpc": (279, 408), "rte": (146, 277), "wnli": (40, 71)}  # development rows, of all
CORRELATED = ("cola", "stsb")  # a constant correlates with nothing
FINE_TUNING_SEEDS = (0,)  # of each model; the models have seeds of their own
EPOCHS, BATCH = 3, 32
PRECISION = "precision=fp32"  # on a GPU, too: models of several machines are compared
CORPUS = Corpus(DEFAULT, (PRECISION,))
_AT_WORK: defaultdict[Cell, Lock] = defaultdict(Lock)  # a model is fine-tuned on one part at a time


@dataclass(frozen=True)
class Group:
    """Tasks, and the learning rates of which the best one counts."""

    tasks: tuple[str, ...]
    rates: tuple[str, ...]


GROUPS = (
    Group(("cola", "mrpc", "stsb", "rte", "wnli"), ("1e-4", "3e-4", "1e-3")),  # for a width of 64
    Group(("sst2",), ("3e-4",)),  # has three times the rows of all others, and one rate takes as long as theirs
)


def models(seed: int) -> dict[str, Cell]:
    """What is compared, by its name in the table; scratch also with the FLOPs that Apollo takes."""
    rate = TUNED["bert", "scratch"]
    return {
        "scratch": Cell("bert", "scratch", rate, seed),
        "scratch, 2000 steps": Cell("bert", "scratch", rate, seed, steps=2000),
        "stackbert": Cell("bert", "stackbert", TUNED["bert", "stackbert"], seed),
        "apollo_late": Cell("bert", "apollo_late", TUNED["bert", "apollo_late"], seed),
        "late_silent": Cell("bert", "late_silent", TUNED["bert", "late_silent"], seed),
    }


@dataclass(frozen=True)
class Unit:
    """A group of tasks of a model."""

    cell: Cell
    group: Group

    @property
    def missing(self) -> tuple[str, ...]:
        """The tasks that are not kept yet, with every rate."""
        there, rates = kept(self.cell).get("tasks", {}), sorted(map(float, self.group.rates))
        return tuple(name for name in self.group.tasks if name not in there or there[name]["rates"] != rates)


def units() -> list[Unit]:
    """All, in the order in which they are wanted."""
    return [Unit(cell, group) for group in GROUPS for seed in SEEDS for cell in models(seed).values()]


def kept(cell: Cell) -> dict[str, Any]:
    """The results of a cell; empty where there are none."""
    path = CORPUS.kept(cell) / glue_scores.FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(cell: Cell, folder: Path) -> None:
    """Adds the results of a run directory to those that are kept."""
    found = json.loads((folder / glue_scores.FILE).read_text(encoding="utf-8"))
    found["pretrained"].pop("run_dir", None)  # where it was on this machine
    rates = {name: set(map(float, group.rates)) for group in GROUPS for name in group.tasks}
    found["tasks"] = {name: task for name, task in found["tasks"].items() if name in rates}
    for name, task in found["tasks"].items():
        if others := set(task["rates"]) - rates[name]:
            raise RuntimeError(f"{folder}: {name} was fine-tuned at {sorted(others)}, too; remove those runs")
    tasks = {**kept(cell).get("tasks", {}), **found["tasks"]}
    found["tasks"] = {name: tasks[name] for name in TASKS if name in tasks}
    found["average"] = averages(found["tasks"])
    path = CORPUS.kept(cell) / glue_scores.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, found)


def fine_tune(data_dir: Path, unit: Unit, threads: int) -> None:
    """Fine-tunes the model of a unit on what is missing, and keeps the results."""
    with _AT_WORK[unit.cell]:
        _fine_tune(data_dir, unit, threads)


def _fine_tune(data_dir: Path, unit: Unit, threads: int) -> None:
    folder = CORPUS.trained(unit.cell, threads)
    words = (
        f"run={folder}",
        f"task={','.join(unit.missing)}",
        f"glue.data_dir={data_dir}",
        f"optim.lr={','.join(unit.group.rates)}",
        f"seed={','.join(map(str, FINE_TUNING_SEEDS))}",
        f"glue.epochs={EPOCHS}",
        f"batch.size={BATCH}",
        PRECISION,
        "log.every=200",
        "tracking=local",
    )
    CORPUS.run("apollo_cli.glue.command", words, folder.with_name(f"{unit.cell.name}_glue.log"), threads)
    keep(unit.cell, folder)
    tasks = kept(unit.cell)["tasks"]
    scores = ", ".join(f"{name} {100 * tasks[name]['mean']:.1f}" for name in unit.group.tasks)
    print(f"{unit.cell.name}: {scores}", flush=True)


def main(words: Sequence[str]) -> None:
    """Fine-tunes what is missing, and writes the table of what is there."""
    missing = [unit for unit in units() if unit.missing]
    at_once = max(1, min(os.cpu_count() or 1, len(missing)))
    how = f"{at_once} at once" if words else "which needs GLUE_DIR: the table alone is made"
    print(f"{len(units())} parts, {len(missing)} to do, {how}", flush=True)
    if words and missing:
        data_dir = Path(words[0]).resolve()
        print(f"about {clock(_seconds(missing) / at_once)}; every part that is done is kept", flush=True)
        CORPUS.each(missing, lambda unit, threads: fine_tune(data_dir, unit, threads), at_once, "the same command")
    results.put("GLUE of the reproduction's models", lines())


def _seconds(missing: Sequence[Unit]) -> float:
    """From a pretraining micro-step timed here and now, which has rows as long as the longest ones of GLUE."""
    import torch

    from apollo_cli.config import parse
    from apollo_cli.overrides import compose_values
    from apollo_cli.training.calibration import seconds_by_depth
    from apollo_cli.training.device import choose
    from apollo_cli.training.planning import make_plan, make_task

    torch.set_num_threads(1)
    config = parse(compose_values(list(Cell("bert", "scratch", RATES["bert"][0], 0).words)))
    step = seconds_by_depth(config, choose(config.run), make_task(config))(config.model.layers)
    rows = sum(TASKS[name].splits.train.rows * len(unit.group.rates) for unit in missing for name in unit.missing)
    fine_tuning = rows / BATCH * EPOCHS * len(FINE_TUNING_SEEDS)
    steps = make_plan(config, choose(config.run)).steps
    untrained = {unit.cell for unit in missing if not (CORPUS.folder(unit.cell) / "model").is_dir()}
    return step * (fine_tuning + steps * len(untrained))


def lines() -> Iterator[str]:
    """The part of RESULTS.md."""
    there = [name for name in TASKS if any(name in kept(cell).get("tasks", {}) for cell in _cells())]
    small, large = GROUPS
    yield "The BERT models of `make reproduce` (12 layers of width 64, bytes, rows of 64; trained anew, for their"
    yield "weights are not kept, and rounding parts their losses from those above), fine-tuned on the small tasks"
    yield "of GLUE: 3 epochs, batch 32, warmup 10 %, linear decay, dropout 0.1; the best of the learning rates"
    yield f"{', '.join(small.rates)}, and {', '.join(large.rates)} alone for SST-2, which has three times the rows"
    yield "of all others. Development scores x 100 (the mean of a task's metrics), mean over the pretraining seeds;"
    yield "± is the 95 % Student-t interval. Made by `python -m benchmarks.glue GLUE_DIR`."
    yield from _places()
    todo = sum(bool(unit.missing) for unit in units())
    if todo:
        yield f"Of {len(units())} parts (a model, its small tasks or SST-2) {todo} are still to do."
    yield ""
    rows = [["always the frequent label", "-", "-", "-", *_of_frequent(there)]]
    for name in models(0):
        cells = [models(seed)[name] for seed in SEEDS]
        of = [found for cell in cells if (found := kept(cell)).get("tasks")]
        if of:
            flops = _mean([found["pretrained"]["flops"] for found in of], "{:.3e}")
            rows.append([name, str(len(of)), flops, *_scores(of, there)])
    head = ("model", "seeds", "FLOPs", "validation loss", *(TASKS[name].title for name in there))
    yield from results.table((*head, "average without WNLI"), rows)
    yield from ["", *_words()]


def _places() -> Iterator[str]:
    """Which tasks were fine-tuned where."""
    titles: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for cell in _cells():
        for name, task in kept(cell).get("tasks", {}).items():
            for run in task["runs"]:
                titles[run["device"]][TASKS[name].title] = None
    yield from (f"Fine-tuned on {device}: {', '.join(names)}." for device, names in titles.items())


def frequent(task: str) -> float:
    """The score of always saying the more frequent label."""
    if task in CORRELATED:
        return 0.0
    most, rows = FREQUENT[task]
    accuracy = most / rows
    return fmean((accuracy, 2 * accuracy / (1 + accuracy))) if task == "mrpc" else accuracy  # F1 at a recall of 1


def _of_frequent(tasks: Sequence[str]) -> Iterator[str]:
    """The cells of a model that has learned nothing else."""
    scores = {name: frequent(name) for name in tasks}
    yield from (f"{100 * score:.1f}" for score in scores.values())
    averaged = [score for name, score in scores.items() if name != "wnli"]
    yield f"{100 * fmean(averaged):.1f}" if averaged else "-"


def _cells() -> list[Cell]:
    return [cell for seed in SEEDS for cell in models(seed).values()]


def _scores(of: Sequence[dict[str, Any]], tasks: Sequence[str]) -> Iterator[str]:
    """The cells of a row: loss, tasks, average; a dash where a model lacks one."""
    yield _mean([found["pretrained"]["eval/loss"] for found in of], "{:.4f}")
    for name in tasks:
        scores = [found["tasks"][name]["mean"] for found in of if name in found["tasks"]]
        yield _mean([100 * score for score in scores], "{:.1f}") if len(scores) == len(of) else "-"
    averaged = [name for name in tasks if name != "wnli"]
    if averaged and all(name in found["tasks"] for found in of for name in averaged):
        yield _mean([100 * fmean(found["tasks"][name]["mean"] for name in averaged) for found in of], "{:.1f}")
    else:
        yield "-"


def _mean(values: Sequence[float], form: str) -> str:
    over = interval(values)
    return form.format(over.mean) + (f" ± {form.format(over.half)}" if over.half else "")


def _words() -> Iterator[str]:
    """What such numbers can say."""
    yield "What so small a model can show is little. It reads 64 bytes, and a pair of RTE has 300, one of MRPC"
    yield "240: most of what is asked is cut off. Scores near those of the frequent label (MRPC: F1 81.2,"
    yield "accuracy 68.4; a constant correlates with nothing, so CoLA and STS-B have 0) are no understanding,"
    yield "and a little above it neither: the rate is chosen by the same development rows. WNLI's development"
    yield "rows repeat training sentences with the other label, so that a model which learns by heart falls"
    yield "below; it is in no average. What the table can answer is whether a cheaper model is *worse*: only"
    yield "differences beyond the intervals count, and those are wide."


if __name__ == "__main__":
    main(sys.argv[1:])
