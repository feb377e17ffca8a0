"""Output for people: the plan, a live bar or plain lines, growths, a summary; and train.log."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from apollo_cli import files
from apollo_cli.errors import printable
from apollo_cli.growth.plan import Plan

_INTERVAL = 30  # seconds between lines on the progress of a long step
_MIN_SHARE = 0.01  # of a long step, before which the remaining time cannot be estimated
_WIDTH = 112  # of plain output that does not go to a terminal
_BAR = 16  # width of the live bar
_SAME = ("step", "layers", "width", "eval/loss")  # an evaluation that is printed already


class Screen(RichConsole):
    """Standard output, as wide as the terminal, $COLUMNS or `_WIDTH`; a closed pipe does not stop the run."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDTH
        super().__init__(highlight=False, soft_wrap=True, width=width, file=sys.stdout)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError, ValueError):  # a test's output has no descriptor; else no error at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Writes to standard output, unless it is quiet, and, once `log_to` is called, plain lines to train.log."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.out = Screen()
        self.out.quiet = quiet
        self.unlogged: list[str] = []
        self.log: IO[str] | None = None
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.plan: Plan  # from `start` on
        self.train_loss: float | None = None
        self.evaluated: dict[str, Any] = {}  # the last row of an evaluation
        self.stepped: dict[str, Any] = {}  # the columns of the last step

    def log_to(self, path: Path) -> None:
        with files.writing(path, 10_000):
            self.log = path.open("a", encoding="utf-8")
        for text in self.unlogged:
            self._log(text)

    def say(self, text: str, *, in_words: bool = False) -> None:
        """Prints and logs a text as it is, so that a command or a path in it can be copied.

        With `in_words` a narrow terminal breaks its lines between words.
        """
        text = printable(text)
        self._print(text, soft_wrap=not in_words)
        self._log(text)

    def show(self, table: Table) -> None:
        plain = RichConsole(file=io.StringIO(), width=_WIDTH)
        plain.print(table, soft_wrap=True)
        text = plain.file.getvalue().rstrip()  # type: ignore[attr-defined]
        as_logged = not self.out.is_terminal and self.out.encoding == plain.encoding
        self._print(text if as_logged else table)
        self._log(text)

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[float | None], None]]:
        """Shows the progress of a long step: a bar on a terminal, else a line every half minute.

        Yields a function of the share that is done, None while it is unknown.
        """
        started = printed = monotonic()

        def update(share: float | None) -> None:
            nonlocal printed
            if self.out.is_terminal:
                bar.update(task, total=None if share is None else 1, completed=share or 0)
            elif share and share >= _MIN_SHARE and monotonic() - printed > _INTERVAL:
                printed = monotonic()
                left = duration((printed - started) * (1 - share) / share)
                self._print(f"{title}: {share:.0%}, ETA {left}")

        with Progress(console=self.out, transient=True, disable=not self.out.is_terminal) as bar:
            task = bar.add_task(title, total=None)
            yield update

    def start(self, plan: Plan) -> None:
        """Shows the progress of a plan; where a run goes on by another one, that of the other."""
        self.plan = plan
        if self.bar is not None:
            self.bar.update(self.task, total=plan.flops)
        elif self.out.is_terminal and not self.out.quiet:
            columns = (BarColumn(bar_width=_BAR), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=self.out, refresh_per_second=4)
            self.task = self.bar.add_task("starting", total=plan.flops)
            self.bar.start()

    def step(self, columns: dict[str, Any]) -> None:
        if self.bar is not None:
            self.stepped = columns
            self.bar.update(self.task, completed=columns["flops"], description=self._position(columns))

    def evaluating(self, done: int, total: int) -> None:
        """Shows on the live bar how many batches of an evaluation are done."""
        if self.bar is not None:
            self.bar.update(self.task, description=f"evaluating {done}/{total}")

    def row(self, row: dict[str, Any]) -> None:
        """Prints and logs a row; beside a live bar training rows are only logged."""
        self.train_loss = row.get("train/loss", self.train_loss)
        line, before = self._line(row), self.evaluated
        if "eval/loss" in row:
            self.evaluated = row
        is_repeated = "eval/loss" in row and all(row.get(key) == before.get(key) for key in _SAME)
        if self.bar and self.stepped:
            self.bar.update(self.task, description=self._position(self.stepped))
        if is_repeated:  # just before a growth, and after an evaluation
            return
        if self.bar is None or "train/loss" not in row:
            self._print(line, soft_wrap=False)
        self._log(line)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, row: dict[str, Any]) -> str:
        width = f" width {row['width']:g}" if "width" in row else ""
        head = f"step {row['step']:>5} layers {row['layers']:>2}{width} {row['flops']:.3e} FLOPs"
        if "growth/to" in row:
            width_after = row.get("growth/width_to", row.get("width"))
            after = row["layers"] == row["growth/to"] and row.get("width") == width_after
            when = f"grown {_grown(row)}" if after else "before growth"
            return f"{head}: {when}, {_evaluation(row, self._change(row) if after else '')}"
        if "eval/loss" in row:
            return f"{head}: {_evaluation(row)}"
        skipped = f" skipped {row['train/skipped_steps']}" if row["train/skipped_steps"] else ""
        norm = _value(row["train/grad_norm"], ".2f")
        return f"step {self._position(row)} lr {row['train/lr']:.2e} norm {norm}{skipped}"

    def _change(self, row: dict[str, Any]) -> str:
        """The change of the stored layers' loss by a growth."""
        before, after = self.evaluated.get("eval/loss"), row["eval/loss"]
        return "" if before is None or after is None else f" ({after - before:+.4f})"

    def _position(self, row: dict[str, Any]) -> str:
        """Where the run is; on a narrow terminal the parts that matter most."""
        validation = self.evaluated.get("eval/loss")
        parts = {  # the higher the number, the sooner a part is left out
            f"{row['step']:>5}/{self.plan.steps}": 0,
            f"stage {row['stage']}/{len(self.plan.stages)}": 3,
            f"layers {row['layers']:>2}": 5,
            f"depth {row['train/depth']:>2}": 4,
            "" if self.train_loss is None else f"loss {self.train_loss:.4f}": 1,
            "" if self.bar is None or validation is None else f"validation {validation:.4f}": 2,
            f"{row['flops']:.2e} FLOPs": 6,
            f"ETA {self._eta(row)}": 0,
        }
        room = self.out.width - _BAR - 2 if self.bar else _WIDTH
        for most in range(max(parts.values()), -1, -1):
            text = " ".join(part for part, order in parts.items() if part and order <= most)
            if len(text) <= room:
                break
        return text

    def _eta(self, row: dict[str, Any]) -> str:
        share = row["flops"] / self.plan.flops
        return duration(row["train_seconds"] * (1 - share) / share) if share else "?"

    def _print(self, what: str | Table, *, soft_wrap: bool = True) -> None:
        try:
            self.out.print(what, markup=False, soft_wrap=soft_wrap or not self.out.is_terminal)
        except OSError:  # a terminal whose connection broke
            self.out.on_broken_pipe()

    def _log(self, text: str) -> None:
        if self.log is None:
            self.unlogged.append(text)
            return
        try:
            self.log.write(text + "\n")
            self.log.flush()
        except OSError as error:  # a full disk; metrics.jsonl reports it where rows are lost
            self.log = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the end
            self._print(f"train.log ends here: {error.strerror}")


def plan_table(plan: Plan, *, estimated: bool) -> Table:
    """One row a stage: layers (x share of the width), last step, parameters, memory, mean depth, FLOPs."""
    about = "an estimate, for the budget is in seconds" if estimated else "memory is estimated, depth the mean"
    most = "at most " if plan.may_end_early else ""
    table = Table(title=f"Plan: {most}{plan.steps:,} steps ({about})", title_justify="left")
    for name in ("layers", "until step", "parameters", "memory", "depth", "FLOPs", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, part in enumerate(plan.stages):
        counts, end = part.depth_counts, part.stage.end_step
        earliest = plan.earliest.schedule.stages[index].end_step if plan.earliest else end
        table.add_row(
            str(part.stage.layers) + (f" x {part.stage.width:g}" if part.stage.width != 1 else ""),
            f"{end:,}" if earliest == end else f"{earliest:,} to {end:,}",
            f"{part.parameters:,}",
            f"{part.memory_bytes / 1e9:.2f} GB",
            f"{sum(depth * count for depth, count in counts.items()) / sum(counts.values()):.2f}",
            f"{part.flops:.3e}",
            f"{part.flops / plan.flops:.1%}",
        )
    return table


def plan_totals(plan: Plan) -> str:
    """The exact totals with the source's, and the saving against scratch at equal steps, if it is another plan."""
    saving, flops, scratch = 1 - plan.flops / plan.scratch_flops, _exact(plan.flops), _exact(plan.scratch_flops)
    sent = ", ".join(files.in_units(stage.sent_bytes) for stage in plan.stages)
    beside = f"\neach of {plan.step_cost.devices} devices sends {sent} a step, stage by stage"
    learned = f" ({plan.map_flops} of them to learn maps)" if plan.map_flops else ""
    learned += f" and {_exact(plan.optimizer_flops)} of the optimizer" if plan.optimizer_flops else ""
    if plan.source.flops:
        learned += f", after {_exact(plan.source.flops)} of the model that it begins with"
    steps = f"{plan.micro_steps:,} micro-steps, {plan.tokens:,} tokens"
    fewer = f"{abs(saving):.1%} {'fewer' if saving >= 0 else 'more'}"
    scratch_cost = f"; scratch at equal steps {scratch} FLOPs: {fewer}" if saving else ""
    most = "at most " if plan.may_end_early else ""
    return f"{most}{steps}, {flops} FLOPs{learned}{scratch_cost}{beside if plan.step_cost.devices > 1 else ''}"


def plan_bounds(earliest: Plan) -> str:
    """What a run costs whose stages all end as early as they can."""
    ends = " and ".join(f"{end:,}" for end in earliest.schedule.ended(earliest.steps))
    return (
        f"a stage ends before where the validation loss is on a plateau (schedule.when): at the earliest after "
        f"step {ends} of {earliest.steps:,}, with {_exact(earliest.flops)} FLOPs"
    )


def plan_segment(plan: Plan) -> str:
    """What the last extension of the run adds to it."""
    before, layers = replace(plan, schedule=plan.schedule.before_extension), plan.schedule.stages[-1].layers
    return (
        f"extended from {before.steps:,} to {plan.steps:,} steps: the last stage, of {layers} layers, has "
        f"{plan.steps - before.steps:,} steps and {_exact(plan.flops - before.flops)} FLOPs more; warmup and the "
        f"ends of the stages before stay those of {plan.schedule.first_planned:,} steps"
    )


def _exact(flops: int) -> str:
    """A number of FLOPs, exact as long as one can read it; plan.json has every digit."""
    return str(flops) if flops < 10**15 else f"{flops:.4e}"


def summary_table(summary: dict[str, Any]) -> Table:
    """The closing summary; the same fields as summary.json."""
    table = Table(title=f"Run {summary['status']}", title_justify="left", show_header=False)
    totals, losses, best = summary["totals"], summary["losses"], summary.get("best") or {}
    seconds, loss = totals["train_seconds"], losses.get("eval/loss")
    is_better = "eval/loss" in best and best["eval/loss"] != loss  # than the last one
    by_frequency = summary.get("frequency_loss")
    has_learned = by_frequency and loss is not None and loss < by_frequency
    hint = "" if has_learned else " (not yet below it: train longer)"
    rate = f" ({totals['tokens'] / seconds:,.0f} tokens/s)" if seconds else ""
    rows = {
        "steps": f"{totals['steps']:,} of {totals['planned_steps']:,}",
        **({"ended by": f"budget.{end}"} if (end := summary.get("ended_by")) not in (None, "budget") else {}),
        "layers": f"{totals['layers']}",
        "FLOPs": f"{totals['flops']:.4e} (scratch at equal steps {totals['scratch_flops']:.4e})",
        **({"optimizer's FLOPs": f"{own:.4e}"} if (own := totals.get("optimizer_flops")) else {}),
        "tokens": f"{totals['tokens']:,}",
        "training time": f"{duration(seconds)}{rate}",
        "total time": duration(totals["total_seconds"]),
        "device": summary["device"],
        "train loss": _value(losses.get("train/loss")),
        "validation loss": _value(loss),
        **({"best validation loss": f"{_value(best['eval/loss'])} after step {best['step']}"} if is_better else {}),
        **({"always by frequency": f"{_value(by_frequency)}{hint}"} if by_frequency else {}),
        "run directory": files.shown(Path(summary["run_dir"])),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def duration(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def _grown(row: dict[str, Any]) -> str:
    layers = f"{row['growth/from']} -> {row['growth/to']} layers"
    if "growth/width_to" not in row:
        return layers
    width = f"{row['growth/width_from']:g} -> {row['growth/width_to']:g} of the width"
    return width if row["growth/from"] == row["growth/to"] else f"{layers}, {width}"


def _evaluation(row: dict[str, Any], change: str = "") -> str:
    stored = row["eval/loss"]
    full = row.get("eval/loss_full_depth", stored)  # not where no layer is stored
    at_full = "" if stored == full else f", full depth {_value(full)}"
    averaged = f", averaged weights {_value(row['eval/loss_ema'])}" if "eval/loss_ema" in row else ""
    return f"validation loss {_value(stored)}{change}{at_full}{averaged}"


def _value(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where there is none or it was not finite."""
    return "-" if value is None else f"{value:{form}}"
