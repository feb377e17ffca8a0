"""A comparison on the terminal: two lines a method, within 100 columns."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from apollo_cli.report.cells import METHOD_OF_INTERVALS, UNITS, WAY_OF_CROSSING, cells, headline, target
from apollo_cli.report.comparison import AXES, Comparison
from apollo_cli.report.notes import notes
from apollo_cli.tracking.console import Screen


def show(comparisons: Sequence[Comparison], warnings: Sequence[str]) -> None:
    """Prints all families, each with its notes."""
    screen = Screen()
    for warning in warnings:
        screen.print(Text(f"WARNING: {warning}", style="bold red"))
    for comparison in comparisons:
        screen.print(
            Text(f"\n{comparison.family.title}: ", style="bold"), Text(comparison.family.description), sep=""
        )
        if words := target(comparison):
            screen.print(Text(words))
        screen.print(_table(comparison))
        for note in notes(comparison):
            screen.print(Text(f"note: {note}"))
    for sentence in filter(None, map(headline, comparisons)):
        screen.print(Text(sentence, style="bold"))
    screen.print(Text(f"{METHOD_OF_INTERVALS} {WAY_OF_CROSSING}", style="dim"))


def _table(comparison: Comparison) -> Table:
    budget = comparison.question.at_flops
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    loss = "final loss\n(nats)" if budget is None else f"loss (nats), final\nand at {budget:.3g} FLOPs"
    table.add_column("method\n", overflow="fold")
    for name in (loss, "to the\ntarget", "\nof", "saved\n", "speedup\n"):
        table.add_column(name, justify="left" if name == "\nof" else "right", no_wrap=True)
    for method in comparison.methods:
        of = cells(comparison, method)
        table.add_row(
            Text(f"{of.method}\n{of.runs}"),
            of.final if budget is None else f"{of.final}\n{of.at_flops}",
            *("\n".join(part) for part in ([of.costs[axis] for axis in AXES], [UNITS[axis] for axis in AXES])),
            *("\n".join(part[axis] for axis in AXES) for part in (of.savings, of.speedups)),
        )
    return table
