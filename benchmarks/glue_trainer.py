"""Are the scores of apollo-glue those of transformers' own Trainer? Model, rows, recipe and seeds are the same.

`python -m benchmarks.glue_trainer MODEL GLUE_DIR [SEEDS]` fine-tunes what is not in benchmarks/glue/trainer.json
yet, and writes the table into benchmarks/RESULTS.md; without words it makes the table anew.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from apollo_cli import files
from apollo_cli.glue import metrics
from apollo_cli.glue.examples import read_examples
from apollo_cli.glue.grid import FineTuningGrid
from apollo_cli.glue.section import compose_words, parse_glue
from apollo_cli.glue.tasks import TASKS, GlueTask, Split
from apollo_cli.intervals import interval
from benchmarks import results
from benchmarks.glue_table import frequent

KEPT, RUNNING = Path(__file__).with_name("glue") / "trainer.json", Path("outputs/glue_trainer")
COMPARED = ("rte", "mrpc", "stsb", "cola")
SIDES = ("apollo-glue", "Trainer")
LR, SEEDS = 5e-4, 3  # of a model of width 64


@dataclass(frozen=True)
class Contest:
    """What both sides are given."""

    model: Path
    data_dir: Path

    def ours(self, task: GlueTask, seed: int) -> float:
        """The score of apollo-glue."""
        words = [f"model={self.model}", f"glue.data_dir={self.data_dir}", f"task={task.name}", f"seed={seed}"]
        config = parse_glue(
            compose_words([*words, f"optim.lr={LR}", "tracking=local", "device=cpu", "log.every=500"])
        )
        found = FineTuningGrid(config, RUNNING / self.model.parent.name).run()["tasks"][task.name]["runs"]
        return next(run["score"] for run in found if run["seed"] == seed)

    def theirs(self, task: GlueTask, seed: int) -> float:
        """The score of transformers' Trainer with AutoModelForSequenceClassification."""
        from transformers import (
            AutoModelForSequenceClassification,
            AutoTokenizer,
            DataCollatorWithPadding,
            Trainer,
            TrainingArguments,
            set_seed,
        )

        set_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        model = AutoModelForSequenceClassification.from_pretrained(
            self.model, num_labels=task.outputs, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
        )
        arguments = TrainingArguments(
            output_dir=str(RUNNING / "trainer"),
            learning_rate=LR,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            num_train_epochs=3,
            warmup_steps=0.1,  # below 1: a share of all steps
            lr_scheduler_type="linear",
            weight_decay=0.01,
            max_grad_norm=1.0,
            optim="adamw_torch",
            seed=seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=self._rows(task, task.splits.train, tokenizer),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        (dev,) = task.splits.dev
        given = trainer.predict(self._rows(task, dev, tokenizer))
        numbers, labels = np.asarray(given.predictions), np.asarray(given.label_ids)
        answers = numbers.argmax(-1) if task.labels else numbers.squeeze(-1)
        return metrics.score(metrics.task_metrics(task, labels, answers))

    def _rows(self, task: GlueTask, split: Split, tokenizer: Any) -> Any:
        found = read_examples(task, split, self.data_dir)
        columns = [list(column) for column in zip(*found.texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=128, return_token_type_ids=True)
        return Dataset.from_dict({**encoded, "labels": found.labels.tolist()})


def known() -> dict[str, dict[str, dict[str, float]]]:
    """{side: {task: {seed: score}}}."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def main(words: Sequence[str]) -> None:
    """Fine-tunes what is missing, and writes the table."""
    if words:
        contest, seeds = Contest(Path(words[0]), Path(words[1])), int(words[2]) if len(words) > 2 else SEEDS
        for name in COMPARED:
            for seed in range(seeds):
                for side, score_of in zip(SIDES, (contest.ours, contest.theirs), strict=True):
                    scores = known()
                    of_task = scores.setdefault(side, {}).setdefault(name, {})
                    if str(seed) not in of_task:
                        of_task[str(seed)] = score_of(TASKS[name], seed)
                        print(f"{side} {name} seed {seed}: {100 * of_task[str(seed)]:.2f}", flush=True)
                        KEPT.parent.mkdir(exist_ok=True)
                        files.write_json(KEPT, scores)
    results.put("GLUE: the scores of transformers' Trainer", lines())


def lines() -> Iterator[str]:
    """The part of RESULTS.md."""
    scores = known()
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
    yield "Made by `python -m benchmarks.glue_trainer`, which trains what is not in `benchmarks/glue/trainer.json`."
    yield ""
    rows = []
    for name in COMPARED:
        sides = [list(scores.get(side, {}).get(name, {}).values()) for side in SIDES]
        if all(sides):
            rows.append([TASKS[name].title, *map(_mean, sides), *map(_each, sides)])
    if missing := [
        TASKS[name].title for name in COMPARED if not all(scores.get(side, {}).get(name) for side in SIDES)
    ]:
        yield from [f"Not run yet: {', '.join(missing)}.", ""]
    yield from results.table(("task", *SIDES, *(f"{side}, seed by seed" for side in SIDES)), rows)


def _mean(scores: list[float]) -> str:
    of = interval(scores)
    return f"{100 * of.mean:.1f}" + ("" if of.half is None else f" ± {100 * of.half:.1f}") + f" (n = {of.n})"


def _each(scores: list[float]) -> str:
    return ", ".join(f"{100 * score:.1f}" for score in scores)


if __name__ == "__main__":
    main(sys.argv[1:])
