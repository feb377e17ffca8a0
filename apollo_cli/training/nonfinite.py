"""The diagnosis of a step whose loss or gradient was not finite."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from apollo_cli import files

MAX_SKIPS_IN_A_ROW = 10  # after as many, the weights themselves give no finite loss any more


@dataclass(frozen=True)
class Diagnosis:
    """Enough to compute the step again."""

    step: int  # updates done before it
    stage: int  # number of the stage, from 1
    layers: int  # number of stored layers
    learning_rate: float  # of the step
    depths: list[int]  # of each micro-step
    losses: list[float]  # of each micro-step, in nats
    grad_norm: float  # over all parameters, not clipped
    parameters: list[str]  # names of those whose gradient is not finite
    rows: list[list[int]]  # numbers of the training rows of each micro-step
    data: str  # fingerprint of the training data

    def __str__(self) -> str:
        what = (
            f"the gradient's norm is {self.grad_norm}"
            if all(map(math.isfinite, self.losses))
            else f"the loss is {math.fsum(self.losses) / len(self.losses)}"
        )
        depths = ", ".join(map(str, self.depths[:8])) + (", ..." if len(self.depths) > 8 else "")
        return f"step {self.step}: {what} (stage {self.stage}, {self.layers} layers, depth {depths})"

    def write(self, folder: Path) -> Path:
        """Writes it into `folder`, which is made if it is missing; returns the file, or raises a StorageError."""
        path = folder / f"step_{self.step:08d}.json"
        values = asdict(self) | {"losses": [finite(x) for x in self.losses], "grad_norm": finite(self.grad_norm)}
        with files.writing(path, 100_000):
            folder.mkdir(exist_ok=True)
            files.write_json(path, values)
        return path


def finite(value: float | None) -> float | None:
    """The value, or None if it is not finite, for JSON has no such numbers."""
    return value if value is not None and math.isfinite(value) else None
