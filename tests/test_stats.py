"""Intervals and tests over seeds and notes: against formulas, scikit-learn, and by simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_rel
from sklearn import metrics as sk

import metrics
import stats
from experiments import coverage


def test_one_seeds_interval_of_a_share_is_wilsons():
    for right, notes in ((150, 194), (193, 194), (194, 194), (0, 30)):
        share = right / notes
        variance = stats.Variance(0.0, share * (1 - share) / notes, 0, 10**6)
        expected = binomtest(right, notes).proportion_ci(0.95, "wilson")
        assert stats.interval(share, variance, notes) == pytest.approx(
            (expected.low, expected.high), abs=1e-4
        )


def test_the_variance_is_that_of_both_parts():
    generator = np.random.default_rng(0)
    x = generator.random((3, 500)) < 0.8  # three seeds whose errors have nothing in common
    clusters = np.arange(500) // 2
    weights = stats.cluster_weights(clusters, 4000)
    assert weights.shape == (4000, 500) and (weights[:, ::2] == weights[:, 1::2]).all()
    assert (weights.sum(1) == 500).all()
    scores, resampled = x.mean(1), weights @ x.T / 500
    found = stats.variance_of_mean(scores, resampled, 250)
    assert found.seeds == pytest.approx(scores.var(ddof=1) / 3) and (found.seeds_df, found.notes_df) == (
        2,
        249,
    )
    means = (x - scores[:, None]).reshape(3, 250, 2).sum(2) / 500  # of pairs
    covariance = means @ means.T * 250 / 249
    shared = (covariance.sum() - np.trace(covariance)) / 6
    assert found.notes == pytest.approx(max(0, shared), abs=3e-5)
    same = stats.variance_of_mean(np.full(3, 0.8), resampled, 250)  # equal by chance: the notes' noise counts
    assert same.seeds == pytest.approx((np.trace(covariance) / 3 - same.notes) / 3, rel=0.1)
    assert (same.seeds_df, same.notes) == (249, found.notes)
    alone = stats.variance_of_mean(scores[:1], resampled[:, :1], 250)
    assert alone.notes == pytest.approx(covariance[0, 0], rel=0.1) and (alone.seeds, alone.df) == (0, 249)
    assert stats.Variance(1.0, 0.0, 2, 99).df == 2 and stats.Variance(1.0, 1.0, 2, 99).df == pytest.approx(
        396 / 101
    )
    undefined = np.full((5, 1), np.nan)
    assert stats.variance_of_mean([0.5], undefined, 9).total == 0


def test_a_difference_of_seeds_alone_is_a_paired_t_test():
    a, b = np.array([0.8, 0.82, 0.85, 0.81]), np.array([0.79, 0.8, 0.8, 0.8])
    still = np.repeat([a], 50, 0), np.repeat([b], 50, 0)  # no note matters
    found, expected = stats.difference(a, b, *still, 100), ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.mean, found.high) == pytest.approx((low, (a - b).mean(), high))
    assert stats.difference(a, a, still[0], still[0], 100) == (0, 0, 0, 1)
    notes = np.random.default_rng(0).normal(0, 0.01, (4000, 1))  # one seed: no seed matters
    found = stats.difference([0.82], [0.8], 0.82 + notes, np.full_like(notes, 0.8), 50)
    assert found.p == pytest.approx(2 * t.sf(0.02 / (notes.std() * np.sqrt(50 / 49)), 49), rel=0.01)


def test_a_positive_score_has_an_interval_on_its_logarithms_scale():
    generator = np.random.default_rng(0)
    surprise = generator.exponential(2.0, (400, 300))  # 400 studies of 300 tokens
    held = []
    for row in surprise:
        variance = stats.Variance(0.0, np.exp(row.mean()) ** 2 * row.var(ddof=1) / 300, 0, 299)
        low, high = stats.positive_interval(np.exp(row.mean()), variance)
        assert low * high == pytest.approx(np.exp(2 * row.mean()))
        held.append(low < np.exp(2.0) < high)
    assert 0.92 < np.mean(held) < 0.98


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0] and stats.holm([]) == []


@pytest.mark.parametrize("seed", range(4))
def test_weighted_scores_are_those_of_notes_that_count_so_often(seed):
    generator = np.random.default_rng(seed)
    labels, p = generator.integers(0, 3, 80), generator.dirichlet(np.ones(3), 80).round(1 + seed % 2)
    weights = generator.integers(0, 4, (5, 80)).astype(np.float32)
    truth, called = np.eye(3, dtype=bool)[labels], np.eye(3, dtype=bool)[p.argmax(1)]
    found = {name: score(weights) for name, score in metrics.weighted_single_label(truth, called, p).items()}
    positive, said = labels == 1, p[:, 1]
    found |= {f"two {k}": f(weights) for k, f in metrics.weighted_binary(positive, said > 0.5, said).items()}
    sets = truth | np.roll(truth, 1, 0), called
    found |= {f"sets {name}": score(weights) for name, score in metrics.weighted_multi_label(*sets).items()}
    for i, w in enumerate(weights):
        rows = np.repeat(np.arange(80), w.astype(int))
        each = metrics.single_label(labels[rows], p[rows], list("abc")).overall
        aurocs = [sk.roc_auc_score(labels == c, p[:, c], sample_weight=w) for c in range(3)]
        two = metrics.binary(positive[rows].astype(int), said[rows], ["no", "yes"]).overall
        several = metrics.multi_label(sets[0][rows], sets[1][rows], list("abc")).overall
        expected = {name: each[name] for name in ("Accuracy", "F1")} | {"AUROC": np.mean(aurocs)}
        expected |= {f"two {name}": two[name] for name in ("Accuracy", "AUROC", "AUPRC")}
        expected |= {f"sets {name}": several[name] for name in ("Accuracy", "MicroF1", "MacroF1")}
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected, abs=1e-6)
    assert np.isnan(metrics.weighted_auroc(positive, said, np.zeros((1, 80)))).all()
    assert np.isnan(metrics.weighted_average_precision(positive, said, np.zeros((1, 80)))).all()


@pytest.mark.parametrize(
    "case",
    [
        coverage.Case("accuracy", 1, 194, 1, 0.99, 0.0, 0.95),
        coverage.Case("accuracy", 3, 300, 3, 0.9, 0.02, 0.8),
        coverage.Case("accuracy", 10, 194, 1, 0.9, 0.003, 0.95),
        coverage.Case("macro-F1", 3, 194, 1, 0.9, 0.005, 0.8),
    ],
    ids=str,
)
def test_intervals_hold_the_truth_and_equal_runs_are_not_told_apart(case):
    held, *_, false, width = coverage.simulate(case, 300)
    assert 0.915 <= held <= 0.99 and false <= 0.085 and 0 < width < 0.3  # 300 repeats: +- 0.025 at 0.95


def test_intervals_of_one_model_draw_clusters_whole_and_leave_out_what_is_undefined():
    right = np.repeat(np.random.default_rng(0).random(40) < 0.7, 10).astype(np.float32)
    weighted = {
        "share": lambda drawn: drawn @ right / drawn.sum(1),
        "sometimes": lambda drawn: np.where(drawn[:, 0] % 2, drawn @ right / drawn.sum(1), np.nan),
        "none": lambda drawn: drawn @ right,
    }
    scores = {"share": float(right.mean()), "sometimes": float(right.mean()), "none": None, "other": 0.5}
    alone = stats.intervals_of(scores, weighted, list(range(400)))
    together = stats.intervals_of(scores, weighted, np.repeat(range(40), 10).tolist())
    assert alone.keys() == together.keys() == {"share", "sometimes"}
    wide, narrow = (found["share"][1] - found["share"][0] for found in (together, alone))
    assert wide > 2.5 * narrow  # a cluster is all right or all wrong: sqrt(10) times
    assert together["sometimes"] == pytest.approx(together["share"], abs=0.03)
    wilson = binomtest(int(right.sum()), 400).proportion_ci(method="wilson")
    assert alone["share"] == pytest.approx(tuple(wilson), abs=0.005)
    assert stats.intervals_of(scores, weighted, [0] * 390 + list(range(10)))  # ten clusters
    assert stats.intervals_of(scores, weighted, [0] * 391 + list(range(9))) == {}


def test_resamples_in_parts_are_those_drawn_at_once():
    clusters = [0, 0, 1, 2, 2, 2]
    parts = list(stats.weights_in_parts(clusters, 50, seed=3, most=40))
    assert len(parts) > 5 and np.array_equal(np.concatenate(parts), stats.cluster_weights(clusters, 50, 3))
