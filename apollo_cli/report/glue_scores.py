"""What `apollo-glue` left in a run directory."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apollo_cli import files
from apollo_cli.errors import DataError
from apollo_cli.glue.tasks import TASKS

FILE = Path("glue") / "results.json"  # in a run directory
_LARGEST = 50_000_000  # bytes; ours have some thousand


@dataclass(frozen=True)
class GlueScores:
    """The scores of a run.

    Attributes:
        scores: of each task the mean over fine-tuning seeds, from -1 or 0 to 1.
        recipes: of each task how it was fine-tuned, at which learning rates, on which rows; as JSON.
        loss: validation loss of the weights that were fine-tuned; None where it is not said.
    """

    scores: dict[str, float] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)
    loss: float | None = None


def read(folder: Path) -> GlueScores:
    """The scores of the run in `folder`; none where it was not fine-tuned.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return GlueScores()
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large to be one of ours")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        scores = {name: task["mean"] for name, task in found["tasks"].items()}
        if not scores.keys() <= TASKS.keys() or not all(map(_is_score, scores.values())):
            raise ValueError("a task or a score is none of GLUE's")
        recipes = {
            name: [found.get("recipe"), task.get("rates"), task.get("data")]
            for name, task in found["tasks"].items()
        }
        loss = found.get("pretrained", {}).get("eval/loss")
        if loss is not None and not _is_number(loss):
            raise ValueError(f"the loss of what was fine-tuned is {loss!r}")
        return GlueScores(
            scores, {name: json.dumps(recipe, sort_keys=True) for name, recipe in recipes.items()}, loss
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{files.shown(path)} is damaged: {error}") from error


def _is_score(value: Any) -> bool:
    return _is_number(value) and -1 <= value <= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
