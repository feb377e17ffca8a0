"""Runs read from Weights & Biases, with a time-out and without prompts."""

import os
import queue
import threading
from collections.abc import Iterator
from typing import Any

from apollo_cli.errors import ApolloError, DataError
from apollo_cli.report.runs import Row, Run, flat, make_run
from apollo_cli.run_directory import without_format
from apollo_cli.tracking.wandb import FACTS, has_key

TIMEOUT = 60  # seconds without a new run from the server
_STATUSES = {"finished": "completed", "running": "running", "pending": "running"}  # other states: failed


def fetch_runs(project: str) -> list[Run]:
    """All runs of apollo-train in the W&B project ENTITY/PROJECT, with all their rows.

    Raises:
        DataError: no key, no server, no such project, no run of apollo-train, or a damaged row.
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
            answer = answers.get(timeout=TIMEOUT)
        except queue.Empty:
            raise DataError(f"--wandb {project}: the server does not answer for {TIMEOUT} seconds") from None
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


def _runs_of(api: Any, project: str) -> Iterator[Run]:
    """The runs of apollo-train with rows in a project; `api` is a wandb.Api."""
    for found in api.runs(project, lazy=False):
        facts = found.config.get(FACTS)
        rows = [_as_written(row) for row in found.scan_history()] if isinstance(facts, dict) else []
        if not isinstance(facts, dict) or not rows:
            continue
        place = f"{project}/{found.id}"
        config = flat(without_format(place, {key: value for key, value in found.config.items() if key != FACTS}))
        status = found.summary.get("status") or _STATUSES.get(found.state, "failed")
        yield make_run(place, config, {"status": status, "data": facts.get("data")}, facts.get("plan") or {}, rows)


def _ask(project: str, answers: "queue.SimpleQueue[Run | Exception | None]") -> None:
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb

        for run in _runs_of(wandb.Api(timeout=TIMEOUT), project):
            answers.put(run)
        answers.put(None)
    except Exception as error:
        answers.put(error)


def _as_written(row: Row) -> Row:
    """The row of metrics.jsonl: FLOPs as an integer, without the columns that W&B adds."""
    return {key: value for key, value in row.items() if not key.startswith("_")} | {"flops": int(row["flops"])}
