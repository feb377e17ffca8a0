"""The real command; writes to a pipe when it enters and leaves the moments in which it may be killed.

python -m tests.helpers.watched PIPE WORDS...
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

MOMENTS = ("claiming", "caching", "stepping", "evaluating", "growing", "saving", "exporting", "closing", "loading")


def main(pipe: int) -> None:
    """`apollo-train` with the words of this process."""
    from apollo_cli import train
    from apollo_cli.data import corpus
    from apollo_cli.run_directory import RunDirectory
    from apollo_cli.training import pretraining, trainer
    from apollo_cli.training.checkpoint import Checkpoints

    places: dict[str, tuple[Any, str]] = {
        "claiming": (RunDirectory, "claim"),
        "caching": (corpus, "pack_corpus"),
        "stepping": (trainer.Trainer, "step"),
        "evaluating": (pretraining, "evaluate"),
        "growing": (trainer.Trainer, "grow"),
        "saving": (Checkpoints, "save"),
        "exporting": (pretraining.Pretraining, "_export"),
        "closing": (pretraining.Pretraining, "_close"),
        "loading": (Checkpoints, "load_newest"),
    }
    assert tuple(places) == MOMENTS
    for moment, (owner, name) in places.items():
        setattr(owner, name, _announcing(pipe, moment, getattr(owner, name)))
    train.main()


def _announcing(pipe: int, moment: str, function: Callable) -> Callable:
    @wraps(function)
    def announced(*args: Any, **kwargs: Any) -> Any:
        os.write(pipe, f"+{moment}\n".encode())
        try:
            return function(*args, **kwargs)
        finally:
            os.write(pipe, f"-{moment}\n".encode())

    return announced


if __name__ == "__main__":
    main(int(sys.argv.pop(1)))
