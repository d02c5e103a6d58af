"""Scores of many runs over seeds, folds and test notes: means, intervals, tests against base.

Everything comes from run.json and predictions.csv of finished runs; the maths is in stats.py.
"""

import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

import stats
from cli import BadInput
from run.results import calibration_cells, read_table
from run.untrusted import COMPARED, fitting, read_run

LEVEL = 0.05  # of the p values, after Holm's correction, below which a difference from base is significant


CALIBRATION = ("ECE", "Brier", "ECE_scaled", "Brier_scaled")  # not shares; less is better


class SeedAnswers(NamedTuple):
    """What the runs of one seed answered: one run, or one for each fold, whose test notes are joined."""

    split: tuple  # fingerprints of the splits
    overall: dict  # {score: value} on all test notes
    weighted: dict  # {score: function of weights (R, N) -> (R,)}; empty without predictions.csv
    notes: tuple  # row ids
    clusters: tuple  # of each note its patient's or document's number


class Answered(NamedTuple):
    """The rows of predictions.csv of one seed's runs, those of all folds."""

    rows: list
    clusters: list  # of each row its patient or document
    temperatures: list  # of each row that of its run, or None
    split: tuple  # fingerprints of the splits
    own: dict  # {score: value} as the run itself has them; {} of several folds, which are scored joined
    place: str  # the first directory


def read_rows_of(directories):
    """The Answered of the runs in some directories, one for each fold. BadInput for folds without rows."""
    runs = [read_run(directory, *COMPARED) for directory in directories]
    rows, clusters, temperatures = [], [], []
    for fold, (directory, run) in enumerate(zip(directories, runs, strict=True)):
        table = read_table(Path(directory) / "predictions.csv")
        rows += table
        clusters += [(fold, row.get("cluster", f"row {at}")) for at, row in enumerate(table)]
        temperatures += [run.get("task", {}).get("temperature")] * len(table)
    if len(runs) > 1 and not rows:  # a task without one answer per note
        raise BadInput(f"{directories[0]}: no predictions.csv, so its folds cannot be joined")
    test, split = runs[0]["test"], tuple(run.get("data", {}).get("split") for run in runs)
    own = {**calibration_of(test), **test["overall"]} if len(runs) == 1 else {}
    return Answered(rows, clusters, temperatures, split, own, str(directories[0]))


def only_rows(answered, ids):
    """Of an Answered the rows with these row ids. Raises BadInput if one of them is not there."""
    at = [i for i, row in enumerate(answered.rows) if row["row_id"] in ids]
    if len(at) != len(ids):
        raise BadInput(f"{answered.place}: its test notes are not those of --data any more; train it again")
    lists = ([column[i] for i in at] for column in answered[:3])
    return Answered(*lists, answered.split, {}, answered.place)


def score_answers(task, answered):
    """The SeedAnswers of an Answered."""
    if not answered.rows:
        return SeedAnswers(answered.split, answered.own, {}, (), ())
    with fitting(answered.place):
        joined, weighted = task.rescored(answered.rows)
        calibrated = task.recalibrated(answered.rows, answered.temperatures)
        once = np.ones((1, len(answered.rows)), np.float32)
        joined |= {name: float(score(once)[0]) for name, score in calibrated.items()}
    numbers = {name: at for at, name in enumerate(dict.fromkeys(answered.clusters))}
    return SeedAnswers(
        answered.split,
        {**joined, **answered.own},
        {**weighted, **calibrated},
        tuple(row["row_id"] for row in answered.rows),
        tuple(numbers[name] for name in answered.clusters),
    )


def read_answers(task, directories):
    """The SeedAnswers of the runs in some directories, one for each fold."""
    return score_answers(task, read_rows_of(directories))


def calibration_of(test):
    """{score of CALIBRATION: value} of a run's test scores; what there is."""
    cells = calibration_cells(test.get("calibration"))
    return {name: cells[name.lower()] for name in CALIBRATION if name.lower() in cells}


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


def spread_cells(name, scored, answers, unbounded=()):
    """Cells of one score: mean, least, most, standard deviation over the seeds, 95% interval.

    unbounded: positive scores that are no shares. Those of CALIBRATION have their mean alone.
    """
    values, notes, clusters = scored.values, len(answers[0].notes), len(set(answers[0].clusters))
    if name in CALIBRATION:
        return {name: statistics.mean(values)}
    cells = {name: statistics.mean(values), f"{name}_least": min(values), f"{name}_most": max(values)}
    if len(values) > 1:
        cells[f"{name}_sd"] = statistics.stdev(values)
    if scored.resampled is not None and clusters >= stats.FEWEST:
        variance = stats.variance_of_mean(values, scored.resampled, clusters)
        low, high = stats.interval_of(cells[name], variance, notes, name in unbounded)
        cells |= {f"{name}_low": low, f"{name}_high": high}
    return cells


def base_cells(name, scored, base, clusters):
    """Cells of one score against base: the mean difference by seed, its 95% interval, p.

    ECE has the difference alone. By chance it is too high, and the more so the less sure a run is of its
    answers, so two runs can differ in it that are calibrated alike.
    """
    if len(scored.values) != len(base.values):
        return {}
    apart = statistics.mean(a - b for a, b in zip(scored.values, base.values, strict=True))
    cells, known = {f"{name}_from_base": apart}, scored.resampled is not None and base.resampled is not None
    if known and clusters >= stats.FEWEST and not name.startswith("ECE"):
        pair = (scored.values, base.values, scored.resampled, base.resampled)
        found = stats.difference(*pair, clusters)
        cells |= {f"{name}_from_base_low": found.low, f"{name}_from_base_high": found.high}
        cells[f"{name}_p"] = found.p
    return cells


def compare_runs(task, made):
    """{name: cells} of the headline scores of runs and of their calibration, and of what differs from "base".

    made {name: [[run directory of each fold] of each seed]}. The first score is tested: `p_holm` is its p
    value after Holm's correction for all runs, `told` "better", "worse" or "no"; so is the Brier score
    (`Brier_p_holm`, `Brier_told`). A run that answered other notes than base is not compared with it.
    """
    answers = {name: [read_answers(task, folds) for folds in seeds] for name, seeds in made.items()}
    cells = score_cells_of(task, answers, dict.fromkeys((*task.headline, *CALIBRATION)))
    mark(cells, next(iter(task.headline)))
    mark(cells, "Brier", "Brier_", less_is_better=True)
    return cells


def score_cells_of(task, answers, scores):
    """{name: cells} of some scores, from the SeedAnswers of each run and seed."""
    bootstrap, cells = Bootstrap(), {name: {} for name in answers}
    for score in scores:
        scored = {name: bootstrap.score(seeds, score) for name, seeds in answers.items()}
        base = scored.get("base")
        for name, found in scored.items():
            if found is None:
                continue
            cells[name] |= spread_cells(score, found, answers[name], task.unbounded)
            if base and same_notes(answers[name], answers["base"]):
                clusters = len(set(answers[name][0].clusters))
                cells[name] |= base_cells(score, found, base, clusters)
    return cells


def same_notes(answers, others):
    """Whether all seeds of two runs answered the same test notes."""
    return len({(seed.split, seed.notes) for seed in [*answers, *others]}) == 1


def mark(cells, score, prefix="", less_is_better=False, base=lambda name: name == "base"):
    """Add p_holm and told, behind a prefix, to the cells of every run that was tested against base."""
    tested = [name for name in cells if not base(name) and f"{score}_p" in cells[name]]
    corrected = stats.holm([cells[name][f"{score}_p"] for name in tested])
    for name, p in zip(tested, corrected, strict=True):
        better = (cells[name][f"{score}_from_base"] > 0) != less_is_better
        told = ("better" if better else "worse") if p < LEVEL else "no"
        cells[name] |= {f"{prefix}p_holm": p, f"{prefix}told": told}


def compare_groups(task, made, groups):
    """Rows: each run on each group of test notes by task.group_score, with its test against base.

    groups {column: {value: row ids}}. Holm's correction is for all runs and groups of a column together.
    Raises BadInput if the runs answered other notes.
    """
    answered = {name: [read_rows_of(folds) for folds in seeds] for name, seeds in made.items()}
    rows, score = [], task.group_score
    for column, members in groups.items():
        cells = {}
        for value, ids in members.items():
            own = {
                name: [score_answers(task, only_rows(seed, ids)) for seed in seeds]
                for name, seeds in answered.items()
            }
            for name, found in score_cells_of(task, own, [score]).items():
                told = {
                    key: cell for key, cell in found.items() if not key.endswith(("_least", "_most", "_sd"))
                }
                cells[value, name] = {"column": column, "value": value, "notes": len(ids), "run": name} | told
        mark(cells, score, base=lambda key: key[1] == "base")
        rows += cells.values()
    return rows


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
