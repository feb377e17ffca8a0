"""Runs read from Weights & Biases, with a time-out and without prompts."""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from apollo_cli.config.schema import flat
from apollo_cli.errors import ApolloError, DataError, first_line, one_line
from apollo_cli.report.runs import ROW, Run, checked, make_run
from apollo_cli.run_directory import without_format
from apollo_cli.tracking.wandb import FACTS, LABELS, has_key

Result = TypeVar("Result")

TIMEOUT = 60  # seconds without a new run from the server
_QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}  # before wandb is imported
_STATUSES = {"finished": "completed", "running": "running", "pending": "running"}  # other states: failed
# by what is typed, the field of the server
FILTERS = {"group": "group", "tag": "tags", "state": "state", "method": "config.method.value"}


def fetch_runs(project: str, filters: Sequence[str] = ()) -> tuple[list[Run], list[str]]:
    """The runs of apollo-train in the W&B project ENTITY/PROJECT, and notes on the damaged ones.

    Filters are KEY=VALUE with keys of `FILTERS`; a run must match all, and one of the values of a repeated key.
    A DataError if there is no key, no server, no such project, or no run of apollo-train.
    """
    option = f"--wandb {project}"
    if project.count("/") != 1 or not all(project.split("/")):
        raise DataError(f"{option}: should be ENTITY/PROJECT")
    if not has_key():
        raise DataError(f"{option}: there is no W&B key here; type wandb login, or set WANDB_API_KEY")
    answers = _ask(project, _query(filters))
    found = list(iter(lambda: within(TIMEOUT, option, partial(next, answers, None)), None))
    runs = [answer for answer in found if isinstance(answer, Run) and answer.rows]
    notes = [answer for answer in found if isinstance(answer, str)]
    if not runs:
        raise DataError("\n".join([*notes, f"{option}: no run of apollo-train with rows is in it"]))
    return runs, notes


def within(seconds: float, option: str, call: Callable[[], Result]) -> Result:
    """What `call` returns, which asks the server; a DataError with `option` if it fails or takes longer."""
    answers: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()

    def ask() -> None:
        os.environ |= _QUIET
        try:
            answers.put(call())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise DataError(f"{option}: the server does not answer for {seconds:g} seconds") from None
    if isinstance(answer, Exception):
        raise DataError(f"{option}: {first_line(answer)}") from answer
    return answer


def _query(filters: Sequence[str]) -> dict[str, Any]:
    """The filters as the server reads them; a DataError for one that is not KEY=VALUE with a known key."""
    found: dict[str, Any] = {}
    for word in filters:
        key, _, value = word.partition("=")
        if key not in FILTERS or not value:
            raise DataError(f"--wandb-filter {word}: should be KEY=VALUE; keys are {', '.join(FILTERS)}")
        found.setdefault(FILTERS[key], {"$in": []})["$in"].append(value)
    return found


def _ask(project: str, query: dict[str, Any]) -> Iterator[Run | str]:
    """The runs of apollo-train, and a note for each damaged one."""
    import wandb

    for found in wandb.Api(timeout=TIMEOUT).runs(project, query, lazy=False):
        try:
            if isinstance(found.config.get(FACTS), dict):
                yield _run(f"{project}/{found.id}", found)
        except ApolloError as error:
            yield f"left out: {one_line(error)}"


def _run(place: str, found: Any) -> Run:
    config = dict(found.config)
    facts, made_with = config.pop(FACTS), config.get("made_with")
    config = {key: value for key, value in config.items() if key not in LABELS}
    status = found.summary.get("status") or _STATUSES.get(found.state, "failed")
    rows = (checked(place, ROW.validate_python, row) for row in found.scan_history())
    own = {"status": status, "data": facts.get("data"), "frequency_loss": found.summary.get("frequency_loss")}
    summary = (made_with if isinstance(made_with, dict) else {}) | own
    return make_run(place, flat(without_format(place, config)), summary, facts.get("plan") or {}, rows)
