"""Table of the scores of apollo-glue beside those of transformers' Trainer; nothing is trained.

`python -m benchmarks.render_glue_trainer` makes it from benchmarks/results/glue_trainer.json.
"""

import json
from collections.abc import Iterator

from apollo_cli.glue.tasks import TASKS
from apollo_cli.intervals import interval
from benchmarks import archives, results_page
from benchmarks.render_glue import frequent

KEPT = archives.RESULTS / "glue_trainer.json"
COMPARED = ("rte", "mrpc", "stsb", "cola")
SIDES = ("apollo-glue", "Trainer")
LR = 5e-4  # of a model of width 64


def write() -> None:
    results_page.put("GLUE: the scores of transformers' Trainer", lines())


def scores() -> dict[str, dict[str, dict[str, float]]]:
    """{side: {task: {seed: score}}}."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def lines() -> Iterator[str]:
    """Lines of the page."""
    found = scores()
    yield "Development scores (x 100) of one small exported model (BERT, 3 layers of width 64), fine-tuned by"
    yield "`apollo-glue` and by transformers' `Trainer` with `AutoModelForSequenceClassification`: 3 epochs, batch"
    yield f"32, lr {LR:g}, warmup 10 %, linear decay, weight decay 0.01, dropout 0.1. Each seed draws another head"
    yield "and order, so single runs differ; what should agree are the means. ± is the 95 % Student-t interval."
    rte, mrpc = (f"{100 * frequent(name):.1f}" for name in ("rte", "mrpc"))
    yield f"Always saying the more frequent label gives {rte} on RTE, {mrpc} on MRPC and 0 on the others: so small"
    yield "a model is near that on the first two, and its scores there are mostly noise."
    yield "The model: `apollo-train experiment=repro_scratch model=bert model.layers=3 'schedule.layers=[3]'"
    yield "'schedule.ends=[1]' optim.lr=2e-3 data.tokenizer=wordpiece data.vocab_size=4096 data.seq_len=128"
    yield "batch.size=16 budget.steps=3000`."
    yield "Made by `python -m benchmarks.run_glue_trainer` from `benchmarks/results/glue_trainer.json`."
    yield ""
    rows = []
    for name in COMPARED:
        sides = [list(found.get(side, {}).get(name, {}).values()) for side in SIDES]
        if all(sides):
            rows.append([TASKS[name].title, *map(_mean, sides), *map(_each, sides)])
    if missing := [
        TASKS[name].title for name in COMPARED if not all(found.get(side, {}).get(name) for side in SIDES)
    ]:
        yield from [f"Not run yet: {', '.join(missing)}.", ""]
    yield from results_page.table(("task", *SIDES, *(f"{side}, seed by seed" for side in SIDES)), rows)


def _mean(scores: list[float]) -> str:
    over = interval(scores)
    return (
        f"{100 * over.mean:.1f}" + ("" if over.half is None else f" ± {100 * over.half:.1f}") + f" (n = {over.n})"
    )


def _each(scores: list[float]) -> str:
    return ", ".join(f"{100 * score:.1f}" for score in scores)


if __name__ == "__main__":
    write()
