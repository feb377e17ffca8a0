"""The fine-tuning runs of a command: tasks x learning rates x seeds, without those that are done.

A folder of results holds `glue.yaml` (the values of the command), `TASK/lr2e-05_seed0/` (runs), `results.json` and
`submission/`. The same command continues there.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apollo_cli import files
from apollo_cli.config.schema import as_typed, flat
from apollo_cli.errors import ConfigError
from apollo_cli.glue import results
from apollo_cli.glue.examples import Examples, note_on_rows, read_examples
from apollo_cli.glue.finetuning import TESTS, Cell, TaskData
from apollo_cli.glue.pretrained import Pretrained
from apollo_cli.glue.section import FORMAT, VALUES, GlueConfig, parse_glue, saved_values
from apollo_cli.glue.sentences import SentenceDataset
from apollo_cli.glue.tasks import TASKS, GlueTask, Split
from apollo_cli.run_directory import RunDirectory, read_keys
from apollo_cli.signals import interruptible
from apollo_cli.tracking.console import Console
from apollo_cli.training.device import Device, choose

SUBMISSION = "submission"


@dataclass(frozen=True)
class FineTuningGrid:
    """The fine-tuning runs of a command."""

    config: GlueConfig
    out: Path  # the folder of the results

    def run(self) -> dict[str, Any]:
        """Fine-tunes what is not done yet; returns the results of all runs.

        Raises:
            ApolloError: an error to fix, raised before the first run where that is possible.
            Interrupted: by a signal; the same command continues.
        """
        console, run, model = Console(), self.config.run, self.config.model
        with interruptible():
            pretrained = Pretrained.of_run(Path(run)) if run else Pretrained.of_folder(Path(model or ""))
            max_length = min(self.config.glue.max_length, pretrained.model_config.positions)
            missing = {task: cells for task in self.config.tasks if (cells := list(self._missing(task)))}
            _ = pretrained.tokenizer  # refused now, if it is of another model
            for task in self.config.tasks:
                self._check(task, console)
            device = choose(self.config.run_args)
            self._claim(pretrained, device)
            runs = sum(map(len, missing.values()))
            summary = f"{files.counted(runs, 'fine-tuning run')}, rows of up to {max_length} tokens"
            console.say(summary if runs else "all of these fine-tuning runs are done already")
            for task, cells in missing.items():
                data = self._data(task, pretrained, max_length)
                for done, (lr, seed) in enumerate(cells, 1):
                    directory = RunDirectory(self._folder(task, lr, seed))
                    with files.writing(directory.path, 0):
                        directory.path.mkdir(parents=True, exist_ok=True)
                    Cell(self.config, lr, seed, data, pretrained, device, directory).start()
                    score = results.mean_text(self._write()["tasks"][task.name])
                    console.say(f"{task.title}: {done} of {len(cells)} runs done, {score}")
        found = self._write()
        console.show(results.scores_table(found))
        console.say(f"results: {files.shown(self.out / results.NAME)}")
        return found

    def _missing(self, task: GlueTask) -> Iterator[tuple[float, int]]:
        for lr in dict.fromkeys(self.config.optim.lr):
            for seed in dict.fromkeys(self.config.seed):
                if RunDirectory(self._folder(task, lr, seed)).summary().get("status") != "completed":
                    yield lr, seed

    def _folder(self, task: GlueTask, lr: float, seed: int) -> Path:
        return self.out / task.name / f"lr{lr:g}_seed{seed}"

    def _examples(self, task: GlueTask) -> dict[Split, Examples]:
        """The rows of all splits; files of test rows may be missing."""
        folder, (train, dev, test) = self.config.data_dir, task.splits
        tests = [split for split in test if folder is None or (folder / task.title / split.file).exists()]
        return {split: read_examples(task, split, folder) for split in (train, *dev, *tests)}

    def _check(self, task: GlueTask, console: Console) -> None:
        """Reads all rows that will be needed, so that what is missing, or not those of results, is an error now."""
        found = self._examples(task)
        for split, examples in found.items():
            if note := note_on_rows(task, split, examples):
                console.say(note)
        fingerprint = _fingerprint(task, found)
        if any(run["data"]["fingerprint"] != fingerprint for run in results.complete(self.out, task.name)):
            problem = f"{files.shown(self.out / task.name)} has results of other {task.title} rows"
            raise ConfigError(f"{problem}: type out=DIR, or restore the files")
        if not any(split in found for split in task.splits.test):
            console.say(f"note: {task.title} has no {task.splits.test[0].file}, so no submission is written")

    def _data(self, task: GlueTask, pretrained: Pretrained, max_length: int) -> TaskData:
        found, kind = self._examples(task), pretrained.model_config.kind
        encoded = {
            split: SentenceDataset.encode(rows.texts, rows.labels, kind, pretrained.tokenizer, max_length)
            for split, rows in found.items()
        }
        return TaskData(
            task=task,
            train=encoded[task.splits.train],
            dev=[(split, encoded[split]) for split in task.splits.dev],
            test=[(split, encoded[split], found[split].indices) for split in task.splits.test if split in found],
            fingerprint=_fingerprint(task, found),
        )

    def _claim(self, pretrained: Pretrained, device: Device) -> None:
        """Writes glue.yaml, which ties the folder to recipe, model and precision; refuses results of others."""
        path, weights = self.out / VALUES, pretrained.facts["weights"]
        if path.exists():
            recipe, place = flat(parse_glue(saved_values(self.out)).recipe), files.shown(self.out)
            written = read_keys(path)
            if written.get("weights") != weights:
                raise ConfigError(f"{place} has results of another model, by its weights: type out=DIR")
            different = [key for key, value in flat(self.config.recipe).items() if recipe.get(key) != value]
            if different:
                earlier = " ".join(f"{key}={as_typed(recipe.get(key))}" for key in different)
                raise ConfigError(f"{place} has results of another recipe: type {earlier}, or out=DIR")
            if (before := written.get("precision")) not in ("auto", device.precision):
                problem = f"precision={device.precision}: {place} has results in {before}"
                raise ConfigError(f"{problem}; type precision={before}, or out=DIR")
        with files.writing(path, 10_000):
            self.out.mkdir(parents=True, exist_ok=True)
            precision = {"precision": device.precision}  # what `auto` took
            values = {"format": FORMAT, "weights": weights, **self.config.plain, **precision}
            files.write_text(path, yaml.safe_dump(values, sort_keys=False))

    def _write(self) -> dict[str, Any]:
        """Writes and returns results.json; copies the test predictions of each task's best run to submission/."""
        found = results.collect(self.out) | {"recipe": self.config.recipe}
        with files.writing(self.out / results.NAME, 100_000):
            files.write_json(self.out / results.NAME, found)
            for name, task in found["tasks"].items():
                best = self._folder(TASKS[name], task["best_run"]["lr"], task["best_run"]["seed"])
                for path in sorted((best / TESTS).glob("*.tsv")):
                    (self.out / SUBMISSION).mkdir(exist_ok=True)
                    shutil.copyfile(path, self.out / SUBMISSION / path.name)
        return found


def _fingerprint(task: GlueTask, examples: Mapping[Split, Examples]) -> str:
    return "-".join(examples[split].fingerprint for split in (task.splits.train, *task.splits.dev))
