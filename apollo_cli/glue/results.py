"""Results of fine-tuning runs, read from their folders: best and mean over seeds, averages."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from apollo_cli import files
from apollo_cli.errors import CheckpointError
from apollo_cli.glue.tasks import TASKS
from apollo_cli.intervals import interval
from apollo_cli.run_directory import RunDirectory

NAME = "results.json"


def collect(folder: Path) -> dict[str, Any]:
    """The results of all complete runs in a folder of fine-tuning runs.

    For each task: `data`, fingerprint and number of the training rows; `frequent`, the score of always answering
    the most frequent label; `rates`, the learning rates tried; `rate`, the one with the best mean score among those
    with the most seeds, the lowest on a tie; `mean` over its seeds, with the ends of the 95 % interval; `best` of
    all runs, as in published results. Both are chosen by the same development rows that they are measured on.
    """
    summaries = list(complete(folder))
    of_tasks = {name: [each for each in summaries if each["task"] == name] for name in TASKS}
    tasks = {name: _task_results(of_task) for name, of_task in of_tasks.items() if of_task}
    pretrained = summaries[0]["pretrained"] if summaries else {}
    return {"pretrained": pretrained, "tasks": tasks, "average": averages(tasks)}


def averages(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The averages of `mean` and of `best` over these tasks, with the names of the tasks; None over no task."""
    found: dict[str, Any] = {}
    for kind in ("mean", "best"):
        scores = {name: task[kind] for name, task in tasks.items()}
        without = [score for name, score in scores.items() if name != "wnli"]
        found[kind] = {
            "tasks": list(scores),
            "with_wnli": fmean(scores.values()) if scores else None,
            "without_wnli": fmean(without) if without else None,
        }
    return found


def complete(folder: Path, task: str = "*") -> Iterator[dict[str, Any]]:
    """The summaries of the complete runs of a task or of all; a CheckpointError if one is damaged."""
    for path in sorted(folder.glob(f"{task}/*/summary.json"), key=lambda path: files.in_order(str(path))):
        summary = RunDirectory(path.parent).summary()
        if summary.get("status") == "completed":
            whole = {"data", "device", "precision", "totals", "seed", "lr", "pretrained"} <= summary.keys()
            scored = isinstance(summary.get("losses", {}).get("eval/score"), float | int)
            if not whole or not scored or summary.get("task") not in TASKS:
                raise CheckpointError(f"{files.shown(path)} is damaged: it is not the summary of a fine-tuning run")
            yield summary


def _run_results(summary: Mapping[str, Any]) -> dict[str, Any]:
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


def _task_results(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    runs = list(map(_run_results, summaries))
    rates: dict[float, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["lr"]):
        rates.setdefault(run["lr"], []).append(run)
    seeds = max(map(len, rates.values()))
    means = {
        rate: fmean(run["score"] for run in of_rate) for rate, of_rate in rates.items() if len(of_rate) == seeds
    }
    rate = max(means, key=lambda rate: means[rate])
    over_seeds = interval([run["score"] for run in rates[rate]])
    best = max(runs, key=lambda run: run["score"])
    return {
        "data": summaries[0]["data"],
        "frequent": summaries[0].get("frequent_score"),
        "rates": list(rates),
        "rate": rate,
        "seeds": [run["seed"] for run in rates[rate]],
        "mean": over_seeds.mean,
        "interval": over_seeds.ends,
        "metrics": {
            name: fmean(run["metrics"][name] for run in rates[rate]) for name in best["metrics"] if name != "loss"
        },
        "best": best["score"],
        "best_run": {"lr": best["lr"], "seed": best["seed"]},
        "runs": runs,
    }


def scores_table(results: Mapping[str, Any]) -> Table:
    """The results as a table; x 100, as GLUE reports them."""
    table = Table(title="GLUE, development rows (x 100)", title_justify="left")
    for name in ("task", "mean over seeds", "best run", "frequent label", "metrics (mean)", "lr", "runs"):
        is_text = name in ("task", "metrics (mean)")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name == "mean over seeds")
    for name, task in results["tasks"].items():
        metrics = ", ".join(f"{metric} {percent(value)}" for metric, value in task["metrics"].items())
        scores = (mean_text(task), percent(task["best"]), percent(task["frequent"]))
        table.add_row(TASKS[name].title, *scores, metrics, f"{task['rate']:g}", str(len(task["runs"])))
    means, best = (results["average"][kind] for kind in ("mean", "best"))
    for label, key in (("average", "with_wnli"), ("average without WNLI", "without_wnli")):
        if means[key] is not None and (key == "with_wnli" or "wnli" in means["tasks"]):
            counted = {
                name: results["tasks"][name] for name in means["tasks"] if (key, name) != ("without_wnli", "wnli")
            }
            frequent = [task["frequent"] for task in counted.values()]
            mean = None if None in frequent else fmean(frequent)
            titles = ", ".join(TASKS[name].title for name in counted)
            table.add_row(label, percent(means[key]), percent(best[key]), percent(mean), f"of {titles}", "", "")
    return table


def mean_text(task: Mapping[str, Any]) -> str:
    """The mean of a task, with the half width of its interval if there is one, and the number of seeds."""
    low, high = task["interval"] or (0.0, 0.0)
    half = f" ± {percent((high - low) / 2)}" if task["interval"] else ""
    return f"{percent(task['mean'])}{half} (n = {len(task['seeds'])})"


def percent(value: float | None) -> str:
    """A score x 100, as GLUE reports it."""
    return "-" if value is None else f"{100 * value:.1f}"
