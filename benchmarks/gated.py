"""`apollo-train` that steps only when told to: python -m benchmarks.gated WORD... PIPE."""

import sys

from apollo_cli import train
from apollo_cli.training.trainer import Trainer
from benchmarks.gate import Gate

*words, pipe = sys.argv[1:]
gate, original = Gate(int(pipe)), Trainer.step


def step(loop: Trainer) -> None:
    """As always, behind the gate."""
    gate.step()
    original(loop)


Trainer.step = step  # type: ignore[method-assign, assignment]
code = train.run(words)
gate.end()
sys.exit(code)
