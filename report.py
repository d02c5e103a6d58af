"""Results of many runs -> one table, the paper's beside it, and plots: python report.py results/symptoms

Writes results.csv, results.json, results.md, PNGs and report.html, which holds them all, into the results
directory; of runs of --recipe paper alone no CSV and no PNGs. Reads run.json and predictions.csv of every
finished run there, benchmark.csv if benchmark.py was run, and the runs of --recipe paper; nothing is scored
again. Where the directory holds no runs but seed1, seed2 and so on, as run_all.sh --seeds makes them, scores
are means over the seeds; sizes, times, curves and confusion matrices are those of the first. Intervals and
tests: docs/evidence.md.
"""

import math
import re
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

import compress
from cli import BadInput, Parser, run_script
from files import read_json, write_json, write_whole
from metrics import mcnemar
from run import checkpoint, page, plots
from run.arguments import OPTIMISATION
from run.baseline import BASELINES
from run.columns import column_lines, gather, recipe_runs
from run.evidence import compare_runs, evidence_facts
from run.published import published_facts
from run.results import (
    calibration_cells,
    find_runs,
    pareto,
    read_rows,
    read_table,
    shown,
    techniques_of,
    write_rows,
)
from run.tables import described, report_page
from run.untrusted import REPORTED, fitting, read_run, read_task
from tasks import demo

# published figures as data; SOURCE.md there says where they come from
REFERENCE = Path(__file__).parent / "reference"
SETTINGS = ("data", "model", "batch_size", "max_length", "seed", "split_seed", "epochs", "lr")
UNUSED = ("model", "revision", "max_length", *OPTIMISATION)  # by baselines
TIMED = ("macs", "p50_ms", "p95_ms", "notes_per_s")  # columns of benchmark.csv


def homes_in(out):
    """The directories in which runs stand: `out`, or its seed1, seed2, ... if it holds no runs itself."""
    homes = [path for path in out.glob("seed*") if re.fullmatch(r"seed\d+", path.name) and path.is_dir()]
    if not homes or any(checkpoint.is_finished(path) for path in out.iterdir()):
        return [out]
    return sorted(homes, key=lambda path: int(path.name[4:]))


def runs_by_seed(homes):
    """{name: [run.json of each seed]} of the runs that every seed has; the others are named."""
    seeds = [runs_in(home) for home in homes]
    common = [name for name in seeds[0] if all(name in runs for runs in seeds)]
    if left := sorted({name for runs in seeds for name in runs} - set(common)):
        print(f"note: left out, as not every seed has it: {', '.join(left)}")
    if not common:
        raise BadInput(f"{homes[0].parent}: no run that every seed has; train the missing ones")
    return {name: [runs[name] for runs in seeds] for name in common}


def runs_in(out):
    """{name: run.json} of the finished runs in a directory.

    Base first, then plain techniques in the order of compress.TECHNIQUES, then the others as they were
    finished.
    """
    facts = {path.name: read_run(path, *REPORTED) for path in find_runs([out])}
    usual = ["base", *compress.TECHNIQUES]

    def place(name):
        return usual.index(name) if name in usual else len(usual), facts[name]["finished"]

    return {name: facts[name] for name in sorted(facts, key=place)}


def common_task(out, runs):
    """The task of all runs. Raises BadInput if they differ in task or labels."""
    tasks = [read_task(out / name, run) for name, run in runs.items()]
    if len({(task.name, *task.labels, *task.overall) for task in tasks}) > 1:
        raise BadInput(
            f"{out}: its runs have different tasks or labels; report them from separate results directories"
        )
    return tasks[0]


def timings_of(out, runs):
    """{name: row of benchmark.csv}, without those of runs that were trained again since."""
    timings = {row["technique"]: row for row in read_rows(out / "benchmark.csv") if row["technique"] in runs}
    if any(isinstance(row.get(column), str) for row in timings.values() for column in TIMED):
        raise BadInput(f"{out}/benchmark.csv: is damaged; run benchmark.py again")
    for name in [name for name, row in timings.items() if row.get("finished") != runs[name]["finished"]]:
        left_out = "its times are left out; run benchmark.py again"
        print(f"note: {name} was trained again after it was timed: {left_out}")
        del timings[name]
    return timings


# --- runs -> the data of the report ---------------------------------------------------------------


def report_rows(homes, task, seeds, timings):
    """One row per run: scores, intervals, the test against base, sizes, times.

    seeds {name: [run.json of each seed]}.
    """
    out, runs = homes[0], {name: several[0] for name, several in seeds.items()}
    cells = compare_runs(task, {name: [[home / name] for home in homes] for name in runs})
    rows = []
    for name, run in runs.items():
        row = {"technique": name, "techniques": techniques_of(out / name)}
        with fitting(out / name):
            row |= score_cells(task, [each["test"] for each in seeds[name]], cells[name])
            row |= against_base_cells(out, name, runs) if len(homes) == 1 else {}
            row |= {"validation": validation_score(task, seeds[name]), **run["sizes"]}
        row |= {"train_seconds": run["train_seconds"], "test_notes": run["data"]["sizes"]["test"]}
        row |= {column: value for column, value in timings.get(name, {}).items() if column in TIMED}
        rows.append(row)

    mark_front(rows)
    return rows


def mark_front(rows):
    """Add to each row whether it is on the Pareto front of validation score and latency."""
    timed = [
        {**row, "run": row["technique"]} for row in rows if "p50_ms" in row and row["validation"] is not None
    ]
    for row in rows:
        row["front_p50_ms"] = row["technique"] in pareto(timed, "p50_ms")


def report_data(out):
    """(task, rows, facts, what else is drawn) of a results directory. Raises BadInput if a run is damaged."""
    with fitting(out):
        homes = homes_in(out)
        seeds = runs_by_seed(homes)
        runs = {name: several[0] for name, several in seeds.items()}
        task, timings = common_task(homes[0], runs), timings_of(homes[0], runs)
        rows = report_rows(homes, task, seeds, timings)
        facts = report_facts(task, homes, seeds, timings)
        if task.as_published:
            facts["columns"] = gather(out, seeds, REFERENCE)
        return task, rows, facts, drawn_of(out, task, runs)


def mean_or_none(values):
    """The mean; None if one of the values is."""
    return None if None in values else statistics.mean(values)


def validation_score(task, runs):
    """The first headline score on validation, the mean over the seeds."""
    first = next(iter(task.headline))
    return mean_or_none([run["validation"]["overall"][first] for run in runs])


def score_cells(task, tests, found):
    """{score in lower case: mean over seeds, with _low and _high if it has an interval} of test splits.

    found: the cells of compare_runs, whose intervals come first; another score has that of a single seed. The
    first headline score has its distance from base, and whether that tells the run from base.
    """
    cells = {
        score.lower(): mean_or_none([test["overall"][score] for test in tests]) for score in task.overall
    }
    intervals = tests[0]["intervals"] if len(tests) == 1 else {}
    for score in task.overall:
        low, high = intervals.get(score, (None, None))
        low, high = found.get(f"{score}_low", low), found.get(f"{score}_high", high)
        if low is not None:
            cells |= {f"{score.lower()}_low": low, f"{score.lower()}_high": high}
        if f"{score}_sd" in found:
            cells[f"{score.lower()}_sd"] = found[f"{score}_sd"]
    if "told" in found:
        apart = f"{next(iter(task.headline))}_from_base"
        cells |= {f"from_base{end}": found[apart + end] for end in ("", "_low", "_high")}
        cells |= {"p_holm": found["p_holm"], "told": found["told"]}
    calibrations = [calibration_cells(test.get("calibration")) for test in tests]
    return cells | {name: mean_or_none([own.get(name) for own in calibrations]) for name in calibrations[0]}


def against_base_cells(out, name, runs):
    """McNemar's test of a run against base, if both answered the same test notes, one label each."""
    if name == "base" or "base" not in runs or runs[name]["data"]["split"] != runs["base"]["data"]["split"]:
        return {}
    base, this = (read_table(out / run / "predictions.csv") for run in ("base", name))
    if not base or "predicted" not in base[0]:  # a task without one answer per note
        return {}
    base, this = ([row["label"] == row["predicted"] for row in rows] for rows in (base, this))
    return dict(zip(("only_base_right", "only_this_right", "mcnemar_p"), mcnemar(base, this), strict=True))


def report_facts(task, homes, seeds, timings):
    """What the tables need beside the rows, for results.json."""
    runs = {name: several[0] for name, several in seeds.items()}
    first, several = next(iter(runs.values())), next(iter(seeds.values()))
    made = {name: [[home / name] for home in homes] for name in runs}
    test, sizes = first["data"]["splits"]["test"], first["data"]["sizes"]
    usual = {"Precision": "precision", "Recall": "recall"}
    commonest = (
        [max(test, key=test.get), max(test.values()) / sizes["test"]] if first["test"]["confusion"] else None
    )
    return {
        "task": task.name,
        "unit": task.unit,
        "headline": task.headline,
        "scores": {score: task.headline.get(score, usual.get(score, score)) for score in task.overall},
        "calibrated": task.sure_of,
        "runs": list(runs),
        "demonstration": any(run["demonstration"] for run in runs.values()),
        "other_test": len({run["data"]["split"] for run in runs.values()}) > 1,
        "always": commonest,
        "seeds": [run["arguments"]["seed"] for run in several],
        "evidence": evidence_facts(task, made),
        "settings": {key: shown(str(first["arguments"][key])) for key in SETTINGS},
        "differing": differing_arguments(runs),
        "data": {key: first["data"][key] for key in ("rows", "notes", "subjects", "sizes", "splits")},
        **published_facts(task, REFERENCE),
        **label_facts(task, seeds),
        **group_facts(task, seeds),
        "machine": first["machine"],
        "trained_on": {name: described(run["machine"]) for name, run in runs.items()},
        "trained_at": {name: run["machine"]["commit"] for name, run in runs.items()},
        "timing": timing_facts(timings),
    }


def label_facts(task, runs):
    """F1 of every label by run, the mean over its seeds; what the labels are counted in.

    runs {name: [run.json of each seed]}.
    """
    first = next(iter(runs.values()))[0]
    test = first["data"]["splits"]["test"]
    per_label = {
        label: {
            "Support": row.get("Support", test.get(label)),
            "F1": {
                name: mean_or_none([run["test"]["per_label"].get(label, {}).get("F1") for run in seeds])
                for name, seeds in runs.items()
            },
        }
        for label, row in first["test"]["per_label"].items()
    }
    support = "support" if "Support" in task.per_label else f"test {task.unit}"
    return {"per_label": per_label, "support": support}


def group_facts(task, runs):
    """{column: {value: test notes, the score of each run}} of the first run's groups, and which score.

    runs {name: [run.json of each seed]}; a score is the mean over the seeds.
    """
    found = {}
    for column, groups in next(iter(runs.values()))[0].get("groups", {}).items():
        found[column] = {
            value: {
                "count": group["count"],
                "score": {
                    name: mean_or_none([group_score(task, run, column, value) for run in seeds])
                    for name, seeds in runs.items()
                },
            }
            for value, group in groups.items()
        }
    return {"groups": found, "group_score": task.headline.get(task.group_score, task.group_score)}


def group_score(task, run, column, value):
    """The score that suits groups, of one group of a run; None if the run lacks it."""
    group = run.get("groups", {}).get(column, {}).get(value, {})
    return group.get("overall", {}).get(task.group_score)


def differing_arguments(runs):
    """{name: {argument: value}} where a run differs from the first, a technique's own arguments apart.

    A baseline has no model, and no training that an argument could change.
    """
    first = next(iter(runs.values()))["arguments"]
    other = {
        name: {
            key: shown(str(value))
            for key, value in run["arguments"].items()
            if key in first and value != first[key] and not (name in BASELINES and key in UNUSED)
        }
        for name, run in runs.items()
    }
    return {name: arguments for name, arguments in other.items() if arguments}


def timing_facts(timings):
    """The conditions under which the runs were timed, and which ran on which device; None if none was."""
    if not timings:
        return None
    conditions = next(iter(timings.values()))
    devices = {}
    for name, row in timings.items():
        devices.setdefault(row["device"], []).append(name)
    keys = ("length", "batch", "rounds", "threads", "cpu", "torch", "commit")
    return {"devices": devices, **{key: conditions[key] for key in keys if key in conditions}}


# --- plots ----------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """What the plots show beside the rows, each {run: ...}."""

    histories: dict  # rows of numbers by epoch
    calibrations: dict  # {"plain" or "scaled": (its error, its bins as an array (bins, 3))}
    confusions: dict  # counts (true, predicted), an array


def drawn_of(out, task, runs):
    """The Drawn of a results directory, for the plots that its task has."""
    keys = (task.selection, "Loss", "TrainingLoss")
    histories = {
        name: [{"Epoch": float(row["Epoch"]), **finite(row, keys)} for row in run["history"]]
        for name, run in runs.items()
        if run.get("history")  # a baseline has none
    }
    confusions = {name: run["test"]["confusion"] for name, run in runs.items() if len(task.labels) <= 20}
    confusions = {name: np.array(counts, np.int64) for name, counts in confusions.items() if counts}
    if any(counts.shape != (len(task.labels),) * 2 for counts in confusions.values()):
        raise BadInput(f"{out}: a run has counts of other labels than its own; train it again")
    found = {name: run["test"].get("calibration") for name, run in runs.items()}
    return Drawn(histories, {name: drawn_bins(told) for name, told in found.items() if told}, confusions)


def drawn_bins(told):
    """{"plain" or "scaled": (error, bins (B, 3))} of a run's calibration."""
    known = {kind: told[kind] for kind in ("plain", "scaled") if told[kind]}
    return {kind: (float(k["ECE"]), np.array(k["bins"], float).reshape(-1, 3)) for kind, k in known.items()}


def finite(row, keys):
    """The finite numbers among a row's values of these keys."""
    return {key: row[key] for key in keys if row.get(key) is not None and math.isfinite(row[key])}


def draw_all(out, task, rows, facts, drawn):
    """Draw every PNG of the report. Returns them as Figures of report.html."""
    looks, figures = {row["technique"]: row["techniques"] for row in rows}, []

    def figure(heading, name, alt):
        figures.append(page.Figure(heading, out / name, alt))
        return out / name

    if any("p50_ms" in row and next(iter(task.headline)).lower() in row for row in rows):
        path = figure("In short", "accuracy_latency.png", page.latency_alt(rows, facts))
        plots.plot_latency(rows, facts, path)
    if drawn.histories:
        wording = task.headline.get(task.selection, task.selection)
        alt = page.curves_alt(drawn.histories, task.selection, wording)
        path = figure("Learning curves", "learning_curves.png", alt)
        plots.plot_curves(drawn.histories, looks, task.selection, wording, path)
    if drawn.calibrations:
        alt = page.calibration_alt(drawn.calibrations)
        path = figure("Calibration on the test split", "calibration.png", alt)
        plots.plot_calibration(drawn.calibrations, looks, task.sure_of, path)
    for name, counts in drawn.confusions.items():
        alt = page.confusion_alt(name, counts, task.labels)
        path = figure("Confusion matrices on the test split", f"confusion_{name}.png", alt)
        plots.plot_confusion(name, counts, task.labels, path)
    return figures


def report_recipe(out):
    """Write the report of a directory that has runs of --recipe paper and no others."""
    columns = gather(out, {}, REFERENCE)
    write_json(out / "results.json", {"columns": columns})
    banner = [f"**{demo.BANNER}**", ""] if columns["rerun"]["demonstration"] else []
    lines = ["# The paper's recipe", "", *banner, *column_lines(columns, "##"), ""]
    write_whole(out / "results.md", "\n".join(lines))
    write_whole(out / "report.html", page.plain_page(lines))
    print("\n".join(lines))


def main(argv=None):
    """Write the report of a results directory."""
    parser = Parser(prog="report.py", description=__doc__.splitlines()[0])
    parser.add_argument("results", help="results directory, such as results/symptoms")
    out = Path(parser.parse_args(argv).results)
    if checkpoint.is_finished(out):
        raise BadInput(f"{out}: is a single run; name the results directory it stands in")
    proper = (path for home in homes_in(out) for path in home.iterdir())
    if recipe_runs(out) and not any(map(checkpoint.is_finished, proper)):
        report_recipe(out)
        return
    plots.pyplot()  # said before anything is written, if matplotlib is missing

    task, rows, facts, drawn = report_data(out)
    write_rows(out / "results.csv", rows)
    write_json(out / "results.json", facts)

    rows, facts = (
        read_rows(out / "results.csv"),
        read_json(out / "results.json"),
    )  # as docs/results.py reads them
    write_whole(out / "results.md", report_page(rows, facts))
    figures = draw_all(out, task, rows, facts, drawn)
    write_whole(out / "report.html", page.html_page(rows, facts, figures))
    print(report_page(rows, facts))


if __name__ == "__main__":
    run_script(main)
