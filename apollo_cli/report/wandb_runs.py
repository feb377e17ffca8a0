"""Runs, read back from Weights & Biases: it may hang or fail, is not waited for for ever, and never prompts."""

import os
import queue
import threading
from collections.abc import Iterator
from typing import Any

from apollo_cli.errors import ApolloError, DataError
from apollo_cli.report.runs import (
    Row,
    Run,
    checked,
    depth_counts,
    flat,
    measured_on,
    plain,
    problems_of_config,
    source_costs,
)
from apollo_cli.run_directory import without_format
from apollo_cli.tracking.wandb import FACTS, has_key

PATIENCE = 60  # seconds without anything new from the server
_STATES = {"finished": "completed", "running": "running", "pending": "running"}  # anything else has failed


def fetch(project: str) -> list[Run]:
    """All runs of ours in a project of W&B, with all their rows.

    Args:
        project: ENTITY/PROJECT.

    Raises:
        DataError: no key, no server, no such project, no run of ours, or a row that is damaged.
    """
    if project.count("/") != 1 or not all(project.split("/")):
        raise DataError(f"--wandb {project}: should be ENTITY/PROJECT")
    if not has_key():
        raise DataError(f"--wandb {project}: there is no W&B key here; type wandb login, or set WANDB_API_KEY")
    answers: queue.SimpleQueue[Run | Exception | None] = queue.SimpleQueue()
    threading.Thread(target=_ask, args=(project, answers), daemon=True).start()
    runs: list[Run] = []
    while True:
        try:
            answer = answers.get(timeout=PATIENCE)
        except queue.Empty:
            raise DataError(f"--wandb {project}: the server does not answer for {PATIENCE} seconds") from None
        if isinstance(answer, ApolloError):
            raise answer
        if isinstance(answer, Exception):
            reason = (str(answer).strip().splitlines() or [type(answer).__name__])[0]
            raise DataError(f"--wandb {project}: {reason}") from answer
        if answer is None:
            break
        runs.append(answer)
    if not runs:
        raise DataError(f"--wandb {project}: no run of apollo-train with rows is in it")
    return runs


def runs_of(api: Any, project: str) -> Iterator[Run]:
    """The runs that `api`, a wandb.Api, has of a project; those of other programs and without rows are left out."""
    for found in api.runs(project, lazy=False):
        facts = found.config.get(FACTS)
        rows = [_as_written(row) for row in found.scan_history()] if isinstance(facts, dict) else []
        if not isinstance(facts, dict) or not rows:
            continue
        place = f"{project}/{found.id}"
        config = flat(without_format(place, {key: value for key, value in found.config.items() if key != FACTS}))
        if problems := problems_of_config(place, config):
            raise DataError("\n".join(problems))
        data, evaluation_rows = measured_on(facts.get("data"))
        source_flops, source_seconds = source_costs(place, facts.get("plan") or {})
        yield Run(
            place=place,
            config=config,
            status=plain(found.summary.get("status") or _STATES.get(found.state, "failed")),
            data=data,
            evaluation_rows=evaluation_rows,
            depth_counts=depth_counts(place, facts.get("plan") or {}),
            rows=checked(place, rows),
            source_flops=source_flops,
            source_seconds=source_seconds,
        )


def _ask(project: str, answers: "queue.SimpleQueue[Run | Exception | None]") -> None:
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb

        for run in runs_of(wandb.Api(timeout=PATIENCE), project):
            answers.put(run)
        answers.put(None)
    except Exception as error:
        answers.put(error)


def _as_written(row: Row) -> Row:
    """A row as it stands in metrics.jsonl: FLOPs are whole, and what W&B adds is gone."""
    return {key: value for key, value in row.items() if not key.startswith("_")} | {"flops": int(row["flops"])}
