"""Our metrics against scikit-learn, SciPy and brute force, on random and on degenerate input."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

import metrics

NAMES = ["a", "b", "c", "d"]


def random_case(generator, notes=60):
    probabilities = generator.dirichlet(np.ones(4), notes).round(1)  # rounded, so that scores tie
    return generator.integers(0, 4, notes), probabilities


# --- one label and two classes


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_scikit_learn(seed):
    labels, probabilities = random_case(np.random.default_rng(seed))
    scores = metrics.single_label(labels, probabilities, NAMES)
    predicted = probabilities.argmax(1)
    expected = sk.precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=np.nan)
    for i, name in enumerate(NAMES):
        row = scores.per_label[name]
        assert np.allclose([row["Precision"], row["Recall"], row["F1"]], [e[i] for e in expected[:3]])
        assert np.isclose(row["AUROC"], sk.roc_auc_score(labels == i, probabilities[:, i]))
    macro = sk.precision_recall_fscore_support(labels, predicted, average="macro")
    assert np.allclose([scores.overall[s] for s in ("Precision", "Recall", "F1")], macro[:3])
    assert scores.overall["Accuracy"] == sk.accuracy_score(labels, predicted)
    assert scores.confusion == sk.confusion_matrix(labels, predicted, labels=range(4)).tolist()
    assert scores.undefined is None and metrics.undefined_note(scores, "notes") is None
    smooth = np.random.default_rng(seed).dirichlet(np.ones(4), len(labels))
    ours = metrics.single_label(labels, smooth, NAMES).overall["AUROC"]
    assert np.isclose(ours, sk.roc_auc_score(labels, smooth, multi_class="ovr", average="macro"))


def test_undefined_is_none_and_named_and_never_zero_in_its_own_cell():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.eye(4)[[0, 1, 1, 1]]  # c and d: no rows and no calls
    scores = metrics.single_label(labels, probabilities, NAMES)
    assert scores.undefined == {score: ["c", "d"] for score in metrics.PER_LABEL}
    assert scores.per_label["c"] == {"Precision": None, "Recall": None, "F1": None, "AUROC": None}
    assert scores.overall["Accuracy"] == 0.75 and scores.overall["AUROC"] is None
    never_called = metrics.single_label(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), ["a", "b"])
    assert never_called.per_label["b"]["Precision"] is None  # no calls: undefined
    assert (
        never_called.per_label["b"]["Recall"] == 0.0 and never_called.per_label["b"]["F1"] == 0.0
    )  # truly zero
    assert never_called.undefined == {"Precision": ["b"]}
    assert metrics.auroc([True, True], [0.1, 0.2]) is None and metrics.auroc([False], [0.1]) is None
    assert metrics.auroc([True, False], [0.5, 0.5]) == 0.5


@pytest.mark.parametrize("seed", range(20))
def test_macro_scores_count_an_undefined_one_as_zero_as_scikit_learn_does(seed):
    generator = np.random.default_rng(seed)
    labels, probabilities = (
        generator.integers(0, 3, 8),
        generator.dirichlet([1, 1, 0.3, 0.3], 8),
    )  # d is never true
    scores = metrics.single_label(labels, probabilities, NAMES)
    macro = sk.precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(4), average="macro", zero_division=0
    )
    assert [scores.overall[s] for s in ("Precision", "Recall", "F1")] == pytest.approx(macro[:3], abs=1e-15)
    assert (
        scores.overall["AUROC"] is None
        and "d" in scores.undefined["AUROC"]
        and "d" in scores.undefined["Recall"]
    )
    assert metrics.macro_f1_of(np.array(scores.confusion)) == pytest.approx(scores.overall["F1"])


def test_the_note_names_every_undefined_score_its_labels_and_the_reason():
    labels, predicted = (
        np.array([0, 0, 1, 1]),
        [0, 1, 2, 1],
    )  # c is never true, d neither true nor predicted
    scores = metrics.single_label(labels, np.eye(4)[predicted], NAMES)
    assert metrics.undefined_note(scores, "notes") == (
        "warning: precision is undefined for d (never predicted in these notes); "
        "recall is undefined for c, d (never true in these notes); "
        "F1 is undefined for d (neither true nor predicted in these notes); "
        "AUROC is undefined for c, d (true of all or none of these notes)"
    )
    spans = metrics.span_scores([[(0, 1, "x")]], [[]], ["x"])
    expected = "warning: precision is undefined for x (never predicted in these sentences)"
    assert spans.overall["Precision"] is None and metrics.undefined_note(spans, "sentences") == expected


def test_no_score_warns_by_itself_and_binary_scores_of_one_class_are_undefined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for label in (0, 1):
            labels = np.full(5, label)
            scores = metrics.binary(labels, np.array([0.1, 0.2, 0.6, 0.1, 0.9]), ["no", "yes"])
            assert scores.overall["AUROC"] is None and scores.undefined["AUROC"] == ["no", "yes"]
            assert scores.undefined["Recall"] == [["yes", "no"][label]]
            assert (scores.overall["AUPRC"] is None) == (scores.overall["RecallAtP80"] is None) == (not label)
        nothing = np.zeros((3, 2), bool)
        scores = metrics.multi_label(nothing, nothing, ["a", "b"])
        assert scores.overall["Accuracy"] == 1 and scores.overall["MacroF1"] == 0
        assert scores.undefined == {score: ["a", "b"] for score in ("Precision", "Recall", "F1")}


def test_no_rows_and_nan_are_errors_not_zeros():
    with pytest.raises(ValueError):
        metrics.single_label(np.array([], int), np.empty((0, 2)), ["a", "b"])
    with pytest.raises(ValueError):
        metrics.single_label(np.array([0]), np.array([[np.nan, 1.0]]), ["a", "b"])


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_exactly_the_share_of_pairs_ranked_rightly(seed):
    generator = np.random.default_rng(seed)
    for notes in (5, 40, 90):
        positive, score = generator.random(notes) < 0.4, generator.random(notes).round(seed)
        above, tied = (
            compare(score[positive][:, None], score[~positive]) for compare in (np.greater, np.equal)
        )
        assert (
            metrics.auroc(positive, score) == (above.sum() + tied.sum() / 2) / above.size
        )  # to the last bit


@pytest.mark.parametrize("seed", range(5))
def test_recall_at_precision_is_the_best_over_all_thresholds(seed):
    generator = np.random.default_rng(seed)
    positive, score = generator.random(60) < 0.5, generator.random(60).round(1 + seed % 2)
    for level in (0.5, 0.6, 0.8, 0.99):
        calls = [score >= threshold for threshold in np.unique(score)]
        reached = [positive[call].sum() / positive.sum() for call in calls if positive[call].mean() >= level]
        assert metrics.recall_at_precision(positive, score, level) == pytest.approx(max(reached, default=0))


@pytest.mark.parametrize("seed", range(5))
def test_calibration_counts_the_rows_of_each_bin(seed):
    generator = np.random.default_rng(seed)
    probability = np.concatenate([[0.0, 0.1, 0.2, 1.0], generator.random(50) ** 2])
    positive = generator.random(54) < probability
    edges = np.linspace(0, 1, 16)
    expected = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (probability <= high) & ((probability > low) | (low == 0))
        if inside.any():
            expected.append((probability[inside].mean(), positive[inside].mean(), inside.sum()))
    points = metrics.calibration(positive, probability)
    assert np.allclose(points, expected) and sum(rows for *_, rows in points) == 54
    error = sum(rows * abs(said - seen) for said, seen, rows in expected) / 54
    assert metrics.expected_calibration_error(positive, probability) == pytest.approx(error)


@pytest.mark.parametrize("separate", (False, True))
def test_temperature_scaling_finds_how_much_too_sure_the_answers_are(separate):
    generator = np.random.default_rng(0)
    logits = 2 * generator.normal(size=(4000, 3))
    if separate:
        said, truth = 1 / (1 + np.exp(-logits)), generator.random(logits.shape) < 1 / (1 + np.exp(-logits))
        sure = (1 / (1 + np.exp(-3 * logits))).astype(np.float32)
        squares = ((truth - sure) ** 2).mean()
    else:
        said, sure = (np.exp(k * logits) / np.exp(k * logits).sum(1, keepdims=True) for k in (1, 3))
        truth = (said.cumsum(1) > generator.random((4000, 1))).argmax(1)
        squares = ((np.eye(3)[truth] - sure) ** 2).sum(1).mean()
    temperature = metrics.fit_temperature(truth, sure)
    assert temperature == pytest.approx(3, rel=0.1)
    assert metrics.fit_temperature(truth, said) == pytest.approx(1, rel=0.1)
    assert np.allclose(metrics.tempered(sure, 3.0, separate), said, atol=5e-3)  # float32 has no 1 - 1e-9
    found = metrics.calibration_scores(truth, sure, temperature)
    assert found["plain"]["Brier"] == pytest.approx(squares, abs=1e-6)
    assert found["scaled"]["ECE"] < 0.03 < 0.08 < found["plain"]["ECE"]
    assert found["scaled"]["Brier"] < found["plain"]["Brier"]
    assert sum(rows for *_, rows in found["plain"]["bins"]) == truth.size
    assert metrics.calibration_scores(truth, sure)["scaled"] is None


def test_calibration_of_classes_is_about_the_likeliest():
    said, truth = np.array([[0.9, 0.1], [0.2, 0.8], [0.95, 0.05]]), np.array([0, 0, 0])
    found = metrics.calibration_scores(truth, said)["plain"]
    assert found["ECE"] == pytest.approx((0.1 + 0.8 + 0.05) / 3)  # three bins, one row each
    assert found["Brier"] == pytest.approx((0.02 + 1.28 + 0.005) / 3)


@pytest.mark.parametrize("separate", (False, True))
def test_weighted_calibration_is_that_of_the_rows_as_often_as_they_count(separate):
    generator = np.random.default_rng(1)
    said = generator.dirichlet(np.ones(3), 40)
    truth = generator.random((40, 3)) < said if separate else said.argmax(1) * (generator.random(40) < 0.7)
    weights = generator.integers(0, 4, (5, 40))
    found = {
        name: score(weights.astype(np.float32))
        for name, score in metrics.weighted_calibration(truth, said).items()
    }
    for at, drawn in enumerate(weights):
        rows = np.repeat(np.arange(40), drawn)
        expected = metrics.calibration_scores(truth[rows], said[rows])["plain"]
        assert all(found[name][at] == pytest.approx(expected[name], abs=1e-6) for name in ("ECE", "Brier"))


# --- intervals and tests


def test_scores_of_confusion_matrices_are_those_of_notes():
    labels, probabilities = random_case(np.random.default_rng(1), 300)
    predicted = probabilities.argmax(1)
    confusion = metrics.confusion_matrix(labels, predicted, 4)
    assert metrics.accuracy_of(confusion) == sk.accuracy_score(labels, predicted)
    f1 = metrics.single_label(labels, probabilities, NAMES).overall["F1"]
    assert np.isclose(metrics.macro_f1_of(confusion), f1)


def test_mcnemar_equals_the_binomial_test():
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = generator.random(50) < 0.8, generator.random(50) < 0.6
        only_a, only_b, p = metrics.mcnemar(a, b)
        assert only_a == (a & ~b).sum() and only_b == (b & ~a).sum()
        differ = only_a + only_b
        assert np.isclose(p, binomtest(only_a, differ).pvalue)
        tail = sum(math.comb(differ, k) for k in range(min(only_a, only_b) + 1)) / 2**differ
        assert np.isclose(p, min(1, 2 * tail))
    assert metrics.mcnemar([True], [True]) == (0, 0, 1.0)


def test_scikit_learn_is_imported_only_when_something_is_scored():
    code = "import sys, metrics; sys.exit('sklearn' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(metrics.__file__).parent).returncode == 0
