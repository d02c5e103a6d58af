"""How often the 95% intervals of stats.py hold the truth, and how often its test finds what is not there.

    python -m experiments.coverage                  docs/results/statistics/coverage.csv; 25 minutes on a core
    python -m experiments.coverage --repeats 50 --out FILE

Made-up runs on made-up notes. Whether seed s of a run answers note i rightly is a threshold on a sum of
normal variables: of the seed (its standard deviation in points of accuracy is `seed_sd`), of the note, of the
patient whose note it is, of the run on this note, and of nothing else. `shared` is the share of the variance
without the seed's that all seeds of a run have in common: their errors are correlated. The truth is the mean
over all seeds and notes; of a single seed it is that seed's own. "percentile" is the plain bootstrap, which
draws seeds and notes with replacement; "satterthwaite" our V with the usual degrees of freedom.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t

import stats
from cli import Parser, number, run_script
from files import write_csv
from metrics import macro_f1_of, weighted_auroc

OUT = Path(__file__).resolve().parent.parent / "docs" / "results" / "statistics" / "coverage.csv"
LABELS = np.array([0.68, 0.14, 0.08, 0.05, 0.05])  # shares of the five symptoms in MTSamples
POSITIVE = 0.2  # share of the positive class, for AUROC
ALIKE = 0.8  # share of a note's difficulty that two runs have in common
RESAMPLES = 400


class Case(NamedTuple):
    """What is simulated; `level` is the accuracy, or for AUROC the AUROC."""

    score: str
    seeds: int
    notes: int
    per_patient: int
    level: float
    seed_sd: float
    shared: float


def cases():
    """All cases of the published table."""
    sizes = ((194, 1), (967, 1), (1000, 5), (4280, 1))
    found = []
    for seeds in (1, 3, 10):
        for notes, per_patient in sizes:
            for level in (0.6, 0.9, 0.99):
                for seed_sd in (0.0, 0.003, 0.02) if seeds > 1 else (0.0,):
                    if seed_sd * 2 > 1 - level:
                        continue  # seeds could not differ so much
                    for shared in (0.5, 0.95):
                        found.append(Case("accuracy", seeds, notes, per_patient, level, seed_sd, shared))
    for score, level in (("macro-F1", 0.9), ("AUROC", 0.7)):
        for seeds in (1, 3, 10):
            found += [Case(score, seeds, notes, 1, level, 0.005, 0.8) for notes in (194, 967)]
    return found


class Truth(NamedTuple):
    """What two runs of a case are drawn from."""

    mean: float  # of the normal variable, of both runs
    seed_sd: float  # of that variable
    true: float  # score over all seeds


def truth_of(case):
    """The Truth of a case: of a sum that has variance 1 without the seed's part."""
    middle = norm.ppf(case.level)
    seed_sd = case.seed_sd / norm.pdf(middle)
    mean = middle * np.sqrt(1 + seed_sd**2)
    at, weight = np.polynomial.hermite_e.hermegauss(21)
    by_seed = score_of_accuracy(case.score, norm.cdf(mean + seed_sd * at))
    return Truth(float(mean), float(seed_sd), float((by_seed * weight).sum() / weight.sum()))


def score_of_accuracy(score, accuracy):
    """A score in the limit of many notes, (...), of the accuracy (...); AUROC is its own."""
    if score != "macro-F1":
        return accuracy
    accuracy = np.asarray(accuracy)[..., None]
    wrong = (LABELS * (1 - accuracy) / (1 - LABELS)).sum(-1, keepdims=True)
    called = LABELS * accuracy + LABELS * (wrong - LABELS * (1 - accuracy) / (1 - LABELS))
    return (2 * LABELS * accuracy / (LABELS + called)).mean(-1)


def draw_runs(case, truth, generator):
    """Two equal runs: (shift (2, seeds, 1), what notes add (2, seeds, N), score in the limit (2, seeds)).

    The sum of the first two is above 0 where an answer is right.
    """
    patients = case.notes // case.per_patient
    of = np.repeat(np.arange(patients), case.per_patient)

    def noise(*shape):
        own = generator.standard_normal((*shape, case.notes))
        if case.per_patient == 1:
            return own
        return np.sqrt(0.7) * own + np.sqrt(0.3) * generator.standard_normal((*shape, patients))[..., of]

    difficulty = np.sqrt(ALIKE) * noise(1, 1) + np.sqrt(1 - ALIKE) * noise(2, 1)
    shift = truth.mean + truth.seed_sd * generator.standard_normal((2, case.seeds, 1))
    own = np.sqrt(1 - case.shared) * noise(2, case.seeds)
    limit = score_of_accuracy(case.score, norm.cdf(shift[..., 0]))
    return shift, np.sqrt(case.shared) * difficulty + own, limit


def scored(case, shift, added, weights, generator):
    """(scores (2, seeds), resampled (R, 2, seeds)) of two runs that answered the same notes."""
    once = np.ones((1, case.notes), np.float32)
    every = np.concatenate([once, weights])
    if case.score == "accuracy":
        right = (shift + added > 0).reshape(-1, case.notes)
        values = every @ right.T.astype(np.float32) / case.notes
    elif case.score == "AUROC":
        positive = generator.random(case.notes) < POSITIVE
        # two normal variables of variance 1; so far apart, a positive exceeds a negative with Phi(shift)
        said = (added + np.sqrt(2) * shift * positive).reshape(-1, case.notes)
        values = np.stack([weighted_auroc(positive, row, every) for row in said], 1)
    else:
        label = generator.choice(len(LABELS), case.notes, p=LABELS)
        other = np.array([generator.choice(len(LABELS), case.notes, p=LABELS) for _ in range(2)])
        while (same := other == label).any():  # a wrong answer is another label
            other[same] = generator.choice(len(LABELS), same.sum(), p=LABELS)
        called = np.where(shift + added > 0, label, other[:, None])  # (2, seeds, N)
        cell = (label * len(LABELS) + called).reshape(-1, case.notes)
        tables = np.eye(len(LABELS) ** 2, dtype=np.float32)[cell]  # (2 * seeds, N, cells)
        counts = np.stack([every @ table for table in tables], 1)
        values = macro_f1_of(counts.reshape(*counts.shape[:2], len(LABELS), len(LABELS)))
    values = values.reshape(-1, 2, case.seeds)
    return values[0], values[1:]


def simulate(case, repeats, seed=0):
    """Shares of the repeats: truth within our interval, within two others; test that finds a difference."""
    generator, truth = np.random.default_rng(seed), truth_of(case)
    patients = np.arange(case.notes) // case.per_patient
    clusters = int(patients[-1]) + 1
    weights = stats.cluster_weights(patients, RESAMPLES, seed)
    seeds_drawn = generator.multinomial(case.seeds, np.full(case.seeds, 1 / case.seeds), RESAMPLES)
    hits, ours, widths = np.zeros(3), 0, []
    for _ in range(repeats):
        shift, added, limit = draw_runs(case, truth, generator)
        values, resampled = scored(case, shift, added, weights, generator)
        true = truth.true if case.seeds > 1 else limit[0, 0]

        mean = float(values[0].mean())
        variance = stats.variance_of_mean(values[0], resampled[:, 0], clusters)
        low, high = stats.interval(mean, variance, case.notes)
        percentile = (resampled[:, 0] * seeds_drawn).sum(1) / case.seeds
        intervals = ((low, high), np.quantile(percentile, [0.025, 0.975]), satterthwaite(mean, variance))
        hits += [bottom <= true <= top for bottom, top in intervals]
        widths.append(high - low)

        if case.seeds == 1:  # the two models do differ: compare them with their own distance taken off
            values = values - limit
            resampled = resampled - limit
        found = stats.difference(values[0], values[1], resampled[:, 0], resampled[:, 1], clusters)
        ours += found.p < 0.05
    return [*(hits / repeats).tolist(), ours / repeats, float(np.mean(widths))]


def satterthwaite(mean, variance):
    """The interval mean +- t V**0.5 with Satterthwaite's degrees of freedom."""
    seeds, notes = variance.seeds, variance.notes
    parts = seeds**2 / max(1, variance.seeds_df) + notes**2 / variance.notes_df
    half = t.ppf(0.975, variance.total**2 / parts) * np.sqrt(variance.total) if parts else 0.0
    return mean - half, mean + half


HEADER = [*Case._fields, "repeats", "coverage", "percentile", "satterthwaite", "false positives", "width"]


def main(argv=None):
    """Simulate every case, print it, write the table."""
    parser = Parser(prog="experiments.coverage", description=__doc__.splitlines()[0])
    count = number(int, 1, 10**6)
    parser.add_argument("--repeats", type=count, default=4000, help="made-up experiments per case (4000)")
    parser.add_argument("--out", default=str(OUT), help="CSV to write (docs/results/statistics/coverage.csv)")
    args = parser.parse_args(argv)
    rows = []
    for at, case in enumerate(cases()):
        rows.append([*case, args.repeats, *simulate(case, args.repeats, seed=at)])
        print(*case, *(f"{value:.3f}" for value in rows[-1][-5:]), flush=True)
    write_csv(args.out, HEADER, rows)


if __name__ == "__main__":
    run_script(main)
