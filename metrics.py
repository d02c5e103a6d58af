"""Scores from predictions: one label, two classes, several labels, spans, masked tokens; and how far to trust them.

Hand-written and short, checked in the tests against scikit-learn and seqeval. A score that is undefined (a precision without
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
    """overall {name: value}, per_label {label: {name: value}}, confusion (true, predicted) as nested lists of counts.

    intervals {name: (low, high)}: 95% by bootstrap, of the overall scores that have one, if they were asked for.
    """

    overall: dict
    per_label: dict
    confusion: list | None = None
    intervals: dict | None = None


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


def _warn_undefined(per_label):
    for score in {score: None for row in per_label.values() for score in row}:
        names = [name for name, row in per_label.items() if row.get(score, 0) is None]
        if names:
            warnings.warn(f"{score} is undefined for {', '.join(map(repr, names))}: no row has it, or none is called it", stacklevel=3)


def single_label(labels, probabilities, names, intervals=False):
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
    _warn_undefined(per_label)
    overall = {"Accuracy": float(np.trace(counts) / len(labels))}
    overall.update({score: _mean(row[score] for row in per_label.values()) for score in PER_LABEL})
    found = {"Accuracy": bootstrap_interval(counts, accuracy_of), "F1": bootstrap_interval(counts, macro_f1_of)} if intervals else None
    return Scores(overall, per_label, counts.tolist(), found)


# --- two classes -------------------------------------------------------------------------------------------------


def ranked(positive, score):
    """(true positives, positives called) at each distinct threshold, from the highest score down; both (thresholds,)."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each run of ties
    return np.cumsum(np.asarray(positive, bool)[order])[last], last + 1


def average_precision(positive, score):
    """Area under the precision-recall curve, as the sum over thresholds of precision times the step in recall.

    positive (N,) bool, score (N,); None without positives.
    """
    hits, called = ranked(positive, score)
    return float(np.sum(np.diff(hits, prepend=0) * hits / called) / hits[-1]) if hits[-1] else None


def recall_at_precision(positive, score, precision=0.8):
    """The largest recall of any threshold whose precision is at least this; 0 if no threshold reaches it, None without positives."""
    hits, called = ranked(positive, score)
    return float(max(hits[hits >= precision * called], default=0) / hits[-1]) if hits[-1] else None


def calibration(positive, probability, bins=10):
    """[(mean probability, share of positives, rows)] of the non-empty bins of equal width over [0, 1]."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    members = [place == b for b in range(bins) if (place == b).any()]
    return [(float(probability[m].mean()), float(np.mean(positive[m])), int(m.sum())) for m in members]


def expected_calibration_error(positive, probability, bins=10):
    """Mean distance between probability and share of positives over the bins, weighted by their rows (Naeini et al., 2015)."""
    return sum(rows * abs(said - seen) for said, seen, rows in calibration(positive, probability, bins)) / len(positive)


BINARY = ("Accuracy", "Majority", "AUROC", "AUPRC", "RecallAtP80", "Brier", "ECE", "F1")


def binary(labels, probability, names, intervals=False):
    """Scores of two classes: labels (N,) 0 or 1, probability (N,) of class 1, names (of 0, of 1).

    Majority is the accuracy of always giving the commoner label, Brier the mean squared error of the probability.
    """
    base = single_label(labels, np.stack([1 - probability, probability], 1), names)
    positive = labels == 1
    overall = {
        "Accuracy": base.overall["Accuracy"],
        "Majority": float(max(positive.mean(), 1 - positive.mean())),
        "AUROC": auroc(positive, probability),
        "AUPRC": average_precision(positive, probability),
        "RecallAtP80": recall_at_precision(positive, probability),
        "Brier": float(np.mean((probability - positive) ** 2)),
        "ECE": float(expected_calibration_error(positive, probability)),
        "F1": base.per_label[names[1]]["F1"],
    }
    found = None
    if intervals:
        found = {"Accuracy": bootstrap_interval(base.confusion, accuracy_of)}
        for name, score in (("AUROC", auroc), ("AUPRC", average_precision)):
            found[name] = bootstrap_rows(len(labels), lambda rows, score=score: score(positive[rows], probability[rows]))
    return Scores(overall, {name: base.per_label[name] for name in names}, base.confusion, found)


# --- several labels ----------------------------------------------------------------------------------------------

REPORT = ("Precision", "Recall", "F1", "Support")


def classification_report(truth, called, names):
    """{label: {Precision, Recall, F1, Support}}, then the rows micro, macro, weighted and samples avg, as scikit-learn's.

    truth, called (N, L) bool. A precision without predictions or a recall without rows is None in its own row; in the
    averages it counts as 0, which is scikit-learn's default and what the published tables do.
    """
    truth, called = np.asarray(truth, bool), np.asarray(called, bool)
    hits, truly, calls = (x.sum(0) for x in (truth & called, truth, called))
    rows = {
        name: {"Precision": _ratio(h, c), "Recall": _ratio(h, t), "F1": _ratio(2 * h, t + c), "Support": int(t)}
        for name, h, t, c in zip(names, hits, truly, calls)
    }
    table = np.array([[row[score] or 0.0 for score in REPORT[:3]] for row in rows.values()])  # (L, 3)
    each = [x.sum(1) for x in (truth & called, truth, called)]  # of each sample
    samples = [np.divide(top, bottom, out=np.zeros(len(truth)), where=bottom > 0).mean() for top, bottom in (
        (each[0], each[2]), (each[0], each[1]), (2.0 * each[0], each[1] + each[2]))]  # fmt: skip
    total = int(truly.sum())
    averages = {
        "micro avg": [
            _ratio(hits.sum(), calls.sum()) or 0.0,
            _ratio(hits.sum(), total) or 0.0,
            _ratio(2 * hits.sum(), total + calls.sum()) or 0.0,
        ],
        "macro avg": table.mean(0),
        "weighted avg": (table * truly[:, None]).sum(0) / max(total, 1),
        "samples avg": samples,
    }
    return {**rows, **{name: {**dict(zip(REPORT, map(float, values))), "Support": total} for name, values in averages.items()}}


def _counts_f1(sums):
    """F1 of (..., L, 3) sums of hits, truly, called; nan where no row has the label nor is called it."""
    bottom = (sums[..., 1] + sums[..., 2]).astype(float)
    return np.divide(2.0 * sums[..., 0], bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)


MULTI_LABEL = ("Accuracy", "MicroF1", "MacroF1", "WeightedF1", "SamplesF1")


def multi_label(truth, called, names, intervals=False):
    """Scores of label sets, truth and called (N, L) bool. Accuracy is the share of rows whose set is exactly right."""
    table = classification_report(truth, called, names)
    _warn_undefined({name: table[name] for name in names})
    overall = {"Accuracy": float((truth == called).all(1).mean())}
    overall.update({f"{name.capitalize()}F1": table[f"{name} avg"]["F1"] for name in ("micro", "macro", "weighted", "samples")})
    found = None
    if intervals:
        counts = np.stack([truth & called, truth, called], -1).reshape(len(truth), -1).astype(np.int64)  # (N, L * 3)
        shape = (-1, len(names), 3)
        found = {
            "MicroF1": bootstrap_sums(counts, lambda sums: _counts_f1(sums.reshape(shape).sum(1))),
            "MacroF1": bootstrap_sums(counts, lambda sums: np.nan_to_num(_counts_f1(sums.reshape(shape))).mean(-1)),
        }
    return Scores(overall, table, None, found)


# --- spans -------------------------------------------------------------------------------------------------------

SPANS = ("Precision", "Recall", "F1")


def spans(tags, strict=False):
    """Entities of a sentence's BIO tags as [(start, stop, type)], stop excluded.

    By default as conlleval reads them: an I- tag that continues nothing begins an entity. strict: it belongs to none.
    """
    found, start, kind = [], None, None
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and start is not None and name == kind
        if start is not None and not goes_on:
            found.append((start, at, kind))
            start = None
        if prefix == "B" or (prefix == "I" and not goes_on and not strict):
            start, kind = at, name
    return found


def span_scores(truth, called, types, groups, intervals=False):
    """Precision, recall and F1 of exact spans with their type, overall (micro) and per type.

    truth, called: for each sentence its spans (start, stop, type); groups: what each sentence belongs to, such as its
    document, which the bootstrap draws whole.
    """
    index, group_index = {name: i for i, name in enumerate(types)}, {name: i for i, name in enumerate(dict.fromkeys(groups))}
    counts = np.zeros((len(group_index), len(types), 3), np.int64)  # hits, truly, called
    for true, predicted, group in zip(truth, called, groups):
        for column, members in enumerate((set(true) & set(predicted), true, predicted)):
            for *_, kind in members:
                counts[group_index[group], index[kind], column] += 1

    def row(hits, truly, calls):
        return {"Precision": _ratio(hits, calls), "Recall": _ratio(hits, truly), "F1": _ratio(2 * hits, truly + calls)}

    per_type = {name: {**row(*counts.sum(0)[i]), "Support": int(counts[:, i, 1].sum())} for i, name in enumerate(types)}
    overall = row(*counts.sum((0, 1)))
    if overall["Precision"] is None:
        warnings.warn("precision is undefined: no entity was called", stacklevel=2)
    found = {"F1": bootstrap_sums(counts.sum(1), _counts_f1)} if intervals else None
    return Scores(overall, per_type, None, found)


# --- masked tokens -----------------------------------------------------------------------------------------------

MASKED = ("Accuracy", "CrossEntropy", "Perplexity")


def masked_tokens(counts, intervals=False):
    """Accuracy, mean negative log-likelihood (nats) and its exponential, the perplexity, of masked tokens.

    counts (rows, 3): of each row the tokens guessed rightly, the tokens masked, the sum of their -log p.
    """
    hits, masked, surprise = counts.sum(0)
    entropy = float(surprise / masked)
    overall = {"Accuracy": float(hits / masked), "CrossEntropy": entropy, "Perplexity": float(np.exp(entropy))}
    found = {"Accuracy": bootstrap_sums(counts, lambda sums: sums[:, 0] / sums[:, 1])} if intervals else None
    return Scores(overall, {}, None, found)


# --- how far to trust them -----------------------------------------------------------------------------------------


def accuracy_of(counts):
    """Accuracy of confusion matrices (..., C, C) -> (...)."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))


def macro_f1_of(counts, absent=np.nan):
    """Macro-F1 of confusion matrices (..., C, C) -> (...), over the classes that occur in each; or the others count as `absent`."""
    bottom = (counts.sum(-1) + counts.sum(-2)).astype(float)
    hits = 2.0 * np.diagonal(counts, axis1=-2, axis2=-1)
    return np.nanmean(np.divide(hits, bottom, out=np.full_like(bottom, absent), where=bottom > 0), axis=-1)


def bootstrap_interval(confusion, score, level=0.95, resamples=5000, seed=0):
    """Percentile bootstrap interval of a score that is a function of the confusion matrix.

    Drawing N notes with replacement and counting them again is one multinomial draw over the matrix's cells.
    """
    confusion = np.asarray(confusion)
    notes = confusion.sum()
    draws = np.random.default_rng(seed).multinomial(notes, confusion.ravel() / notes, size=resamples)
    values = score(draws.reshape(-1, *confusion.shape))
    return tuple(float(v) for v in np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))


def bootstrap_sums(rows, score, level=0.95, resamples=2000, seed=0):
    """Percentile bootstrap interval of a score of summed counts. rows (N, K); score takes sums (R, K) and gives (R,)."""
    generator, values = np.random.default_rng(seed), []
    for _ in range(0, resamples, 100):  # by the hundred, because the draws take 100 * N integers
        values.append(score(generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=100) @ rows))
    return tuple(float(v) for v in np.nanquantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2]))


def bootstrap_rows(count, score, level=0.95, resamples=1000, seed=0):
    """Percentile bootstrap interval of any score of rows; score takes their indices (N,). Undefined draws are left out."""
    generator = np.random.default_rng(seed)
    values = [value for _ in range(resamples) if (value := score(generator.integers(count, size=count))) is not None]
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
