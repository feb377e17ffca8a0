"""Console output of a fine-tuning run."""

from typing import Any

from apollo_cli.tracking.console import Console


class GlueConsole(Console):
    """Prints rows of a fine-tuning run with its name and metrics."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _line(self, row: dict[str, Any]) -> str:
        if "eval/loss" not in row:
            return f"{self._position(row)} lr {row['train/lr']:.2e}"
        scores = {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}
        shown = "  ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in scores.items())
        return f"{self.name} step {row['step']:>5}  {shown}"

    def _position(self, row: dict[str, Any]) -> str:
        assert self.plan is not None
        loss = "" if self.train_loss is None else f" loss {self.train_loss:.4f}"
        step = f"{self.name} step {row['step']:>5}/{self.plan.steps}"
        return f"{step}{loss} {row['flops']:.2e} FLOPs ETA {self._eta(row)}"
