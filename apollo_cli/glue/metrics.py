"""The official metrics of GLUE, from scikit-learn and scipy, whose imports take a second."""

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from apollo_cli.glue.tasks import GlueTask


def task_metrics(task: GlueTask, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The metrics of a task, each from -1 or 0 to 1, of labels as in `Examples` and predictions, both (rows,).

    A correlation with constant predictions, or of one row, is 0.
    """
    return {name: _metric(name, labels, predictions) for name in task.metrics}


def _metric(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy import stats
    from sklearn import metrics

    if name in ("pearson", "spearman") and len(labels) < 2:
        return 0.0
    if name in ("pearson", "spearman"):
        correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            value = float(correlation(labels, predictions)[0])
        return 0.0 if math.isnan(value) else value
    functions = {
        "matthews": metrics.matthews_corrcoef, "accuracy": metrics.accuracy_score, "f1": metrics.f1_score,
    }  # fmt: skip
    return float(functions[name](labels, predictions))


def score(values: Mapping[str, float]) -> float:
    """The score of a task: the mean of its metrics; for MNLI of both development splits."""
    return fmean(values.values())


def frequent_score(task: GlueTask, splits: Sequence[np.ndarray]) -> float:
    """The score of always answering the most frequent label of these development splits, (rows,) each.

    A constant similarity has no correlation, so its score is 0.
    """
    constant = np.bincount(np.concatenate(splits)).argmax() if task.labels else 0.0
    return fmean(score(task_metrics(task, labels, np.full(len(labels), constant))) for labels in splits)
