"""The tasks of GLUE (Wang 2018, arXiv 1804.07461): their files, columns, labels and metrics."""

from dataclasses import dataclass
from typing import NamedTuple

HUB = "nyu-mll/glue"  # one configuration per task


@dataclass(frozen=True)
class Split:
    """A part of a task's data."""

    name: str  # train, dev or test, of MNLI also dev_mismatched and the like
    file: str  # in the folder of the task
    hub: str  # name of the split on the hub
    rows: int  # published number of rows
    suffix: str = ""  # of its metrics and of its submission file


class Splits(NamedTuple):
    """The data of a task; MNLI has two splits of development rows and of test rows, which have no labels."""

    train: Split
    dev: tuple[Split, ...]
    test: tuple[Split, ...]

    @classmethod
    def plain(cls, train: int, dev: int, test: int) -> "Splits":
        return cls(
            Split("train", "train.tsv", "train", train),
            (Split("dev", "dev.tsv", "validation", dev),),
            (Split("test", "test.tsv", "test", test),),
        )


@dataclass(frozen=True)
class GlueTask:
    """A task."""

    name: str  # in commands and on the hub
    title: str  # official name; also the folder of its files and the name of its submission
    columns: tuple[str, ...]  # of the one or two sentences in the files
    hub_columns: tuple[str, ...]  # the same on the hub
    label: str  # column of the label in the files
    labels: tuple[str, ...]  # in the order of the hub's numbers; empty where the label is a similarity from 0 to 5
    metrics: tuple[str, ...]  # the official ones, whose mean is the score
    splits: Splits
    headless: tuple[str, ...] = ()  # columns of train and dev if these files have no header
    index: str = "index"  # column with the index of the test rows in the files

    @property
    def outputs(self) -> int:
        return len(self.labels) or 1


_PAIR, _BINARY, _ENTAILMENT = ("sentence1", "sentence2"), ("0", "1"), ("entailment", "not_entailment")
_SIDES = ("entailment", "neutral", "contradiction")

TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "cola", "CoLA", ("sentence",), ("sentence",), "label", _BINARY, ("matthews",),
            Splits.plain(8551, 1043, 1063), headless=("source", "label", "mark", "sentence"),
        ),
        GlueTask(
            "sst2", "SST-2", ("sentence",), ("sentence",), "label", _BINARY, ("accuracy",),
            Splits.plain(67349, 872, 1821),
        ),
        GlueTask(
            "mrpc", "MRPC", ("#1 String", "#2 String"), _PAIR, "Quality", _BINARY, ("f1", "accuracy"),
            Splits.plain(3668, 408, 1725),
        ),
        GlueTask(
            "stsb", "STS-B", _PAIR, _PAIR, "score", (), ("pearson", "spearman"),
            Splits.plain(5749, 1500, 1379),
        ),
        GlueTask(
            "qqp", "QQP", ("question1", "question2"), ("question1", "question2"), "is_duplicate", _BINARY,
            ("f1", "accuracy"), Splits.plain(363846, 40430, 390965), index="id",
        ),
        GlueTask(
            "mnli", "MNLI", _PAIR, ("premise", "hypothesis"), "gold_label", _SIDES, ("accuracy",),
            Splits(
                Split("train", "train.tsv", "train", 392702),
                (
                    Split("dev", "dev_matched.tsv", "validation_matched", 9815),
                    Split("dev_mismatched", "dev_mismatched.tsv", "validation_mismatched", 9832, "_mismatched"),
                ),
                (
                    Split("test", "test_matched.tsv", "test_matched", 9796, "-m"),
                    Split("test_mismatched", "test_mismatched.tsv", "test_mismatched", 9847, "-mm"),
                ),
            ),
        ),
        GlueTask(
            "qnli", "QNLI", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILMENT,
            ("accuracy",), Splits.plain(104743, 5463, 5463),
        ),
        GlueTask(
            "rte", "RTE", _PAIR, _PAIR, "label", _ENTAILMENT, ("accuracy",),
            Splits.plain(2490, 277, 3000),
        ),
        GlueTask(
            "wnli", "WNLI", _PAIR, _PAIR, "label", _BINARY, ("accuracy",), Splits.plain(635, 71, 146),
        ),
    )
}  # fmt: skip
