"""The official metrics of GLUE, from scikit-learn and scipy, whose imports take a second."""

import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from apollo_cli.glue.tasks import GlueTask


def task_metrics(task: GlueTask, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The metrics of a task, each from -1 or 0 to 1, of labels as in `Examples` and predictions, both (rows,).

    A correlation with constant predictions, or of one row, is 0.
    """
    from scipy import stats
    from sklearn import metrics

    if task.labels:
        functions = {
            "matthews": metrics.matthews_corrcoef, "accuracy": metrics.accuracy_score, "f1": metrics.f1_score,
        }  # fmt: skip
        return {name: float(functions[name](labels, predictions)) for name in task.metrics}
    if len(labels) < 2:
        return dict.fromkeys(task.metrics, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        found = stats.pearsonr(labels, predictions)[0], stats.spearmanr(labels, predictions)[0]
    return {name: float(np.nan_to_num(value)) for name, value in zip(task.metrics, found, strict=True)}


def score(values: Mapping[str, float]) -> float:
    """The score of a task: the mean of its metrics; for MNLI of both development splits."""
    return fmean(values.values())


def frequent_score(task: GlueTask, splits: Sequence[np.ndarray]) -> float:
    """The score of always answering the most frequent label of these development splits, (rows,) each.

    A constant similarity has no correlation, so its score is 0.
    """
    constant = np.bincount(np.concatenate(splits)).argmax() if task.labels else 0.0
    return fmean(score(task_metrics(task, labels, np.full(len(labels), constant))) for labels in splits)
