"""Scores from predictions (labels, label sets, spans, masked tokens) and how far to trust them.

scikit-learn computes what it has; the rest is tested against seqeval, scikit-learn or brute force.
scikit-learn and scipy are imported where they are used: that takes up to a second, and predict.py
scores nothing.

A label's score that is undefined (a precision without predictions, an AUROC without negatives) is
None, and `Scores.undefined` names it. In a macro average of precision, recall or F1 it counts as 0,
as in scikit-learn and in published tables. A macro AUROC with an undefined part is None.
"""

from typing import NamedTuple

import numpy as np

OVERALL = ("Accuracy", "Precision", "Recall", "F1", "AUROC")
PER_LABEL = ("Precision", "Recall", "F1", "AUROC")


class Scores(NamedTuple):
    """overall {score: value}, per_label {label: {score: value}}, and where they apply:

    confusion: counts as nested lists, rows true, columns predicted.
    intervals {score: (low, high)}: 95%, of some overall scores, of final scores (Task.final_scores).
    undefined {score: [labels]}: the cells of per_label that are None.
    calibration: as calibration_scores gives it, of final scores.
    """

    overall: dict
    per_label: dict
    confusion: list | None = None
    intervals: dict | None = None
    undefined: dict | None = None
    calibration: dict | None = None


def _undefined(per_label):
    """{score: [labels]} of the cells that are None; None if there are none."""
    found = {}
    for label, row in per_label.items():
        for score in (score for score, value in row.items() if value is None):
            found.setdefault(score, []).append(label)
    return found or None


def undefined_note(scores, unit):
    """One line that names each undefined score, its labels and why; None if all are defined.

    unit: what the task scores, in the plural, such as "notes".
    """
    why = {
        "Precision": "precision is undefined for {} (never predicted in these {})",
        "Recall": "recall is undefined for {} (never true in these {})",
        "F1": "F1 is undefined for {} (neither true nor predicted in these {})",
        "AUROC": "AUROC is undefined for {} (true of all or none of these {})",
    }
    found = scores.undefined or {}
    parts = [why[score].format(", ".join(found[score]), unit) for score in why if score in found]
    return f"warning: {'; '.join(parts)}" if parts else None


# --- one label ------------------------------------------------------------------------------------


def confusion_matrix(labels, predicted, classes):
    """Counts of (true, predicted) pairs, (classes, classes) int."""
    from sklearn import metrics as sk

    return sk.confusion_matrix(labels, predicted, labels=range(classes))


def auroc(positive, score):
    """Area under the ROC curve; None without positives or negatives. Both (N,), positive bool."""
    from sklearn import metrics as sk

    positives = int(np.sum(positive))
    # An area is a count of half (positive, negative) pairs. Rounded to one, equally good rankings
    # are equal to the last bit, and rounding errors do not choose between epochs.
    halves = 2 * positives * (len(positive) - positives)
    return round(sk.roc_auc_score(positive, score) * halves) / halves if halves else None


def _label_rows(truth, called, names):
    """{label: {score of REPORT: value}} of classes (N,) int, or of label sets (N, L) bool."""
    from sklearn import metrics as sk

    each = range(len(names))
    scores = sk.precision_recall_fscore_support(truth, called, labels=each, zero_division=np.nan)
    table = [[None if np.isnan(x) else float(x) for x in row] for row in np.transpose(scores)]
    return {
        name: {"Precision": precision, "Recall": recall, "F1": f1, "Support": int(support)}
        for name, (precision, recall, f1, support) in zip(names, table, strict=True)
    }


def single_label(labels, probabilities, names):
    """Accuracy, macro precision, recall, F1 and one-vs-rest AUROC; the last four per class too.

    labels (N,) int, probabilities (N, C), names the C classes. Returns Scores. Raises ValueError on
    NaN or no rows.
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        raise ValueError("scores need at least one row, and finite probabilities")
    predicted = probabilities.argmax(1)
    counts = confusion_matrix(labels, predicted, len(names))

    per_label = _label_rows(labels, predicted, names)
    for i, row in enumerate(per_label.values()):
        del row["Support"]
        row["AUROC"] = auroc(labels == i, probabilities[:, i])

    columns = {score: [row[score] for row in per_label.values()] for score in PER_LABEL}
    overall = {"Accuracy": float(accuracy_of(counts))}
    overall.update({score: float(np.mean([x or 0.0 for x in columns[score]])) for score in columns})
    if None in columns["AUROC"]:
        overall["AUROC"] = None

    return Scores(overall, per_label, counts.tolist(), undefined=_undefined(per_label))


# --- calibration ----------------------------------------------------------------------------------

BINS = 15  # of equal width, as in Guo et al. (2017)


def calibration(positive, probability, bins=BINS):
    """[(mean probability, share of positives, rows)] of the non-empty bins of equal width.

    A bin includes its upper edge, the first bin also 0, as in scikit-learn's calibration_curve.
    """
    from sklearn.calibration import calibration_curve

    seen, said = calibration_curve(positive, probability, n_bins=bins)
    edges = np.linspace(0, 1, bins + 1)
    rows = np.bincount(np.searchsorted(edges[1:-1], probability))
    return list(zip(said.tolist(), seen.tolist(), rows[rows > 0].tolist(), strict=True))


def gap(points):
    """Mean gap of probability and share of positives over bins, weighted by their rows."""
    return sum(rows * abs(said - seen) for said, seen, rows in points) / sum(rows for *_, rows in points)


def expected_calibration_error(positive, probability, bins=BINS):
    """ECE (Naeini et al., 2015): the gap over the bins of `calibration`."""
    return gap(calibration(positive, probability, bins))


def brier(truth, probabilities):
    """Brier score (1950): the mean squared error of probabilities.

    Of classes, truth (N,) int and probabilities (N, C), summed over the classes, so from 0 to 2. Of separate
    questions, both (N, L), the mean over all answers, from 0 to 1.
    """
    from sklearn import metrics as sk

    if truth.ndim == 2:
        return float(sk.brier_score_loss(truth.ravel(), probabilities.ravel(), pos_label=1))
    classes = range(probabilities.shape[1])
    exact = probabilities / probabilities.sum(1, keepdims=True)  # float32 sums to 1 only nearly
    return float(sk.brier_score_loss(truth, exact, labels=classes, scale_by_half=False))


def tempered(probabilities, temperature, separate=False):
    """Probabilities after temperature scaling (Guo et al., 2017): logits divided by it, the same shape.

    (..., C) are those of a softmax; of separate questions each is a sigmoid of its own. The order of the
    probabilities stays.
    """
    from scipy import special

    probabilities = np.asarray(probabilities, np.float64)
    if separate:
        return special.expit(special.logit(probabilities.clip(1e-7, 1 - 1e-7)) / temperature)
    return special.softmax(np.log(probabilities.clip(1e-30)) / temperature, axis=-1)


def fit_temperature(truth, probabilities):
    """The temperature of the lowest negative log-likelihood, between exp(-3) and exp(3).

    truth (N,) int and probabilities (N, C) of classes, or both (N, L) of separate questions. Where every
    answer is right, it is the lower end: the surer, the likelier.
    """
    from scipy.optimize import minimize_scalar

    separate = truth.ndim == 2

    def surprise(log_temperature):
        said = tempered(probabilities, np.exp(log_temperature), separate)
        chosen = np.where(truth, said, 1 - said) if separate else said[np.arange(len(said)), truth]
        return -np.log(chosen.clip(1e-30)).mean()

    return round(float(np.exp(minimize_scalar(surprise, bounds=(-3, 3), method="bounded").x)), 4)


def answer_calibration(right, said):
    """{"ECE", "Brier", "bins"} of answers: right (N,) bool, said (N,) the probability of each."""
    points = calibration(right, said)
    return {"ECE": gap(points), "Brier": brier(right[:, None], said[:, None]), "bins": points}


def likeliest_answers(truth, probabilities):
    """(which are right, their probability) of the answers that calibration is about, (N, L) each.

    truth and probabilities as for fit_temperature: of classes the likeliest one, so (N, 1).
    """
    if truth.ndim == 2:
        return truth, probabilities
    return (probabilities.argmax(1) == truth)[:, None], probabilities.max(1)[:, None]


def calibration_scores(truth, probabilities, temperature=None):
    """{"temperature", "plain": {"ECE", "Brier", "bins"}, "scaled": the same after scaling, or None}.

    truth and probabilities as for fit_temperature. Of classes ECE and bins are about the likeliest class: its
    probability, and how often it is the true one. Of separate questions they are about all answers together.
    """

    def scores(said):
        found = answer_calibration(*map(np.ravel, likeliest_answers(truth, said)))
        return found if truth.ndim == 2 else {**found, "Brier": brier(truth, said)}

    scaled = temperature and scores(tempered(probabilities, temperature, truth.ndim == 2))
    return {"temperature": temperature, "plain": scores(probabilities), "scaled": scaled}


# --- two classes ----------------------------------------------------------------------------------

BINARY = ("Accuracy", "Majority", "AUROC", "AUPRC", "RecallAtP80", "Brier", "ECE", "F1")


def average_precision(positive, score):
    """Area under the precision-recall curve: precision times the step in recall, over thresholds.

    positive (N,) bool, score (N,); None without positives.
    """
    from sklearn import metrics as sk

    return float(sk.average_precision_score(positive, score)) if np.any(positive) else None


def recall_at_precision(positive, score, precision=0.8):
    """Largest recall at this precision or more; 0 if none reaches it, None without positives."""
    from sklearn import metrics as sk

    if not np.any(positive):
        return None
    reached, recall, _ = sk.precision_recall_curve(positive, score)  # ends at precision 1, recall 0
    return float(recall[reached >= precision].max())


def binary(labels, probability, names):
    """Scores of two classes: labels (N,) 0 or 1, probability (N,) of class 1, names (of 0, of 1).

    Majority is the accuracy of always giving the commoner label.
    """
    from sklearn import metrics as sk

    base = single_label(labels, np.stack([1 - probability, probability], 1), names)
    positive = labels == 1
    overall = {
        "Accuracy": base.overall["Accuracy"],
        "Majority": float(max(positive.mean(), 1 - positive.mean())),
        "AUROC": auroc(positive, probability),
        "AUPRC": average_precision(positive, probability),
        "RecallAtP80": recall_at_precision(positive, probability),
        "Brier": float(sk.brier_score_loss(positive, probability, pos_label=1)),
        "ECE": expected_calibration_error(positive, probability),
        "F1": base.per_label[names[1]]["F1"],
    }
    return base._replace(overall=overall)


# --- several labels -------------------------------------------------------------------------------

REPORT = ("Precision", "Recall", "F1", "Support")
AVERAGES = ("micro", "macro", "weighted", "samples")
MULTI_LABEL = ("Accuracy", "MicroF1", "MacroF1", "WeightedF1", "SamplesF1")


def classification_report(truth, called, names):
    """{label: {score of REPORT: value}}, then the rows "micro avg" to "samples avg".

    truth, called (N, L) bool, L at least 2. An undefined score is None in the label's own row and
    counts as 0 in the averages.
    """
    from sklearn import metrics as sk

    report, total = _label_rows(truth, called, names), int(np.sum(truth))
    for average in AVERAGES:
        scores = sk.precision_recall_fscore_support(truth, called, average=average, zero_division=0)
        row = [*map(float, scores[:3]), total]
        report[f"{average} avg"] = dict(zip(REPORT, row, strict=True))
    return report


def _f1_of_sums(sums):
    """F1 of (..., 3) sums of hits, truly, called -> (...); nan where neither true nor called."""
    bottom = (sums[..., 1] + sums[..., 2]).astype(float)
    return np.divide(2.0 * sums[..., 0], bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)


def _macro_f1_of_sums(sums):
    """Macro-F1 of (..., L, 3) sums of hits, truly, called -> (...)."""
    return np.nan_to_num(_f1_of_sums(sums)).mean(-1)


def multi_label(truth, called, names):
    """Scores of label sets, truth and called (N, L) bool. Accuracy: share of sets exactly right."""
    table = classification_report(truth, called, names)
    overall = {"Accuracy": float((truth == called).all(1).mean())}
    overall.update({f"{a.capitalize()}F1": table[f"{a} avg"]["F1"] for a in AVERAGES})
    return Scores(overall, table, undefined=_undefined({name: table[name] for name in names}))


# --- spans ----------------------------------------------------------------------------------------

SPANS = ("Precision", "Recall", "F1")


def spans(tags, strict=False):
    """Entities of a sentence's BIO tags as [(start, stop, type)], stop excluded.

    By default as conlleval reads them: an I- tag that continues nothing begins an entity. strict:
    it belongs to none.
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


def span_scores(truth, called, types):
    """Precision, recall and F1 of exact spans with their type, overall (micro) and per type.

    truth, called: for each sentence its spans (start, stop, type).
    """
    index = {name: i for i, name in enumerate(types)}
    sums = np.zeros((len(types), 3), np.int64)  # hits, truly, called
    for true, predicted in zip(truth, called, strict=True):
        for column, members in enumerate((set(true) & set(predicted), true, predicted)):
            for *_, kind in members:
                sums[index[kind], column] += 1

    def ratio(top, bottom):
        return float(top / bottom) if bottom else None

    def row(hits, truly, calls):
        ratios = ratio(hits, calls), ratio(hits, truly), ratio(2 * hits, truly + calls)
        return dict(zip(SPANS, ratios, strict=True))

    per_type = {name: {**row(*sums[i]), "Support": int(sums[i, 1])} for name, i in index.items()}
    return Scores(row(*sums.sum(0)), per_type, undefined=_undefined(per_type))


# --- masked tokens --------------------------------------------------------------------------------

MASKED = ("Accuracy", "CrossEntropy", "Perplexity")


def masked_tokens(counts):
    """Accuracy, mean negative log-likelihood (nats) and perplexity, its exponential.

    counts (rows, 3): of each row the tokens guessed rightly, the tokens masked, the sum of -log p.
    """
    hits, masked, surprise = counts.sum(0)
    accuracy, entropy = float(hits / masked), float(surprise / masked)
    overall = dict(zip(MASKED, (accuracy, entropy, float(np.exp(entropy))), strict=True))
    return Scores(overall, {})


# --- notes that count several times, as a bootstrap draws them -----------------------------------


def weighted_sums(rows, score):
    """A function of weights (R, N) -> (R,): the score of weighted sums of rows (N, ...) of counts."""
    rows = np.asarray(rows, np.float32)  # exact up to 2**24
    return lambda weights: score(np.tensordot(weights, rows, 1))


def _share_of_sums(sums):
    """The first of (..., 2) sums over the second."""
    return sums[..., 0] / sums[..., 1]


def _ranked(positive, score, weights):
    """Weights of positives and of negatives that score at least as much, at each distinct score downwards.

    positive (N,) bool, score (N,), weights (R, N) -> (R, distinct scores) twice.
    """
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=np.nan))  # of rows that tie
    weights, positive = weights[:, order], positive[order]
    return tuple(np.cumsum(weights * side, 1, dtype=float)[:, last] for side in (positive, ~positive))


def weighted_auroc(positive, score, weights):
    """auroc under weights (R, N) -> (R,); NaN without positives or negatives."""
    hits, false = _ranked(positive, score, weights)
    steps = np.diff(false, prepend=0) * (hits + np.pad(hits, ((0, 0), (1, 0)))[:, :-1]) / 2
    pairs = hits[:, -1] * false[:, -1]
    return np.divide(steps.sum(1), pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def weighted_average_precision(positive, score, weights):
    """average_precision under weights (R, N) -> (R,); NaN without positives."""
    hits, false = _ranked(positive, score, weights)
    precision = np.divide(hits, hits + false, out=np.zeros_like(hits), where=hits + false > 0)
    total = hits[:, -1]
    steps = (np.diff(hits, prepend=0) * precision).sum(1)
    return np.divide(steps, total, out=np.full_like(total, np.nan), where=total > 0)


def _counted(truth, called):
    """Of each note and label whether it was hit, true, called: (N, L) bool twice -> (N, L, 3)."""
    return np.stack([truth & called, truth, called], -1)


def weighted_single_label(truth, called, probabilities):
    """{score: function of weights} for single_label; truth, called one-hot (N, C) bool."""
    counts = _counted(truth, called)

    def macro_auroc(weights):
        pairs = zip(truth.T, probabilities.T, strict=True)
        return np.mean([weighted_auroc(positive, score, weights) for positive, score in pairs], 0)

    return {
        "Accuracy": weighted_sums(counts.sum(1), _share_of_sums),
        "F1": weighted_sums(counts, _macro_f1_of_sums),
        "AUROC": macro_auroc,
    }


def weighted_binary(positive, called, probability):
    """{score: function of weights} for binary; positive, called (N,) bool, probability (N,) of positive."""
    right = np.stack([positive == called, np.ones_like(called)], 1)
    return {
        "Accuracy": weighted_sums(right, _share_of_sums),
        "AUROC": lambda weights: weighted_auroc(positive, probability, weights),
        "AUPRC": lambda weights: weighted_average_precision(positive, probability, weights),
    }


def weighted_multi_label(truth, called):
    """{score: function of weights} for multi_label; truth, called (N, L) bool."""
    counts = _counted(truth, called)
    right = (truth == called).all(1)
    return {
        "MicroF1": weighted_sums(counts.sum(1), _f1_of_sums),
        "MacroF1": weighted_sums(counts, _macro_f1_of_sums),
        "Accuracy": weighted_sums(np.stack([right, np.ones_like(right)], 1), _share_of_sums),
    }


def weighted_calibration(truth, probabilities):
    """{score: function of weights} for calibration_scores."""
    right, said = likeliest_answers(truth, probabilities)
    held = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], said)  # the bin of each answer
    apart = ((np.arange(BINS) == held[..., None]) * (said - right)[..., None]).sum(1)  # (N, BINS)
    if truth.ndim == 2:
        errors = np.square(probabilities - truth).mean(1)  # (N,)
    else:
        exact = probabilities / probabilities.sum(1, keepdims=True)
        errors = np.square(exact - (truth[:, None] == np.arange(exact.shape[1]))).sum(1)
    share = weighted_sums(np.stack([errors, np.ones_like(errors)], 1), _share_of_sums)
    gaps = weighted_sums(apart, lambda sums: np.abs(sums).sum(-1) / said.shape[1])
    return {"ECE": lambda weights: gaps(weights) / weights.sum(-1), "Brier": share}


def weighted_masked_tokens(counts):
    """{score: function of weights} for masked_tokens; counts (N, 3) as there."""
    entropy = weighted_sums(counts[:, [2, 1]], _share_of_sums)
    return {
        "Accuracy": weighted_sums(counts[:, [0, 1]], _share_of_sums),
        "CrossEntropy": entropy,
        "Perplexity": lambda weights: np.exp(entropy(weights)),
    }


def weighted_spans(counts):
    """{score: function of weights} for span_scores; counts (N, 3): hits, truly, called of each sentence."""
    return {
        "F1": weighted_sums(counts, _f1_of_sums),
        "Precision": weighted_sums(counts[:, [0, 2]], _share_of_sums),
        "Recall": weighted_sums(counts[:, [0, 1]], _share_of_sums),
    }


# --- how far to trust them ------------------------------------------------------------------------


def accuracy_of(counts):
    """Accuracy of confusion matrices (..., C, C) -> (...)."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))


def macro_f1_of(counts):
    """Macro-F1 of confusion matrices (..., C, C) -> (...)."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    return _macro_f1_of_sums(np.stack([hits, counts.sum(-1), counts.sum(-2)], -1))


def mcnemar(right_a, right_b):
    """Exact McNemar test (1947) of two models on the same notes: (only a right, only b right, p).

    right_a, right_b (N,) bool. Only notes on which they differ count; without a difference between
    the models, each such note goes either way, evenly. p is two-sided.
    """
    from scipy.stats import binomtest

    right_a, right_b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    differ = only_a + only_b
    return only_a, only_b, float(binomtest(only_a, differ).pvalue) if differ else 1.0
