"""The official metrics of GLUE, from scikit-learn and scipy."""

import math
import warnings
from collections.abc import Callable, Mapping
from statistics import fmean

import numpy as np
from scipy import stats
from sklearn import metrics

from apollo_cli.glue.tasks import GlueTask


def _correlation(of: Callable[..., tuple[float, float]]) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(labels: np.ndarray, predictions: np.ndarray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            value = float(of(labels, predictions)[0])
        return 0.0 if math.isnan(value) else value

    return correlation


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "matthews": metrics.matthews_corrcoef,
    "accuracy": metrics.accuracy_score,
    "f1": metrics.f1_score,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


def task_metrics(task: GlueTask, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The metrics of a task, each from -1 or 0 to 1; a correlation with constant predictions is 0.

    Args:
        task: the task.
        labels: (rows,), as in `Examples`.
        predictions: (rows,), the model's.
    """
    return {name: float(METRICS[name](labels, predictions)) for name in task.metrics}


def score(values: Mapping[str, float]) -> float:
    """The score of a task: the mean of its metrics; for MNLI of both development splits."""
    return fmean(values.values())


def average(scores: Mapping[str, float], *, with_wnli: bool) -> float | None:
    """The GLUE average: the mean over these tasks; None without any."""
    counted = [value for name, value in scores.items() if with_wnli or name != "wnli"]
    return fmean(counted) if counted else None
