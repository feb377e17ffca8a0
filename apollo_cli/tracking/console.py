"""What a person sees: the plan, a live bar or plain lines, each growth, a summary; and train.log."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from apollo_cli import files
from apollo_cli.growth.plan import Plan

_SILENCE = 30  # seconds between lines on the progress of a long step
_TELLING = 0.01  # of the work: the time that is left is no guess from then on
_WIDTH = 112  # of plain output, where no terminal has a say


class Screen(RichConsole):
    """Standard output, as wide as the terminal or as plain output is; when it goes away, the run goes on."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _WIDTH
        super().__init__(highlight=False, soft_wrap=True, width=width, file=sys.stdout)

    def on_broken_pipe(self) -> None:
        """Nobody reads any more: what follows goes nowhere, and not into an error at the end."""
        self.quiet = True
        with suppress(OSError, ValueError):  # a test's output has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Writes to standard output and, once `log_to` is called, to train.log, where all lines are plain.

    Args:
        speaks: whether what it is told is for people; of several processes one speaks for all.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self.out = Screen()
        self.out.quiet = not speaks
        self.early: list[str] = []
        self.log: IO[str] | None = None
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.plan: Plan | None = None
        self.train_loss: float | None = None
        self.loss_before_growth: float | None = None

    def log_to(self, path: Path) -> None:
        """Opens train.log and writes there what was said so far."""
        with files.writing(path, 10_000):
            self.log = path.open("a", encoding="utf-8")
        for text in self.early:
            self._log(text)

    def say(self, text: str) -> None:
        """One line for people."""
        self._print(text)
        self._log(text)

    def show(self, table: Table) -> None:
        """A table."""
        self._print(table)
        plain = RichConsole(file=io.StringIO(), width=_WIDTH)
        plain.print(table)
        self._log(plain.file.getvalue().rstrip())  # type: ignore[attr-defined]

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[float | None], None]]:
        """Shows how far a long step is: a bar with the time left on a terminal, else a line now and then.

        What it yields takes the share that is done, None where nobody knows.
        """
        began = said = monotonic()

        def at(share: float | None) -> None:
            nonlocal said
            if self.out.is_terminal:
                bar.update(task, total=None if share is None else 1, completed=share or 0)
            elif share and share >= _TELLING and monotonic() - said > _SILENCE:
                said = monotonic()
                left = duration((said - began) * (1 - share) / share)
                self._print(f"{title}: {share:.0%}, ETA {left}")

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=self.out, transient=True, disable=not self.out.is_terminal)
        with bar:
            task = bar.add_task(title, total=None)
            yield at

    def start(self, plan: Plan) -> None:
        """Begins the progress display: a live bar on a terminal, nothing more in a pipe."""
        self.plan = plan
        if self.out.is_terminal and not self.out.quiet:
            columns = (BarColumn(bar_width=max(1, min(24, self.out.width - 90))), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=self.out, refresh_per_second=4)
            self.task = self.bar.add_task("starting", total=plan.flops)
            self.bar.start()

    def step(self, standing: dict[str, Any]) -> None:
        """Moves the live bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=standing["flops"], description=self._standing(standing))

    def row(self, row: dict[str, Any]) -> None:
        """Training rows move on in the live bar; in a pipe and in the log they are lines, as all others."""
        self.train_loss = row.get("train/loss", self.train_loss)
        line = self._line(row)
        if "eval/loss" in row:
            self.loss_before_growth = row["eval/loss"]
        if self.bar is None or "train/loss" not in row:
            self._print(line)
        self._log(line)

    def stop(self) -> None:
        """Ends the live bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, row: dict[str, Any]) -> str:
        width = f"  width {row['width']:g}" if "width" in row else ""
        head = f"step {row['step']:>6}  layers {row['layers']:>2}{width}  {row['flops']:.3e} FLOPs"
        if "growth/to" in row:
            after = row["layers"] == row["growth/to"] and row.get("width") == row.get(
                "growth/width_to", row.get("width")
            )
            when = f"grown {_grown(row)}" if after else "before growth"
            return f"{head}  {when}: {_evaluation(row, self._change(row) if after else '')}"
        if "eval/loss" in row:
            return f"{head}  evaluation: {_evaluation(row)}"
        skipped = f" skipped {row['train/skipped_steps']}" if row["train/skipped_steps"] else ""
        norm = _value(row["train/grad_norm"], ".2f")
        return f"step {self._standing(row)} lr {row['train/lr']:.2e} norm {norm}{skipped}"

    def _change(self, row: dict[str, Any]) -> str:
        """What the growth did to the loss of the stored layers."""
        before, after = self.loss_before_growth, row["eval/loss"]
        return "" if before is None or after is None else f" ({after - before:+.4f})"

    def _standing(self, row: dict[str, Any]) -> str:
        assert self.plan is not None
        loss = "" if self.train_loss is None else f" loss {self.train_loss:.4f}"
        share = row["flops"] / self.plan.flops
        eta = duration(row["train_seconds"] * (1 - share) / share) if share else "?"
        return (
            f"{row['step']:>5}/{self.plan.steps} stage {row['stage']}/{len(self.plan.stages)} "
            f"layers {row['layers']:>2} depth {row['train/depth']:>2}{loss} {row['flops']:.2e} FLOPs ETA {eta}"
        )

    def _print(self, what: str | Table) -> None:
        try:
            self.out.print(what, markup=False)
        except OSError:  # a terminal whose connection broke
            self.out.on_broken_pipe()

    def _log(self, text: str) -> None:
        if self.log is None:
            self.early.append(text)
            return
        try:
            self.log.write(text + "\n")
            self.log.flush()
        except OSError as error:  # a full disk; the rows are what counts, and they have a guard of their own
            self.log = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end, too
            self._print(f"train.log ends here: {error.strerror}")


def plan_table(plan: Plan, *, estimated: bool) -> Table:
    """Stored layers (x share of the width), spans, parameters, memory, depths, FLOPs; fits into 80 columns."""
    about = "an estimate, for the budget is in seconds" if estimated else "memory is estimated, depth the mean"
    table = Table(title=f"Plan: {plan.steps:,} steps ({about})", title_justify="left")
    for name in ("layers", "until step", "parameters", "memory", "depth", "FLOPs", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in plan.stages:
        counts = part.depth_counts
        table.add_row(
            str(part.stage.layers) + (f" x {part.stage.width:g}" if part.stage.width != 1 else ""),
            f"{part.stage.end_step:,}",
            f"{part.parameters:,}",
            f"{part.memory_bytes / 1e9:.2f} GB",
            f"{sum(depth * count for depth, count in counts.items()) / sum(counts.values()):.2f}",
            f"{part.flops:.3e}",
            f"{part.flops / plan.flops:.1%}",
        )
    return table


def plan_totals(plan: Plan) -> str:
    """The totals, to the last digit, and what the plan saves against scratch at equal steps."""
    saving = 1 - plan.flops / plan.scratch_flops
    sent = ", ".join(files.in_units(stage.sent_bytes) for stage in plan.stages)
    beside = f"\neach of {plan.step_cost.devices} devices sends {sent} a step, stage by stage"
    learned = f" ({plan.map_flops} of them to learn maps)" if plan.map_flops else ""
    return (
        f"{plan.micro_steps:,} micro-steps, {plan.tokens:,} tokens, {plan.flops} FLOPs{learned}; scratch at equal "
        f"steps {plan.scratch_flops} FLOPs: {abs(saving):.1%} {'fewer' if saving >= 0 else 'more'}"
        f"{beside if plan.step_cost.devices > 1 else ''}"
    )


def summary_table(summary: dict[str, Any]) -> Table:
    """The closing summary; the same fields as summary.json."""
    table = Table(title=f"Run {summary['status']}", title_justify="left", show_header=False)
    totals, losses = summary["totals"], summary["losses"]
    rows = {
        "steps": f"{totals['steps']:,} of {totals['planned_steps']:,}",
        "layers": f"{totals['layers']}",
        "FLOPs": f"{totals['flops']:.4e} (scratch at equal steps {totals['scratch_flops']:.4e})",
        "tokens": f"{totals['tokens']:,}",
        "training time": duration(totals["train_seconds"]),
        "total time": duration(totals["total_seconds"]),
        "device": summary["device"],
        "train loss": _value(losses.get("train/loss")),
        "validation loss": _value(losses.get("eval/loss")),
        "run directory": files.shown(Path(summary["run_dir"])),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def duration(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def _grown(row: dict[str, Any]) -> str:
    """From what to what."""
    layers = f"{row['growth/from']} -> {row['growth/to']} layers"
    if "growth/width_to" not in row:
        return layers
    width = f"{row['growth/width_from']:g} -> {row['growth/width_to']:g} of the width"
    return width if row["growth/from"] == row["growth/to"] else f"{layers}, {width}"


def _evaluation(row: dict[str, Any], change: str = "") -> str:
    stored, full = row["eval/loss"], row["eval/loss_full_depth"]
    at_full = "" if stored == full else f"  at full depth {_value(full)}"
    return f"validation loss {_value(stored)}{change}{at_full}"


def _value(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where there is none or it was not finite."""
    return "-" if value is None else f"{value:{form}}"
