"""The reproduction on one GPU, kept apart from the CPU's: `python -m benchmarks.gpu KIND STEPS FILE...`.

Scratch takes STEPS, 30,000 as shipped; every other method keeps its share of them. The text is read byte by byte.
What is complete is kept in benchmarks/reproduction/gpu/; `python -m benchmarks.gpu` reports on it without training.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from time import perf_counter

from apollo_cli import files
from apollo_cli.config.hydra_syntax import compose_values
from apollo_cli.report.comparison import Question, compare
from apollo_cli.report.groups import families
from apollo_cli.report.runs import RunFiles, read_runs
from benchmarks import results, saved
from benchmarks.reproduce import KEPT, KINDS, Cell, Corpus

METHODS = ("scratch", "stackbert", "apollo", "apollo_late", "late_zero_init")
RATE = "1e-3"  # scratch's usual one at this width; no other was tried
SHORT = 0.56  # of scratch's steps, in a run of its own: as many FLOPs as late_zero_init's
AT_ONCE = 3  # they fill each other's gaps: start, compilation, evaluation; a step's seconds are measured alone
DEPTHS = (3, 6, 12)
FOLDER = KEPT / "gpu"
TITLE = "What is saved on a GPU"
TOLD = (
    "Made by `python -m benchmarks.gpu KIND STEPS FILE...` on Wikipedia and novels, byte by byte, 256 to a row;"
    " 12 layers of 512, bf16. A cell is `apollo-train experiment=repro_gpu_METHOD` with its steps below.",
    "One seed and one learning rate (1e-3): an indication beside the CPU's cells, no more than that.",
    "No run of fewer layers from scratch is beside them: whether depth pays at this length was not asked.",
)


@cache
def shipped(method: str) -> int:
    """The steps of a preset."""
    return int(compose_values([f"experiment=repro_gpu_{method}"])["budget"]["steps"])


def cells(kind: str, steps: int) -> list[Cell]:
    """Those of a model, longest first; `steps` are scratch's."""

    def cell(method: str, share: float = 1) -> Cell:
        of_method = round(share * steps * shipped(method) / shipped("scratch"))
        return Cell(kind, f"gpu_{method}", RATE, 0, steps=of_method)

    return [*(cell(method) for method in METHODS), cell("scratch", SHORT)]


def corpus(steps: int, texts: Sequence[str]) -> Corpus:
    """Where the cells are, and what is typed for all."""
    quoted = ",".join(f'"{path}"' for path in texts)
    words = ("data=text", f"data.files=[{quoted}]", "data.tokenizer=bytes", "data.seq_len=256")
    return Corpus(
        FOLDER.name, (*words, f"eval.every={max(1, steps // 60)}", f"checkpoint.every={max(1, steps // 4)}")
    )


def seconds(kind: str, of: Corpus) -> dict[int, float]:
    """Of a step with so many layers stored and run, by itself."""
    from benchmarks.loops import FixedDepth, make_loop

    found = {}
    for depth in DEPTHS:
        words = ["experiment=repro_gpu_scratch", f"model={kind}", *of.words, "device=cuda"]
        loop, timed = make_loop(words, depth, FixedDepth(depth)), 40
        for warming in (True, False):
            loop.device.synchronize()
            began = perf_counter()
            for _ in range(timed):
                loop.step()
            loop.sync_pending_steps()
            loop.device.synchronize()
            if not warming:
                found[depth] = (perf_counter() - began) / timed
    return found


def lines() -> Iterator[str]:
    """The lines of the part on what is kept; draws its pictures."""
    yield from TOLD
    of = Corpus(FOLDER.name, ())
    for kind in KINDS:
        if there := sorted(path.parent for path in FOLDER.glob(f"{kind}_*/summary.json")):
            yield from ["", f"## {kind.upper()} on a GPU", "", *_ends([RunFiles(path) for path in there])]
            yield from _headline(of, [str(path) for path in there])
            yield from _steps(kind)


def _ends(runs: Sequence[RunFiles]) -> Iterator[str]:
    rows = []
    for run in sorted(runs, key=lambda run: -run.summary["totals"]["flops"]):
        totals, growths = run.summary["totals"], run.summary["growths"]
        costs = [f"{growth['eval/loss_after'] - growth['eval/loss_before']:.3f}" for growth in growths]
        rows.append(
            [
                str(run.config["name"]).removeprefix("repro_gpu_"),
                f"{totals['steps']:,}",
                f"{totals['tokens']:.2e}",
                f"{totals['flops']:.3e}",
                f"{run.summary['losses']['eval/loss']:.4f}",
                ", ".join(costs) or "-",
            ]
        )
    head = ("method", "steps", "tokens", "FLOPs", "final loss (nats)", "what growths cost (nats)")
    yield from results.table(head, rows)


def _headline(of: Corpus, folders: Sequence[str]) -> Iterator[str]:
    """All beside the longest run from scratch."""
    runs, _ = read_runs(list(folders))
    shorter = min((run for run in runs if run.is_scratch), key=lambda run: run.rows[-1]["step"])
    (comparison,) = compare(families([run for run in runs if run is not shorter])[0], Question("repro_gpu_scratch"))
    yield from ["", *saved.table(comparison), *saved.draw(of, comparison)]


def _steps(kind: str) -> Iterator[str]:
    path = FOLDER / f"{kind}_seconds.json"
    if path.exists():
        found = {int(depth): each for depth, each in json.loads(path.read_text()).items()}
        yield from ["", "A step with as many layers stored as run, by itself: real steps, 40 after 40.", ""]
        rows = [(str(n), f"{1e3 * each:.1f}", f"{each / found[max(found)]:.2f}") for n, each in found.items()]
        yield from results.table(("layers", "ms", "of twelve layers'"), rows)


def main(kind: str = "", steps: str = "0", *texts: str) -> None:
    """Trains what is missing and reports on what is there."""
    if kind:
        of = corpus(int(steps), texts)
        missing = [cell for cell in cells(kind, int(steps)) if not of.kept(cell).exists()]
        again = " ".join(["python -m benchmarks.gpu", kind, steps, *texts])
        of.each(missing, of.train, AT_ONCE, again)
        times = {str(depth): each for depth, each in seconds(kind, of).items()}
        files.write_json(FOLDER / f"{kind}_seconds.json", times)
    results.put(TITLE, lines())


if __name__ == "__main__":
    main(*sys.argv[1:])
