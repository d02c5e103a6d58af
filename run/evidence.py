"""Scores of many runs over seeds, folds and test notes: means, intervals, tests against base.

Everything comes from run.json and predictions.csv of finished runs; the maths is in stats.py.
"""

import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

import stats
from cli import BadInput
from run.results import read_table
from run.untrusted import COMPARED, fitting, read_run

LEVEL = 0.05  # of the p values, after Holm's correction, below which a difference from base is significant


class SeedAnswers(NamedTuple):
    """What the runs of one seed answered: one run, or one for each fold, whose test notes are joined."""

    split: tuple  # fingerprints of the splits
    overall: dict  # {score: value} on all test notes
    weighted: dict  # {score: function of weights (R, N) -> (R,)}; empty without predictions.csv
    notes: tuple  # row ids
    clusters: tuple  # of each note its patient's or document's number


def read_answers(task, directories):
    """The SeedAnswers of the runs in some directories, one for each fold."""
    rows, clusters = [], []
    for fold, directory in enumerate(map(Path, directories)):
        table = read_table(directory / "predictions.csv")
        rows += table
        clusters += [(fold, row.get("cluster", f"row {at}")) for at, row in enumerate(table)]
    runs = [read_run(directory, *COMPARED) for directory in directories]
    split, overall = tuple(run.get("data", {}).get("split") for run in runs), runs[0]["test"]["overall"]
    if not rows:  # a task without one answer per note
        if len(directories) > 1:
            raise BadInput(f"{directories[0]}: no predictions.csv, so its folds cannot be joined")
        return SeedAnswers(split, overall, {}, (), ())
    with fitting(directories[0]):
        joined, weighted = task.rescored(rows)
    numbers = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    return SeedAnswers(
        split,
        joined if len(directories) > 1 else overall,
        weighted,
        tuple(row["row_id"] for row in rows),
        tuple(numbers[name] for name in clusters),
    )


class Scored(NamedTuple):
    """A score of one run over the seeds."""

    values: list  # of each seed
    resampled: np.ndarray | None  # (R, seeds): on each resample of the test notes


class Bootstrap:
    """Resamples of test notes, the same for all runs that answered the same notes."""

    def __init__(self):
        self.drawn = {}  # {(notes, clusters): weights}

    def score(self, answers, name):
        """The Scored of a score, from the SeedAnswers of each seed; None if a seed lacks it."""
        values = [seed.overall.get(name) for seed in answers]
        if None in values:
            return None
        same = {(seed.notes, seed.clusters) for seed in answers}
        if len(same) > 1 or any(name not in seed.weighted for seed in answers):
            return Scored(values, None)
        key = same.pop()
        if key not in self.drawn:
            self.drawn[key] = stats.cluster_weights(key[1])
        parts = np.array_split(self.drawn[key], 10)  # one at a time: a ranking takes several such arrays
        columns = [np.concatenate([seed.weighted[name](part) for part in parts]) for seed in answers]
        return Scored(values, np.stack(columns, 1))


def spread_cells(name, scored, answers, is_share=True):
    """Cells of one score: mean, least, most, standard deviation over the seeds, 95% interval.

    is_share: whether it lies between 0 and 1.
    """
    values, notes, clusters = scored.values, len(answers[0].notes), len(set(answers[0].clusters))
    cells = {name: statistics.mean(values), f"{name}_least": min(values), f"{name}_most": max(values)}
    if len(values) > 1:
        cells[f"{name}_sd"] = statistics.stdev(values)
    if scored.resampled is not None:
        variance = stats.variance_of_mean(values, scored.resampled, clusters)
        if is_share:
            low, high = stats.interval(cells[name], variance, notes)
        else:
            low, high = stats.positive_interval(cells[name], variance)
        cells |= {f"{name}_low": low, f"{name}_high": high}
    return cells


def base_cells(name, scored, base, clusters):
    """Cells of one score against base: the mean difference by seed, its 95% interval, p."""
    if len(scored.values) != len(base.values):
        return {}
    apart = statistics.mean(a - b for a, b in zip(scored.values, base.values, strict=True))
    cells = {f"{name}_from_base": apart}
    if scored.resampled is not None and base.resampled is not None:
        pair = (scored.values, base.values, scored.resampled, base.resampled)
        found = stats.difference(*pair, clusters)
        cells |= {f"{name}_from_base_low": found.low, f"{name}_from_base_high": found.high}
        cells[f"{name}_p"] = found.p
    return cells


def compare_runs(task, made):
    """{name: cells} of every headline score of runs, and whether they differ significantly from "base".

    made {name: [[run directory of each fold] of each seed]}. The first score is tested: `p_holm` is its p
    value after Holm's correction for all runs, `told` "better", "worse" or "no". A run that answered other
    notes than base is not compared with it.
    """
    answers = {name: [read_answers(task, folds) for folds in seeds] for name, seeds in made.items()}
    bootstrap, cells = Bootstrap(), {name: {} for name in made}
    for score in task.headline:
        scored = {name: bootstrap.score(seeds, score) for name, seeds in answers.items()}
        base = scored.get("base")
        for name, found in scored.items():
            if found is None:
                continue
            cells[name] |= spread_cells(score, found, answers[name], score not in task.unbounded)
            if base and same_notes(answers[name], answers["base"]):
                clusters = len(set(answers[name][0].clusters))
                cells[name] |= base_cells(score, found, base, clusters)
    mark(cells, next(iter(task.headline)))
    return cells


def same_notes(answers, others):
    """Whether all seeds of two runs answered the same test notes."""
    return len({(seed.split, seed.notes) for seed in [*answers, *others]}) == 1


def mark(cells, score):
    """Add p_holm and told to the cells of every run that was tested against base."""
    tested = [name for name in cells if name != "base" and f"{score}_p" in cells[name]]
    corrected = stats.holm([cells[name][f"{score}_p"] for name in tested])
    for name, p in zip(tested, corrected, strict=True):
        better = cells[name][f"{score}_from_base"] > 0
        told = ("better" if better else "worse") if p < LEVEL else "no"
        cells[name] |= {"p_holm": p, "told": told}


def evidence_facts(task, made):
    """How the figures of compare_runs() came about, for sweep.json and results.json."""
    seeds = next(iter(made.values()))
    answers = read_answers(task, seeds[0])
    return {
        "folds": len(seeds[0]),
        "notes": len(answers.notes),
        "clusters": len(set(answers.clusters)),
        "unit": task.row_unit or task.unit,
        "resamples": stats.RESAMPLES,
        "level": LEVEL,
    }
