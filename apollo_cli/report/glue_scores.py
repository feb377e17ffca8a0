"""GLUE scores that `apollo-glue` left in a run directory."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apollo_cli import files
from apollo_cli.errors import DataError
from apollo_cli.glue.tasks import TASKS

FILE = Path("glue") / "results.json"  # in a run directory
_MAX_BYTES = 50_000_000


@dataclass(frozen=True)
class GlueScores:
    """The scores of a run."""

    scores: dict[str, float] = field(default_factory=dict)  # mean over fine-tuning seeds, from -1 or 0 to 1
    recipes: dict[str, str] = field(default_factory=dict)  # how, at which rates and on which rows, as JSON
    loss: float | None = None  # validation loss of the fine-tuned weights; None where it is not recorded


def read_glue_scores(run_dir: Path) -> GlueScores:
    """The scores of a run; empty where it was not fine-tuned.

    Raises:
        DataError: the file is damaged.
    """
    path = run_dir / FILE
    if not path.is_file():
        return GlueScores()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        scores, recipes = {}, {}
        for name, task in found["tasks"].items():
            if name not in TASKS or not _is_finite(task["mean"]) or not -1 <= task["mean"] <= 1:
                raise ValueError(f"{name} is not a GLUE task with a score")
            scores[name] = task["mean"]
            recipe = [found.get("recipe"), task.get("rates"), task.get("data")]
            recipes[name] = json.dumps(recipe, sort_keys=True)
        loss = found.get("pretrained", {}).get("eval/loss")
        if loss is not None and not _is_finite(loss):
            raise ValueError(f"the pretrained model's loss is {loss!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{files.shown(path)} is damaged: {error}") from error
    return GlueScores(scores, recipes, loss)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
