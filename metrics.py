"""Scores from predictions, and how far to trust them.

Hand-written and short, checked in the tests against scikit-learn. A score that is undefined (a precision without
predictions, an AUROC without negatives) is None and warned of; it is never 0.0, and a mean over classes that contains one
is None too.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np

OVERALL = ("Accuracy", "Precision", "Recall", "F1", "AUROC")
PER_LABEL = ("Precision", "Recall", "F1", "AUROC")


class Scores(NamedTuple):
    """overall {name: value}, per_label {label: {name: value}}, confusion (true, predicted) as nested lists of counts."""

    overall: dict
    per_label: dict
    confusion: list


def confusion_matrix(labels, predicted, classes):
    """Counts of (true, predicted) pairs, (classes, classes) int."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def auroc(positive, score):
    """Area under the ROC curve: the share of (positive, negative) pairs that the score ranks rightly, ties a half.

    positive (N,) bool, score (N,). The Mann-Whitney U of the ranks; None where either side is empty.
    """
    positive = np.asarray(positive, bool)
    wins, losses = int(positive.sum()), int((~positive).sum())
    if not wins or not losses:
        return None
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]  # tied scores share their mean rank, counted from 1
    return float((ranks[positive].sum() - wins * (wins + 1) / 2) / (wins * losses))


def _ratio(top, bottom):
    return float(top / bottom) if bottom else None


def _mean(values):
    values = list(values)
    return None if any(value is None for value in values) else float(np.mean(values))


def single_label(labels, probabilities, names):
    """Accuracy, macro precision, recall, F1 and one-vs-rest AUROC; the last four per class too.

    labels (N,) int, probabilities (N, C), names the C classes. Returns Scores. Raises ValueError on NaN or no rows.
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        raise ValueError("scores need at least one row, and finite probabilities")
    counts = confusion_matrix(labels, probabilities.argmax(1), len(names))
    per_label = {}
    for i, name in enumerate(names):
        hits, truly, called = counts[i, i], counts[i].sum(), counts[:, i].sum()
        per_label[name] = {
            "Precision": _ratio(hits, called),
            "Recall": _ratio(hits, truly),
            "F1": _ratio(2 * hits, truly + called),
            "AUROC": auroc(labels == i, probabilities[:, i]),
        }
        for score, value in per_label[name].items():
            if value is None:
                warnings.warn(f"{score} of {name!r} is undefined: {truly} rows have it, {called} are called it", stacklevel=2)
    overall = {"Accuracy": float(np.trace(counts) / len(labels))}
    overall.update({score: _mean(row[score] for row in per_label.values()) for score in PER_LABEL})
    return Scores(overall, per_label, counts.tolist())


# --- how far to trust them -----------------------------------------------------------------------------------------


def accuracy_of(counts):
    """Accuracy of confusion matrices (..., C, C) -> (...)."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))


def macro_f1_of(counts):
    """Macro-F1 of confusion matrices (..., C, C) -> (...), over the classes that occur in each."""
    bottom = (counts.sum(-1) + counts.sum(-2)).astype(float)
    hits = 2.0 * np.diagonal(counts, axis1=-2, axis2=-1)
    return np.nanmean(np.divide(hits, bottom, out=np.full_like(bottom, np.nan), where=bottom > 0), axis=-1)


def bootstrap_interval(confusion, score, level=0.95, resamples=5000, seed=0):
    """Percentile bootstrap interval of a score that is a function of the confusion matrix.

    Drawing N notes with replacement and counting them again is one multinomial draw over the matrix's cells.
    """
    confusion = np.asarray(confusion)
    notes = confusion.sum()
    draws = np.random.default_rng(seed).multinomial(notes, confusion.ravel() / notes, size=resamples)
    values = score(draws.reshape(-1, *confusion.shape))
    return tuple(float(v) for v in np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))


def mcnemar(right_a, right_b):
    """Exact two-sided McNemar test (1947) of two models on the same notes: (only a right, only b right, p-value).

    right_a, right_b (N,) bool. Only notes on which they differ count; under no difference each goes either way, evenly.
    """
    right_a, right_b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    differ = only_a + only_b
    tail = sum(math.comb(differ, k) for k in range(min(only_a, only_b) + 1))
    return only_a, only_b, min(1.0, 2 * tail / 2**differ)
