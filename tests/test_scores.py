"""The scores of each kind of task, against scikit-learn and seqeval."""

import functools
import itertools

import numpy as np
import pytest
from seqeval.metrics import v1
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support
from seqeval.scheme import IOB2, Entities
from sklearn import metrics as sk

import metrics


@pytest.mark.parametrize("seed", range(6))
def test_binary_scores_equal_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 200)
    probability = np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    probability = probability.round(2 if seed % 2 else 6)  # with ties
    ours = metrics.binary(labels, probability, ["no", "yes"])
    precision, recall, _ = sk.precision_recall_curve(labels, probability)
    expected = {
        "Accuracy": sk.accuracy_score(labels, probability > 0.5),
        "Majority": max(labels.mean(), 1 - labels.mean()),
        "AUROC": sk.roc_auc_score(labels, probability),
        "AUPRC": sk.average_precision_score(labels, probability),
        "RecallAtP80": recall[precision >= 0.8].max(),
        "Brier": sk.brier_score_loss(labels, probability),
        "F1": sk.f1_score(labels, probability > 0.5),
    }
    for name, value in expected.items():
        assert ours.overall[name] == pytest.approx(value, abs=1e-12), name
    edges = itertools.pairwise(np.linspace(0, 1, 16))  # a bin includes its upper edge, the first also 0
    bins = [(probability <= high) & ((probability > low) | (low == 0)) for low, high in edges]
    gaps = [abs(probability[b].mean() - labels[b].mean()) * b.mean() for b in bins if b.any()]
    assert ours.overall["ECE"] == pytest.approx(sum(gaps))
    assert metrics.average_precision(np.zeros(3, bool), np.arange(3.0)) is None
    assert metrics.recall_at_precision(np.array([False, True]), np.array([0.9, 0.1])) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_classification_report_equals_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    names = [f"label {i}" for i in range(5)]
    truth, called = generator.random((2, 60, 5)) < [0.5, 0.3, 0.1, 0.05, 0.0 if seed % 2 else 0.02]
    theirs = sk.classification_report(truth, called, target_names=names, output_dict=True, zero_division=0)
    ours = metrics.classification_report(truth, called, names)
    assert list(ours) == list(theirs)
    for name, row in ours.items():
        for score, key in (
            ("Precision", "precision"),
            ("Recall", "recall"),
            ("F1", "f1-score"),
            ("Support", "support"),
        ):
            assert (row[score] or 0.0) == pytest.approx(theirs[name][key]), (name, score)
    scores = metrics.multi_label(truth, called, names)
    assert scores.overall["Accuracy"] == pytest.approx(sk.accuracy_score(truth, called))
    assert scores.overall["MicroF1"] == pytest.approx(sk.f1_score(truth, called, average="micro"))
    if seed % 2:
        assert scores.per_label["label 4"]["Recall"] is None  # never true: undefined, not 0


def random_tags(generator, lengths, tags=("O", "B-x", "I-x", "B-y", "I-y")):
    return [[str(tag) for tag in generator.choice(tags, length)] for length in lengths]


@pytest.mark.parametrize("seed", range(20))
def test_spans_and_their_scores_equal_seqeval_in_both_modes(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, 40)
    truth, called = random_tags(generator, lengths), random_tags(generator, lengths)
    for tags in truth + called:
        assert metrics.spans(tags) == [(a, b + 1, kind) for kind, a, b in get_entities(tags)]
        strict = [(e.start, e.end, e.tag) for e in Entities([tags], scheme=IOB2).entities[0]]
        assert metrics.spans(tags, strict=True) == strict
    for strict in (False, True):
        reference = (
            functools.partial(v1.precision_recall_fscore_support, scheme=IOB2)
            if strict
            else precision_recall_fscore_support
        )
        ours = metrics.span_scores(
            [metrics.spans(t, strict) for t in truth], [metrics.spans(t, strict) for t in called], ["x", "y"]
        )
        theirs = reference(truth, called, average="micro", zero_division=0)
        assert [ours.overall[name] for name in metrics.SPANS] == pytest.approx(list(theirs[:3]))
        per_type = np.array(reference(truth, called, average=None, zero_division=0))
        assert np.allclose(
            [[ours.per_label[kind][name] for name in (*metrics.SPANS, "Support")] for kind in "xy"],
            per_type.T,
        )


def test_masked_token_scores_are_sums_over_rows():
    counts = np.array([[1, 2, 3.0], [0, 1, 2.0], [3, 3, 1.0]])
    scores = metrics.masked_tokens(counts)
    assert scores.overall == {"Accuracy": 4 / 6, "CrossEntropy": 1.0, "Perplexity": pytest.approx(np.e)}
