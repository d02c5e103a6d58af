"""How far a score can be trusted, and whether two runs can be told apart: intervals and tests.

A score is an average over two things drawn by chance: the seeds of training and the test notes. With the
score x[s] of seed s on all notes, and c[s, t] the covariance of x[s] and x[t] if the notes were drawn again,
the mean over S seeds has the variance

    V = M / S + C      M: variance of x over the seeds, C: mean of c[s, t] over the pairs s != t

of Obuchowski and Rockette (1995, Communications in Statistics B 24:285) for one test read by several readers,
in the form of Hillis (2014, Statistics in Medicine 33:330); seeds are the readers, notes the cases. c comes
from a bootstrap that draws the notes of a patient, or the sentences of a document, together. M is at least
what c says of the notes' noise, mean c[s, s] - C: otherwise three seeds that happen to be equal would seem
sure. One seed has no M: then V = c[1, 1], and what is said holds for that one trained model.

M has S - 1 degrees of freedom, few, and C those of the clusters less one. V is given their harmonic mean,
each weighted by its share in V. Hillis takes the squares of the shares (Satterthwaite, 1946), which
is a little too sure with three seeds. experiments/coverage.py shows how often the intervals hold the truth,
docs/evidence.md what else was tried. Everything here is a pure function of numbers.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
FEWEST = 10  # patients or documents below which a bootstrap says nothing of chance


def cluster_weights(clusters, resamples=RESAMPLES, seed=0):
    """How often each note is drawn in each resample, (R, N) float32; notes of a cluster are drawn together.

    clusters (N,): what each note belongs to.
    """
    return np.concatenate([*weights_in_parts(clusters, resamples, seed)])


def weights_in_parts(clusters, resamples=RESAMPLES, seed=0, most=10**7):
    """Yield the same in parts, (r, N) each, of at most so many numbers: for many notes."""
    names, member = np.unique(clusters, return_inverse=True)
    generator, even = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    step = max(1, most // len(member))
    for start in range(0, resamples, step):
        drawn = generator.multinomial(len(names), even, size=min(step, resamples - start))
        yield drawn.astype(np.float32)[:, member]


class Variance(NamedTuple):
    """The two parts of V above, each with its degrees of freedom; seeds is 0 for one seed."""

    seeds: float
    notes: float
    seeds_df: int
    notes_df: int

    @property
    def total(self):
        """V."""
        return self.seeds + self.notes

    @property
    def df(self):
        """Degrees of freedom of V: the harmonic mean of those of its parts, each weighted by its share."""
        weighted = self.seeds / max(1, self.seeds_df) + self.notes / self.notes_df
        return self.total / weighted if weighted else float(self.notes_df)

    @property
    def reach(self):
        """How many standard errors a 95% interval reaches to either side."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.df))


def variance_of_mean(scores, resampled, clusters):
    """The Variance of a mean over seeds.

    scores (S,): of each seed on all notes; resampled (R, S): on each resample, NaN where undefined; clusters:
    how many were drawn from.
    """
    scores, resampled = np.asarray(scores, float), np.asarray(resampled, float)
    defined = resampled[np.isfinite(resampled).all(1)]
    count, freedom = len(scores), max(1, clusters - 1)
    if len(defined) < 2:
        return Variance(0.0, 0.0, count - 1, freedom)
    covariance = np.cov(defined, rowvar=False).reshape(count, count) * (clusters / freedom)  # a bootstrap's
    if count == 1:  # is too small by (G - 1) / G
        return Variance(0.0, float(covariance[0, 0]), 0, freedom)
    own = np.trace(covariance) / count
    shared = max(0.0, (covariance.sum() - own * count) / (count * (count - 1)))
    seeds, noise = scores.var(ddof=1), own - shared  # the seeds vary by the notes' noise at least
    seeds_df = count - 1 if seeds >= noise else freedom
    return Variance(float(max(seeds, noise) / count), float(shared), seeds_df, freedom)


def interval(mean, variance, notes):
    """A 95% interval (low, high) of a score from 0 to 1.

    Wilson's (1927) for a share of n notes, where n is how many independent notes would have the variance V:
    mean (1 - mean) / V, as for surveys (Korn and Graubard, 1998). With few errors V itself is hardly known;
    so the ratio of V to that of `notes` independent notes is drawn towards 1 with the weight of one error,
    and a score of 1 has the interval of `notes` notes without an error.
    """
    errors = notes * mean * (1 - mean)
    n = notes * (errors + 1) / (notes**2 * variance.total + 1)
    t2 = variance.reach**2
    middle, half = mean + t2 / (2 * n), np.sqrt(t2 * (mean * (1 - mean) / n + t2 / (4 * n * n)))
    return float((middle - half) / (1 + t2 / n)), float((middle + half) / (1 + t2 / n))


def positive_interval(mean, variance):
    """A 95% interval (low, high) of a score that is positive and may exceed 1, such as a perplexity.

    On the scale of its logarithm, whose variance is V / mean^2 to first order, so that it stays positive.
    """
    factor = float(np.exp(variance.reach * np.sqrt(variance.total) / mean))
    return mean / factor, mean * factor


def interval_of(mean, variance, notes, unbounded):
    """The 95% interval (low, high) of a share, or of a positive score that may exceed 1."""
    return positive_interval(mean, variance) if unbounded else interval(mean, variance, notes)


def intervals_of(scores, weighted, clusters, unbounded=()):
    """{score: 95% interval (low, high)} of what one trained model answered; {} of fewer than FEWEST clusters.

    scores {score: value or None}; weighted {score: function of how often each note is drawn, (R, N) -> (R,)};
    clusters (N,) numbers; unbounded: positive scores that may exceed 1.
    """
    count, found = len(set(clusters)), {}
    names = [name for name in weighted if scores.get(name) is not None]
    if count < FEWEST or not names:
        return found
    parts = [[weighted[name](weights) for name in names] for weights in weights_in_parts(clusters)]
    for name, resampled in zip(names, np.concatenate(parts, 1), strict=True):
        variance = variance_of_mean([scores[name]], resampled[:, None], count)
        found[name] = interval_of(scores[name], variance, len(clusters), name in unbounded)
    return found


class Difference(NamedTuple):
    """A run less another: mean, 95% interval, two-sided p."""

    mean: float
    low: float
    high: float
    p: float


def difference(scores, others, resampled, others_resampled, clusters):
    """The Difference of two runs with the same seeds on the same notes; shapes as in variance_of_mean.

    A paired t test: V of the differences by seed, on the same resamples for both.
    """
    from scipy.stats import t

    by_seed = np.asarray(scores, float) - np.asarray(others, float)
    variance = variance_of_mean(by_seed, np.subtract(resampled, others_resampled), clusters)
    mean, error = float(by_seed.mean()), np.sqrt(variance.total)
    if not error:
        return Difference(mean, mean, mean, float(mean == 0))
    half = float(error * variance.reach)
    return Difference(mean, mean - half, mean + half, float(2 * t.sf(abs(mean) / error, variance.df)))


def holm(ps):
    """p values after Holm's (1979) correction for how many there are, in their order."""
    order, corrected, largest = np.argsort(ps), np.empty(len(ps)), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[index]))
        corrected[index] = largest
    return corrected.tolist()
