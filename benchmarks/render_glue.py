"""Table of the GLUE scores, beside those of the most frequent label and of scratch; nothing is trained.

`python -m benchmarks.render_glue` makes it from the archives.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from apollo_cli.glue.tasks import TASKS
from apollo_cli.intervals import interval
from benchmarks import glue_cells, results_page
from benchmarks.cells import SEEDS

FREQUENT = {"sst2": (444, 872), "mrpc": (279, 408), "rte": (146, 277), "wnli": (40, 71)}  # development rows, of all
CORRELATED = ("cola", "stsb")  # a constant correlates with nothing
LEARNED = "sst2"  # far above the frequent label: a column of its own beside scratch

Results = dict[str, Any]  # results.json of a model


def write() -> None:
    results_page.put("GLUE of the reproduction's models", lines())


def lines() -> Iterator[str]:
    """Lines of the page."""
    found = {
        name: [glue_cells.kept(glue_cells.models(seed)[name]) for seed in SEEDS] for name in glue_cells.models(0)
    }
    tasks = [name for name in TASKS if any(_has(each, [name]) for of_seeds in found.values() for each in of_seeds)]
    averaged = [name for name in tasks if name != "wnli"]
    yield from _about(found)
    yield ""
    rows = [["always the frequent label", "-", "-", "-", *_cells([_frequent(tasks)], tasks, averaged)]]
    for name, of_seeds in found.items():
        if there := [each for each in of_seeds if _has(each, [])]:
            losses = [each["pretrained"]["eval/loss"] for each in there]
            flops = fmean(each["pretrained"]["flops"] for each in there)
            rows.append(
                [name, str(len(there)), f"{flops:.3e}", _mean(losses, ".4f"), *_cells(there, tasks, averaged)]
            )
    titles = [TASKS[name].title for name in tasks]
    yield from results_page.table(
        ("model", "seeds", "FLOPs", "validation loss", *titles, "average without WNLI"), rows
    )
    yield ""
    yield "Beside scratch of the same seed: its FLOPs, and points more or less."
    yield ""
    head = ("model", "seeds", "FLOPs", TASKS[LEARNED].title, "average without WNLI")
    yield from results_page.table(head, _beside_scratch(found, averaged))
    yield ""
    yield from _limits()


def frequent(task: str) -> float:
    """Score of always predicting the most frequent label."""
    if task in CORRELATED:
        return 0.0
    most, rows = FREQUENT[task]
    accuracy = most / rows
    return fmean((accuracy, 2 * accuracy / (1 + accuracy))) if task == "mrpc" else accuracy  # F1 at a recall of 1


def _frequent(tasks: Sequence[str]) -> Results:
    """Results of a model that has learned nothing else."""
    return {"tasks": {name: {"mean": frequent(name)} for name in tasks}}


def _about(found: dict[str, list[Results]]) -> Iterator[str]:
    small, large = glue_cells.GROUPS
    yield "The BERT models of `make reproduce` (12 layers of width 64, bytes, rows of 64), trained anew, for their"
    yield "weights are not kept, so that losses may differ from those above by rounding, and fine-tuned on tasks of"
    yield "GLUE: 3 epochs, batch 32, warmup 10 %, linear decay, dropout 0.1; the best of the learning rates"
    yield f"{', '.join(small.rates)}, and {', '.join(large.rates)} alone for SST-2, which has three times the rows"
    yield "of all others. Development scores x 100 (the mean of a task's metrics), mean over the pretraining seeds,"
    yield f"with {len(glue_cells.FINE_TUNING_SEEDS)} fine-tuning seed each; ± is the 95 % Student-t interval."
    yield "Made by `python -m benchmarks.run_glue GLUE_DIR`."
    places: dict[str, dict[str, None]] = {}
    for name, task in (
        each for of_seeds in found.values() for one in of_seeds for each in one.get("tasks", {}).items()
    ):
        for run in task["runs"]:
            places.setdefault(f"{run['device']}, {run['precision']}", {})[TASKS[name].title] = None
    yield from (f"Fine-tuned on {place}: {', '.join(titles)}." for place, titles in places.items())
    if todo := sum(bool(unit.missing) for unit in glue_cells.units()):
        yield f"Of {len(glue_cells.units())} parts (a model, and tasks with the same rates) {todo} are still to do."


def _cells(found: Sequence[Results], tasks: Sequence[str], averaged: Sequence[str]) -> Iterator[str]:
    """Each task and the average; a dash where a model lacks one."""
    for names in (*([name] for name in tasks), averaged):
        complete = bool(names) and all(_has(each, names) for each in found)
        yield _mean([_score(each, names) for each in found], ".1f") if complete else "-"


def _beside_scratch(found: dict[str, list[Results]], averaged: Sequence[str]) -> Iterator[list[str]]:
    """Rows of the differences, seed by seed, where both models have the tasks."""
    for name, of_seeds in found.items():
        pairs = [
            pair for pair in zip(of_seeds, found["scratch"], strict=True) if all(_has(each, []) for each in pair)
        ]
        if name == "scratch" or not pairs:
            continue
        share = fmean(mine["pretrained"]["flops"] / its["pretrained"]["flops"] for mine, its in pairs)
        points = [
            _mean([_score(mine, names) - _score(its, names) for mine, its in pairs], "+.1f")
            if all(_has(each, names) for pair in pairs for each in pair)
            else "-"
            for names in ([LEARNED], averaged)
        ]
        yield [name, str(len(pairs)), f"{share:.2f}", *points]


def _has(found: Results, tasks: Sequence[str]) -> bool:
    return "tasks" in found and set(tasks) <= found["tasks"].keys()


def _score(found: Results, tasks: Sequence[str]) -> float:
    return 100 * fmean(found["tasks"][name]["mean"] for name in tasks)


def _mean(values: Sequence[float], form: str) -> str:
    over = interval(values)
    return f"{over.mean:{form}}" + (f" ± {over.half:{form.removeprefix('+')}}" if over.half else "")


def _limits() -> Iterator[str]:
    """What these scores cannot show."""
    yield "So small a model can show little. It reads 64 bytes, and a pair of RTE has 300, one of MRPC 240:"
    yield "most of the text is cut off. Scores near those of the frequent label (MRPC: F1 81.2, accuracy 68.4;"
    yield "a constant correlates with nothing, so CoLA and STS-B have 0), or a little above, are no"
    yield "understanding: the rate is chosen by the same development rows. WNLI's development rows repeat"
    yield "training sentences with the other label, so that a model which memorizes falls below; it is in no"
    yield "average. SST-2 is the exception: though its development sentences have 106 bytes on average, the"
    yield "scores are far above the frequent label's, and its one rate was not chosen by them. A cheaper model"
    yield "is worse where the interval of its difference leaves out 0; otherwise a loss as large as the lower"
    yield "end is not excluded. No scratch run has the FLOPs of `late_zero_init`; the shorter scratch run has"
    yield "about those of `apollo_late`."


if __name__ == "__main__":
    write()
