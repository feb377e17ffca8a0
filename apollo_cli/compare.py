"""`apollo-compare`: parse, call, exit code. Heavy imports wait until they are needed."""

import argparse
import json
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from apollo_cli.cli.program import Program
from apollo_cli.errors import EXIT_OK

_ABOUT = "How many FLOPs and seconds each method saves at equal validation loss, with intervals over seeds."
_MORE = """\
Runs that differ in their seed alone are one method. Runs on other data, tokenizers or evaluation rows are never
compared. The target is the baseline's final validation loss; the baseline is the method that trains all layers
from the first step. The report has the table, the pictures, and everything as JSON and CSV.

examples
  apollo-compare outputs/apollo outputs/scratch
  apollo-compare 'outputs/sweep/*' --baseline scratch --out report
  apollo-compare --wandb me/apollo --target-loss 3.2 --json
  apollo-compare --wandb me/apollo --workspace apollo --publish
  apollo-compare --wandb me/apollo --wandb-filter group=apollo/2026-11-29_10-00-00 state=finished

Exit codes: 0 done; 2 a user error, explained in one message; 1 a bug.
"""


def _action(words: list[str]) -> int | None:
    try:
        _compare(_asked(words))
    except SystemExit as stop:  # argparse has printed the reason
        return int(stop.code or EXIT_OK)
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stdout = None
    return EXIT_OK


def _asked(words: list[str]) -> argparse.Namespace:
    """The options that were typed; exits if they do not fit together, after argparse has printed the reason."""
    line = parser()
    asked = line.parse_args(words)
    for option in ("wandb-filter", "workspace", "publish"):
        if getattr(asked, option.replace("-", "_")) and not asked.wandb:
            line.error(f"--{option}: no project of W&B is named; type --wandb ENTITY/PROJECT too")
    if not asked.runs and not asked.wandb:
        line.error("no runs are given; type apollo-compare RUN_OR_SWEEP_DIRECTORY..., for example outputs")
    return asked


def parser() -> argparse.ArgumentParser:
    line = argparse.ArgumentParser(
        "apollo-compare", description=_ABOUT, epilog=_MORE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument("runs", nargs="*", metavar="RUNS", help="run directories, folders of them, or globs")
    line.add_argument(
        "--baseline", metavar="LABEL", help="the method to measure by: its label, words of it, or its folder"
    )
    line.add_argument("--target-loss", type=_positive, metavar="NATS", help="instead of the baseline's final loss")
    line.add_argument(
        "--at-flops", type=_positive, metavar="FLOPS", help="also the loss of each after so many FLOPs"
    )
    line.add_argument("--out", type=Path, metavar="DIR", help="of the report; outputs/compare/<date and time>")
    line.add_argument("--wandb", metavar="ENTITY/PROJECT", help="take the runs of a project of Weights & Biases")
    line.add_argument(
        "--wandb-filter",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="only those of a group, tag, state or method: group=sweep/1 tag=bert state=finished",
    )
    line.add_argument("--workspace", metavar="NAME", help="save a view with this name in that project of W&B")
    line.add_argument(
        "--publish", action="store_true", help="write report, savings and a W&B Report into that project of W&B"
    )
    form = line.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead; a report only with --out")
    form.add_argument("--csv", action="store_true", help="print CSV instead; a report only with --out")
    return line


def _compare(asked: argparse.Namespace) -> None:
    from apollo_cli.report.comparison import Question, compare_runs
    from apollo_cli.report.export import comparisons_csv, comparisons_json
    from apollo_cli.report.runs import read_runs
    from apollo_cli.report.terminal import print_comparisons
    from apollo_cli.report.wandb_runs import fetch_runs
    from apollo_cli.report.workspace import require_workspaces

    for option in ("workspace", "publish"):
        if getattr(asked, option):
            require_workspaces(f"--{option}")
    places: set[str] = set()
    runs, left_out = read_runs(asked.runs)
    if asked.wandb:
        fetched, notes = fetch_runs(asked.wandb, asked.wandb_filter)
        runs, left_out, places = runs + fetched, left_out + notes, {run.place for run in fetched}
    question = Question(asked.baseline, asked.target_loss, asked.at_flops)
    comparisons, warnings = compare_runs(runs, left_out, question)
    if asked.json:
        print(json.dumps(comparisons_json(comparisons, warnings), indent=2, allow_nan=False))
    elif asked.csv:
        print(comparisons_csv(comparisons), end="")
        print(*(f"WARNING: {warning}" for warning in warnings), sep="\n", file=sys.stderr)
    else:
        print_comparisons(comparisons, warnings)
    out = sys.stderr if asked.json or asked.csv else sys.stdout
    if asked.out or asked.publish or not (asked.json or asked.csv):
        from apollo_cli.report.document import write_report

        folder = asked.out or Path("outputs/compare") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        path = write_report(folder, comparisons, warnings, sys.argv)
        print(f"report: {path}", file=out)
    if asked.workspace or asked.publish:
        from apollo_cli.report.publishing import publish, save_views

        for address in save_views(asked.wandb, asked.workspace, comparisons) if asked.workspace else ():
            print(f"W&B view: {address}", file=out)
        if asked.publish:
            print(f"W&B report: {publish(asked.wandb, comparisons, warnings, places, path.parent)}", file=out)


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text}: should be a number above 0")


_PROGRAM = Program("apollo-compare", lambda: parser().format_help(), _action)
main, run = _PROGRAM.main, _PROGRAM.run

if __name__ == "__main__":
    main()
