"""A comparison in the terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from apollo_cli.report.comparison import AXES, Comparison
from apollo_cli.report.notes import comparison_notes, headline
from apollo_cli.report.tables import ReportTable, compare_glue, glue_table, method_cells, target_sentence
from apollo_cli.tracking.console import Screen

_WIDE = 92  # columns that leave room for the speedup, which follows from the saving
_MOST_NOTES = 3  # of a comparison; all of them stand in the report


def print_comparisons(comparisons: Sequence[Comparison], warnings: Sequence[str]) -> None:
    """Prints the headlines, then each family with its weightiest notes."""
    screen = Screen()
    for warning in warnings:
        screen.print(Text(f"WARNING: {warning}", style="bold red"))
    for sentence in filter(None, map(headline, comparisons)):
        _say(screen, (sentence, "bold"))
    for comparison in comparisons:
        _say(screen, (f"\n{comparison.family.title}: ", "bold"), comparison.family.description)
        if sentence := target_sentence(comparison):
            _say(screen, sentence)
        screen.print(_results(comparison, with_speedup=screen.width >= _WIDE))
        glue = compare_glue(comparison)
        if glue:
            screen.print(_rich_table(glue_table(comparison, glue)))
        notes = [*comparison_notes(comparison), *(glue.notes if glue else ())]
        for note in notes[:_MOST_NOTES]:
            _say(screen, f"note: {note}")
        if left := len(notes[_MOST_NOTES:]):
            screen.print(Text(f"{left} more {'note' if left == 1 else 'notes'} in the report", style="dim"))
    screen.print(Text("±: half of a 95 % interval over seeds; the report says how costs are read", style="dim"))


def _say(screen: Screen, *parts: str | tuple[str, str]) -> None:
    """Prints a sentence, parts of it with a style; a terminal breaks it between words."""
    screen.print(Text.assemble(*parts), soft_wrap=not screen.is_terminal)


def _results(comparison: Comparison, *, with_speedup: bool) -> Table:
    """Two lines a method: FLOPs and seconds."""
    budget = comparison.question.at_flops
    loss = "final loss\n(nats)" if budget is None else f"loss (nats), final\nand at {budget:.3g} FLOPs"
    head = ["method\n", loss, "to the\ntarget", "\nof", "saved\n", "speedup\n"]
    rows = []
    for method in comparison.methods:
        cells = method_cells(comparison, method)
        by_axis = (cells.costs, {"flops": "FLOPs", "seconds": "s"}, cells.savings, cells.speedups)
        final = cells.final if budget is None else f"{cells.final}\n{cells.at_flops}"
        label = f"{method.label}\n{cells.runs}"
        rows.append([label, final, *("\n".join(part[axis] for axis in AXES) for part in by_axis)])
    columns = len(head) - (not with_speedup)
    return _rich_table(ReportTable(head[:columns], [row[:columns] for row in rows]), no_wrap=True)


def _rich_table(table: ReportTable, *, no_wrap: bool = False) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    shown.add_column(table.head[0], overflow="fold")
    for name in table.head[1:]:
        shown.add_column(name, justify="left" if name == "\nof" else "right", no_wrap=no_wrap)
    for label, *numbers in table.rows:
        shown.add_row(Text(label), *map(Text, numbers))
    return shown
