"""Our metrics against scikit-learn and SciPy, on random and on degenerate input."""

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score

import metrics

NAMES = ["a", "b", "c", "d"]


def random_case(generator, notes=60):
    probabilities = generator.dirichlet(np.ones(4), notes).round(1)  # rounded, so that scores tie
    return generator.integers(0, 4, notes), probabilities


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_scikit_learn(seed):
    labels, probabilities = random_case(np.random.default_rng(seed))
    scores = metrics.single_label(labels, probabilities, NAMES)
    predicted = probabilities.argmax(1)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=np.nan)
    for i, name in enumerate(NAMES):
        row = scores.per_label[name]
        assert np.allclose([row["Precision"], row["Recall"], row["F1"]], [e[i] for e in expected[:3]])
        assert np.isclose(row["AUROC"], roc_auc_score(labels == i, probabilities[:, i]))
    macro = precision_recall_fscore_support(labels, predicted, average="macro")
    assert np.allclose([scores.overall[s] for s in ("Precision", "Recall", "F1")], macro[:3])
    assert scores.overall["Accuracy"] == accuracy_score(labels, predicted)
    assert scores.confusion == confusion_matrix(labels, predicted, labels=range(4)).tolist()
    smooth = np.random.default_rng(seed).dirichlet(np.ones(4), len(labels))
    ours = metrics.single_label(labels, smooth, NAMES).overall["AUROC"]
    assert np.isclose(ours, roc_auc_score(labels, smooth, multi_class="ovr", average="macro"))


def test_undefined_is_none_with_a_warning_never_zero():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.eye(4)[[0, 1, 1, 1]]  # c and d: no rows and no calls
    with pytest.warns(UserWarning, match="Precision is undefined for 'c', 'd'"):
        scores = metrics.single_label(labels, probabilities, NAMES)
    assert scores.per_label["c"] == {"Precision": None, "Recall": None, "F1": None, "AUROC": None}
    assert scores.overall["Accuracy"] == 0.75 and scores.overall["F1"] is None and scores.overall["AUROC"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        never_called = metrics.single_label(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), ["a", "b"])
    assert never_called.per_label["b"]["Precision"] is None  # no calls: undefined
    assert never_called.per_label["b"]["Recall"] == 0.0 and never_called.per_label["b"]["F1"] == 0.0  # truly zero
    assert metrics.auroc([True, True], [0.1, 0.2]) is None and metrics.auroc([False], [0.1]) is None
    assert metrics.auroc([True, False], [0.5, 0.5]) == 0.5


def test_no_rows_and_nan_are_errors_not_zeros():
    with pytest.raises(ValueError):
        metrics.single_label(np.array([], int), np.empty((0, 2)), ["a", "b"])
    with pytest.raises(ValueError):
        metrics.single_label(np.array([0]), np.array([[np.nan, 1.0]]), ["a", "b"])


def test_bootstrap_on_the_matrix_equals_bootstrap_over_notes():
    labels, probabilities = random_case(np.random.default_rng(1), 300)
    predicted = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(labels, predicted, 4)
    assert metrics.accuracy_of(confusion) == accuracy_score(labels, predicted)
    assert np.isclose(metrics.macro_f1_of(confusion), metrics.single_label(labels, probabilities, NAMES).overall["F1"])
    generator = np.random.default_rng(2)
    for score in (metrics.accuracy_of, metrics.macro_f1_of):
        slow = []
        for _ in range(3000):
            rows = generator.integers(0, 300, 300)
            slow.append(score(metrics.confusion_matrix(labels[rows], predicted[rows], 4)))
        assert np.allclose(metrics.bootstrap_interval(confusion, score), np.quantile(slow, [0.025, 0.975]), atol=0.008)


def test_mcnemar_equals_the_binomial_test():
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = generator.random(50) < 0.8, generator.random(50) < 0.6
        only_a, only_b, p = metrics.mcnemar(a, b)
        assert only_a == (a & ~b).sum() and only_b == (b & ~a).sum()
        assert np.isclose(p, binomtest(only_a, only_a + only_b).pvalue)
    assert metrics.mcnemar([True], [True]) == (0, 0, 1.0)
