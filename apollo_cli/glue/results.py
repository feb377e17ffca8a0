"""What fine-tuning runs gave: read from their folders, best and mean over seeds, averages."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from apollo_cli import files
from apollo_cli.errors import CheckpointError
from apollo_cli.glue.metrics import average
from apollo_cli.glue.tasks import TASKS, GlueTask
from apollo_cli.intervals import interval
from apollo_cli.run_directory import RunDirectory

NAME = "results.json"


def collect(folder: Path) -> dict[str, Any]:
    """The results of all complete runs in a folder of fine-tuning runs.

    Of each task: `data`, the fingerprint and the number of its training rows; `rates`, the learning rates that were
    tried; `rate`, the one with the best mean score of those with the most seeds, the lowest of equal ones; `mean`
    over its seeds, with the ends of the 95 % interval; `best` of all runs, as published results have it. Both are
    chosen by the same development rows that they are measured on.
    """
    summaries = list(_complete(folder))
    tasks = {}
    for name in TASKS:
        of_task = [summary for summary in summaries if summary["task"] == name]
        if of_task:
            tasks[name] = {"data": of_task[0]["data"], **_of_task([_run(summary) for summary in of_task])}
    return {
        "pretrained": summaries[0]["pretrained"] if summaries else {},
        "tasks": tasks,
        "average": averages(tasks),
    }


def averages(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The averages of `mean` and of `best` over these tasks, and which tasks they hold."""
    found = {}
    for kind in ("mean", "best"):
        scores = {name: task[kind] for name, task in tasks.items()}
        found[kind] = {
            "tasks": list(scores),
            "with_wnli": average(scores, with_wnli=True),
            "without_wnli": average(scores, with_wnli=False),
        }
    return found


def data_of(folder: Path, task: GlueTask) -> list[dict[str, Any]]:
    """The fingerprint and the number of rows that each complete run of a task was trained on."""
    return [summary["data"] for summary in _complete(folder, task.name)]


def _complete(folder: Path, task: str = "*") -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"{task}/*/summary.json"), key=lambda path: files.in_order(str(path))):
        summary = RunDirectory(path.parent).summary()
        if summary.get("status") == "completed":
            whole = {"data", "device", "precision", "totals"} <= summary.keys()
            if not whole or summary.get("task") not in TASKS or "eval/score" not in summary.get("losses", {}):
                raise CheckpointError(f"{files.shown(path)} is damaged: it is of no fine-tuning run")
            yield summary


def _run(summary: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: value for name, value in summary["losses"].items() if name.startswith("eval/")}
    return {
        "lr": summary["lr"],
        "seed": summary["seed"],
        "score": scores.pop("eval/score"),
        "metrics": {name.removeprefix("eval/"): value for name, value in scores.items()},
        "flops": summary["totals"]["flops"],
        "train_seconds": summary["totals"]["train_seconds"],
        "device": summary["device"],
        "precision": summary["precision"],
    }


def _of_task(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rates: dict[float, list[dict[str, Any]]] = {}
    for run in runs:
        rates.setdefault(run["lr"], []).append(run)
    seeds = max(map(len, rates.values()))
    of_rates = {
        rate: fmean(run["score"] for run in rates[rate]) for rate in sorted(rates) if len(rates[rate]) == seeds
    }
    rate = max(of_rates, key=lambda rate: of_rates[rate])
    of_seeds = interval([run["score"] for run in rates[rate]])
    best = max(runs, key=lambda run: run["score"])
    return {
        "rates": sorted(rates),
        "rate": rate,
        "seeds": [run["seed"] for run in rates[rate]],
        "mean": of_seeds.mean,
        "interval": of_seeds.ends,
        "metrics": {
            name: fmean(run["metrics"][name] for run in rates[rate]) for name in best["metrics"] if name != "loss"
        },
        "best": best["score"],
        "best_run": {"lr": best["lr"], "seed": best["seed"]},
        "runs": runs,
    }


def table(results: Mapping[str, Any]) -> Table:
    """The results for people; x 100, as GLUE has them."""
    shown = Table(title="GLUE, development rows (x 100)", title_justify="left")
    for name in ("task", "mean over seeds", "best run", "metrics (mean)", "lr", "runs"):
        shown.add_column(name, justify="left" if name in ("task", "metrics (mean)") else "right")
    for name, task in results["tasks"].items():
        of = ", ".join(f"{metric} {hundredfold(value)}" for metric, value in task["metrics"].items())
        shown.add_row(
            TASKS[name].title,
            mean(task),
            hundredfold(task["best"]),
            of,
            f"{task['rate']:g}",
            str(len(task["runs"])),
        )
    means, best = (results["average"][kind] for kind in ("mean", "best"))
    for label, key in (("average", "with_wnli"), ("average without WNLI", "without_wnli")):
        if means[key] is not None and (key == "with_wnli" or "wnli" in means["tasks"]):
            shown.add_row(label, hundredfold(means[key]), hundredfold(best[key]), _counted(means, key), "", "")
    return shown


def _counted(means: Mapping[str, Any], key: str) -> str:
    """Which tasks an average holds."""
    names = [TASKS[name].title for name in means["tasks"] if key == "with_wnli" or name != "wnli"]
    return f"of {', '.join(names)}"


def mean(task: Mapping[str, Any]) -> str:
    """The mean of a task, with the half width of its interval where it has one."""
    if task["interval"] is None:
        return f"{hundredfold(task['mean'])} (n = {len(task['seeds'])})"
    low, high = task["interval"]
    return f"{hundredfold(task['mean'])} ± {hundredfold((high - low) / 2)} (n = {len(task['seeds'])})"


def hundredfold(value: float | None) -> str:
    """A score as GLUE writes it."""
    return "-" if value is None else f"{100 * value:.1f}"
