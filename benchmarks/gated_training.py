"""`apollo-train` with a gate before each step: python -m benchmarks.gated_training WORD... PIPE."""

import sys

from apollo_cli import train
from apollo_cli.training.trainer import Trainer
from benchmarks.gate import Gate

*words, pipe = sys.argv[1:]
gate, original = Gate(int(pipe)), Trainer.step


def step(trainer: Trainer) -> None:
    gate.step()
    original(trainer)


Trainer.step = step  # type: ignore[method-assign, assignment]
code = train.run(words)
gate.end()
sys.exit(code)
