from collections.abc import Callable

import numpy as np
import pytest

from apollo_cli.glue.metrics import frequent_score, score, task_metrics
from apollo_cli.glue.results import averages
from apollo_cli.glue.tasks import TASKS

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 1, 1, 0])
ANSWERS = np.array([1, 0, 1, 0, 1, 1, 0, 1, 1, 1])  # 5 true and 2 false positives, 2 true and 1 false negative
SCORES = np.array([0.0, 1.2, 2.5, 3.8, 5.0], dtype=np.float32)
GUESSES = np.array([0.5, 0.4, 3.0, 2.9, 4.1], dtype=np.float32)


def test_the_metrics_are_what_their_formulas_say() -> None:
    f1, accuracy = 2 * 5 / (2 * 5 + 2 + 1), 7 / 10
    matthews = (5 * 2 - 2 * 1) / ((5 + 2) * (5 + 1) * (2 + 2) * (2 + 1)) ** 0.5
    assert task_metrics(TASKS["mrpc"], LABELS, ANSWERS) == pytest.approx({"f1": f1, "accuracy": accuracy})
    assert task_metrics(TASKS["cola"], LABELS, ANSWERS) == pytest.approx({"matthews": matthews})
    ranks = np.array([2, 1, 4, 3, 5])  # of the guesses; those of the scores are 1 to 5
    spearman = 1 - 6 * ((ranks - np.arange(1, 6)) ** 2).sum() / (5 * (25 - 1))
    pearson = np.corrcoef(SCORES, GUESSES)[0, 1]
    assert task_metrics(TASKS["stsb"], SCORES, GUESSES) == pytest.approx({"pearson": pearson, "spearman": spearman})


def public_metrics(task: str) -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """What Hugging Face's `evaluate` computes for `glue` (metrics/glue/glue.py), by our names."""
    from scipy import stats
    from sklearn import metrics

    return {
        "cola": {"matthews": lambda y, p: metrics.matthews_corrcoef(y, p)},
        "sst2": {"accuracy": lambda y, p: (p == y).mean()},
        "mrpc": {"accuracy": lambda y, p: (p == y).mean(), "f1": lambda y, p: metrics.f1_score(y_true=y, y_pred=p)},
        "qqp": {"accuracy": lambda y, p: (p == y).mean(), "f1": lambda y, p: metrics.f1_score(y_true=y, y_pred=p)},
        "stsb": {
            "pearson": lambda y, p: stats.pearsonr(p, y)[0],
            "spearman": lambda y, p: stats.spearmanr(p, y)[0],
        },
        "mnli": {"accuracy": lambda y, p: (p == y).mean()},
        "qnli": {"accuracy": lambda y, p: (p == y).mean()},
        "rte": {"accuracy": lambda y, p: (p == y).mean()},
        "wnli": {"accuracy": lambda y, p: (p == y).mean()},
    }[task]


@pytest.mark.parametrize("name", TASKS)
def test_a_public_definition_of_the_metrics_gives_the_same(name: str) -> None:
    rng = np.random.default_rng(0)
    task = TASKS[name]
    labels = rng.integers(0, len(task.labels), 200) if task.labels else rng.random(200) * 5
    answers = np.where(rng.random(200) < 0.6, labels, rng.permutation(labels))
    theirs = {metric: float(of(labels, answers)) for metric, of in public_metrics(name).items()}
    assert task_metrics(task, labels, answers) == pytest.approx(theirs, abs=1e-12)


def test_one_row_and_constant_predictions_have_no_correlation() -> None:
    assert task_metrics(TASKS["stsb"], SCORES[:1], GUESSES[:1]) == {"pearson": 0.0, "spearman": 0.0}
    assert task_metrics(TASKS["stsb"], SCORES, np.full(5, 2.0)) == {"pearson": 0.0, "spearman": 0.0}
    assert task_metrics(TASKS["cola"], LABELS, np.ones(10)) == {"matthews": 0.0}


def test_the_average_is_over_the_mean_metrics_of_the_tasks() -> None:
    assert score({"f1": 0.9, "accuracy": 0.8}) == pytest.approx(0.85)
    tasks = {name: {"mean": value, "best": 1.0} for name, value in {"cola": 0.3, "mnli": 0.6, "wnli": 0.5}.items()}
    found = averages(tasks)["mean"]
    assert (found["with_wnli"], found["without_wnli"]) == (pytest.approx(1.4 / 3), pytest.approx(0.45))
    assert averages({"wnli": tasks["wnli"]})["mean"]["without_wnli"] is None


def test_the_frequent_label_scores_what_the_development_rows_of_glue_give_it() -> None:
    """Of MRPC's 408 rows 279 are paraphrases, of RTE's 277 146 entailed; a constant correlates with nothing."""
    mrpc, rte = np.repeat([1, 0], [279, 129]), np.repeat([0, 1], [146, 131])
    accuracy = 279 / 408
    assert frequent_score(TASKS["mrpc"], [mrpc]) == pytest.approx((accuracy + 2 * accuracy / (1 + accuracy)) / 2)
    assert frequent_score(TASKS["rte"], [rte]) == pytest.approx(146 / 277)
    assert frequent_score(TASKS["cola"], [rte]) == frequent_score(TASKS["stsb"], [SCORES]) == 0
    mismatched = np.repeat([0, 2], [10, 30])  # of both splits together label 2 is the most frequent
    assert frequent_score(TASKS["mnli"], [np.repeat([0, 2], [20, 10]), mismatched]) == pytest.approx(
        (1 / 3 + 3 / 4) / 2
    )
