"""All fine-tuning runs that are asked for: tasks x learning rates x seeds; what is done is left out.

A folder of results holds `glue.yaml` (what was asked), `TASK/lr2e-05_seed0/` (runs), `results.json` and
`submission/`. Typed again, the command goes on there.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apollo_cli import files
from apollo_cli.errors import CheckpointError, ConfigError
from apollo_cli.glue import examples, results
from apollo_cli.glue.finetuning import TESTS, Cell, TaskData
from apollo_cli.glue.pretrained import Pretrained
from apollo_cli.glue.section import GlueConfig, parse
from apollo_cli.glue.sentences import Framing, Sentences
from apollo_cli.glue.tasks import TASKS, GlueTask, Split
from apollo_cli.run_directory import RunDirectory, read_yaml
from apollo_cli.signals import interruptible
from apollo_cli.tracking.console import Console
from apollo_cli.training.device import Device, choose

ASKED, FORMAT = "glue.yaml", 1
SUBMISSION = "submission"


@dataclass(frozen=True)
class FineTuningGrid:
    """The runs that a command asks for.

    Attributes:
        config: what is asked.
        out: the folder of the results.
    """

    config: GlueConfig
    out: Path

    def run(self) -> dict[str, Any]:
        """Fine-tunes what is not done yet, and returns the results of all.

        Raises:
            ApolloError: something that the user can mend; before the first run if it can be known there.
            Interrupted: a signal stopped it; the same command goes on.
        """
        console = Console()
        with interruptible():
            pretrained = self._pretrained()
            tokenizer, shape = pretrained.tokenizer, pretrained.model_config
            framing = Framing.of(shape.kind, tokenizer, min(self.config.glue.max_length, shape.positions))
            missing = {task: cells for task in self.config.tasks if (cells := list(self._missing(task)))}
            for task in self.config.tasks:
                self._check(task, console)
            device = choose(self.config.cell(self.config.tasks[0], self.config.optim.lr[0], 0, 1).run)
            self._claim(pretrained)
            runs = sum(map(len, missing.values()))
            of_length = f"{runs} fine-tuning runs, rows of up to {framing.max_length} tokens"
            console.say(of_length if runs else "all of these fine-tuning runs are done already")
            for task, cells in missing.items():
                self._fine_tune(pretrained, self._data(task, framing, tokenizer), cells, device, console)
        found = self._write()
        console.show(results.table(found))
        console.say(f"results: {files.shown(self.out / results.NAME)}")
        return found

    def _fine_tune(
        self,
        pretrained: Pretrained,
        data: TaskData,
        cells: Sequence[tuple[float, int]],
        device: Device,
        console: Console,
    ) -> None:
        """The runs of a task, each of a learning rate and a seed."""
        for done, (lr, seed) in enumerate(cells, 1):
            config = self.config.cell(data.task, lr, seed, len(data.train.rows))
            directory = RunDirectory(self._folder(data.task, lr, seed))
            with files.writing(directory.path, 0):
                directory.path.mkdir(parents=True, exist_ok=True)
            Cell(config, data, pretrained, pretrained.group, device, directory).start()
            score = results.mean(self._write()["tasks"][data.task.name])
            console.say(f"{data.task.title}: {done} of {len(cells)} runs done, {score}")

    def _pretrained(self) -> Pretrained:
        asked = self.config.asked
        return Pretrained.of_run(Path(asked.run)) if asked.run else Pretrained.of_folder(Path(asked.model or ""))

    def _missing(self, task: GlueTask) -> Iterator[tuple[float, int]]:
        for lr in dict.fromkeys(self.config.optim.lr):
            for seed in dict.fromkeys(self.config.asked.seed):
                if RunDirectory(self._folder(task, lr, seed)).summary().get("status") != "completed":
                    yield lr, seed

    def _folder(self, task: GlueTask, lr: float, seed: int) -> Path:
        return self.out / task.name / f"lr{lr:g}_seed{seed}"

    def _check(self, task: GlueTask, console: Console) -> None:
        """Reads all that will be needed: a missing file is said now, not in hours.

        Raises:
            ConfigError: there are results of other rows.
        """
        learned = (task.splits.train, *task.splits.dev)
        found = {
            split: examples.read(task, split, self.config.data_dir) for split in (*learned, *self._tests(task))
        }
        for split, of_split in found.items():
            if note := examples.note_on_rows(task, split, of_split):
                console.say(note)
        fingerprint = _fingerprint([found[split] for split in learned])
        if any(data["fingerprint"] != fingerprint for data in results.data_of(self.out, task)):
            place = files.shown(self.out / task.name)
            raise ConfigError(
                [f"{place} has results of other {task.title} rows: type out=DIR, or restore the files"]
            )
        if not self._tests(task):
            console.say(f"note: {task.title} has no {task.splits.test[0].file}, so nothing is written to submit")

    def _tests(self, task: GlueTask) -> list[Split]:
        folder = self.config.data_dir
        return [
            split for split in task.splits.test if folder is None or (folder / task.title / split.file).exists()
        ]

    def _data(self, task: GlueTask, framing: Framing, tokenizer: Any) -> TaskData:
        def read(split: Split) -> tuple[examples.Examples, Sentences]:
            found = examples.read(task, split, self.config.data_dir)
            return found, Sentences.encode(found.texts, found.labels, framing, tokenizer)

        texts, train = read(task.splits.train)
        dev = [(split, *read(split)) for split in task.splits.dev]
        test = [(split, *read(split)) for split in self._tests(task)]
        return TaskData(
            task=task,
            train=train,
            dev=[(split, sentences) for split, _, sentences in dev],
            test=[(split, sentences, found.indices) for split, found, sentences in test],
            fingerprint=_fingerprint([texts, *(found for _, found, _ in dev)]),
        )

    def _claim(self, pretrained: Pretrained) -> None:
        """Makes the folder that of this recipe and this model.

        Raises:
            ConfigError: it is of another one.
        """
        path, weights = self.out / ASKED, pretrained.facts["weights"]
        if path.exists():
            before = parse(asked_before(self.out)).recipe
            unlike = [key for key, value in self.config.recipe.items() if before[key] != value]
            if read_yaml(path).get("weights") != weights:
                unlike = ["the weights of the model"]
            if unlike:
                place = files.shown(self.out)
                raise ConfigError([f"{place} has results of another recipe ({', '.join(unlike)}): type out=DIR"])
        with files.writing(path, 10_000):
            self.out.mkdir(parents=True, exist_ok=True)
            raw = {"format": FORMAT, "weights": weights, **self.config.raw}
            files.write_text(path, yaml.safe_dump(raw, sort_keys=False))

    def _write(self) -> dict[str, Any]:
        """results.json, and of each task the answers of its best run for a submission."""
        found = results.collect(self.out) | {"recipe": self.config.recipe}
        with files.writing(self.out / results.NAME, 100_000):
            files.write_json(self.out / results.NAME, found)
            for name, task in found["tasks"].items():
                best = self._folder(TASKS[name], task["best_run"]["lr"], task["best_run"]["seed"])
                for path in sorted((best / TESTS).glob("*.tsv")):
                    (self.out / SUBMISSION).mkdir(exist_ok=True)
                    shutil.copyfile(path, self.out / SUBMISSION / path.name)
        return found


def _fingerprint(learned: Sequence[examples.Examples]) -> str:
    """Of the training and the development rows of a task."""
    return "-".join(of_split.fingerprint for of_split in learned)


def place(config: GlueConfig, stamp: str) -> Path:
    """Where the results of a command go."""
    asked = config.asked
    if asked.out:
        return Path(asked.out)
    return Path(asked.run) / "glue" if asked.run else Path("outputs/glue") / stamp


def asked_before(out: Path) -> dict[str, Any]:
    """The plain values of the command that began these results.

    Raises:
        CheckpointError: there is none, or of a newer version.
    """
    path = out / ASKED
    if not path.is_file():
        raise CheckpointError(f"resume={out}: no folder of fine-tuning runs (no {ASKED} in it)")
    raw = read_yaml(path)
    if raw.pop("format", None) != FORMAT:
        raise CheckpointError(f"{files.shown(path)}: another version of apollo-glue wrote it")
    raw.pop("weights", None)
    return raw | {"out": str(out), "resume": None}
