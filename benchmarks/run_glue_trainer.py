"""Fine-tunes one model with apollo-glue and with transformers' Trainer: same rows, recipe and seeds.

`python -m benchmarks.run_glue_trainer MODEL GLUE_DIR [SEEDS]` fine-tunes what is not in
benchmarks/results/glue_trainer.json, and writes the table.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from apollo_cli import files
from apollo_cli.glue import examples, metrics
from apollo_cli.glue.grid import FineTuningGrid
from apollo_cli.glue.section import compose_words, parse_glue
from apollo_cli.glue.tasks import TASKS, GlueTask, Split
from benchmarks import render_glue_trainer
from benchmarks.render_glue_trainer import COMPARED, KEPT, LR, SIDES, scores

RUNNING = Path("outputs/glue_trainer")
SEEDS = 3


@dataclass(frozen=True)
class Contest:
    """Model and files of both sides."""

    model: Path
    data_dir: Path

    def ours(self, task: GlueTask, seed: int) -> float:
        """Score of apollo-glue."""
        words = [f"model={self.model}", f"glue.data_dir={self.data_dir}", f"task={task.name}", f"seed={seed}"]
        config = parse_glue(
            compose_words([*words, f"optim.lr={LR}", "tracking=local", "device=cpu", "log.every=500"])
        )
        found = FineTuningGrid(config, RUNNING / self.model.parent.name).run()["tasks"][task.name]["runs"]
        return next(run["score"] for run in found if run["seed"] == seed)

    def theirs(self, task: GlueTask, seed: int) -> float:
        """Score of transformers' Trainer with AutoModelForSequenceClassification."""
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
        found = examples.read_examples(task, split, self.data_dir)
        columns = [list(column) for column in zip(*found.texts, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=128, return_token_type_ids=True)
        return Dataset.from_dict({**encoded, "labels": found.labels.tolist()})


def main(model: str, data_dir: str, seeds: str = str(SEEDS)) -> None:
    """Fine-tunes what is missing, and writes the table."""
    contest = Contest(Path(model), Path(data_dir))
    for name in COMPARED:
        for seed in map(str, range(int(seeds))):
            for side, score_of in zip(SIDES, (contest.ours, contest.theirs), strict=True):
                found = scores()
                of_task = found.setdefault(side, {}).setdefault(name, {})
                if seed not in of_task:
                    of_task[seed] = score_of(TASKS[name], int(seed))
                    print(f"{side} {name} seed {seed}: {100 * of_task[seed]:.2f}", flush=True)
                    files.write_json(KEPT, found)
    render_glue_trainer.write()


if __name__ == "__main__":
    main(*sys.argv[1:])
