"""`apollo-train` that steps only when told to: python -m benchmarks.gated WORD... PIPE."""

import sys

from apollo_cli import train
from apollo_cli.training.loop import Loop
from benchmarks.gate import Gate

*words, pipe = sys.argv[1:]
gate, original = Gate(int(pipe)), Loop.step


def step(loop: Loop) -> None:
    """As always, behind the gate."""
    gate.step()
    original(loop)


Loop.step = step  # type: ignore[method-assign, assignment]
code = train.run(words)
gate.end()
sys.exit(code)
