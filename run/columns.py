"""Three columns: as the paper published it, its recipe re-run here, the technique done properly.

`gather` reads reference/, the runs of --recipe paper and the finished runs of a results directory into facts
for results.json; `column_lines` makes the text from these facts alone.
"""

from pathlib import Path
from statistics import fmean, stdev

from cli import BadInput
from metrics import OVERALL, PER_LABEL
from run import checkpoint
from run.results import markdown_table, read_rows, shown
from run.untrusted import RERUN, fitting, read_run

WORDING = {
    "Accuracy": "accuracy",
    "Precision": "precision",
    "Recall": "recall",
    "F1": "macro-F1",
    "AUROC": "AUROC",
}
NEVER_GIVEN = "Precision: the mean over the seeds that answered with the label at all."
SAME = (
    "data",
    "fraction",
    "model",
    "revision",
    "label_seed",
    "split_seed",
    "epochs",
    "batch_size",
    "max_length",
    "lr",
    "top_k",
)


# --- files -> facts: {"overall": {technique: {score: [values]}}, "per_label": {label: the same}} of a source


def gather(out, runs, reference):
    """The columns as JSON facts.

    runs {name: [run.json of each seed]} of proper runs; reference: the folder of tables.
    """
    columns = {"published": published(reference), "rerun": rerun(out), "proper": None}
    known = columns["published"]["overall"]
    if ours := {name: seeds for name, seeds in runs.items() if name in known}:
        columns["proper"] = together([(name, run["test"]) for name, seeds in ours.items() for run in seeds])
        columns["proper"]["seeds"] = max(map(len, ours.values()))
        columns["proper"]["intervals"] = {
            name: seeds[0]["test"]["intervals"] for name, seeds in ours.items() if len(seeds) == 1
        }
    return columns


def published(reference):
    """The paper's Table 1 and the manuscript's Table II."""
    names = {score.lower(): score for score in OVERALL}
    found = {"overall": {}, "per_label": {}}
    for row in read_rows(Path(reference) / "table1.csv"):
        found["overall"][row["technique"]] = {names[key]: [row[key]] for key in names}
    for row in read_rows(Path(reference) / "table2.csv"):
        scores = {names[key]: [row[key]] for key in names if key in row}
        found["per_label"].setdefault(row["symptom"], {})[row["technique"]] = scores
    return found


def recipe_runs(out):
    """Paths of the finished runs of --recipe paper in a results directory, by seed."""
    folders = sorted((Path(out) / "recipe").glob("seed-*"), key=lambda path: (len(path.name), path.name))
    return [path for folder in folders for path in sorted(folder.iterdir()) if checkpoint.is_finished(path)]


def rerun(out):
    """The recipe's scores over its seeds, and on what; None if there is no such run.

    Raises BadInput if runs differ in more than seed and technique.
    """
    runs = [(path, read_run(path, *RERUN)) for path in recipe_runs(out)]
    if not runs:
        return None
    first = runs[0][1]
    for path, run in runs:
        other = [key for key in SAME if run["arguments"].get(key) != first["arguments"].get(key)]
        if other:
            raise BadInput(
                f"{path}: was made with another {', '.join(other)}; keep such runs in another --out"
            )
    with fitting(out):
        found = together([(run["technique"], run["test"]) for _, run in runs])
    return found | {
        "seeds": sorted({run["arguments"]["seed"] for _, run in runs}),
        "demonstration": any(run["demonstration"] for _, run in runs),
        "label_seed": first["arguments"]["label_seed"],
        "rates": {run["technique"]: run["learning_rate"] for _, run in runs},
        "data": shown(first["arguments"]["data"]),
        "model": shown(first["arguments"]["model"]),
        "labels": first["task"]["labels"],
        "sizes": first["data"]["sizes"],
        "copied": first["data"]["copied"],
        "commits": sorted({str(run["machine"]["commit"]) for _, run in runs}),
    }


def together(tests):
    """Scores of several (technique, test scores) as lists of values; an undefined one is left out."""
    found = {"overall": {}, "per_label": {}}
    for technique, test in tests:
        add(found["overall"].setdefault(technique, {}), test["overall"], OVERALL)
        for label, row in test["per_label"].items():
            add(found["per_label"].setdefault(label, {}).setdefault(technique, {}), row, PER_LABEL)
    return found


def add(lists, row, scores):
    """Append a row's scores to {score: [values]}."""
    for score in scores:
        if row.get(score) is not None:
            lists.setdefault(score, []).append(row[score])


# --- facts -> text -------------------------------------------------------------------------------------


def column_lines(columns, level):
    """Lines: Table 1 and Table II, three columns each. level: the marks of the headings, such as '##'."""
    heads = ["as published", "the recipe re-run", "done properly"]
    sources = [columns[name] or {"overall": {}, "per_label": {}} for name in ("published", "rerun", "proper")]
    intervals = (columns["proper"] or {}).get("intervals", {})
    body = [
        [
            technique,
            WORDING[score],
            *(value(source["overall"].get(technique, {}).get(score)) for source in sources[:2]),
            with_brackets(
                sources[2]["overall"].get(technique, {}).get(score), intervals.get(technique), score
            ),
        ]
        for technique in sources[0]["overall"]
        for score in OVERALL
    ]
    labels = dict.fromkeys(label for source in sources for label in source["per_label"])
    per_label = [
        [
            f"{label}, {technique}",
            *(four(source["per_label"].get(label, {}).get(technique)) for source in sources),
        ]
        for label in labels
        for technique in sources[0]["overall"]
    ]
    return [
        *(f"{level} As published, re-run, done properly", "", *told(columns), ""),
        *markdown_table(["technique", "score", *heads], body),
        *("", f"{level} The same per symptom: precision / recall / F1 / AUROC", ""),
        *([NEVER_GIVEN, ""] if several_seeds(columns) else []),
        *markdown_table(["symptom, technique", *heads], [row for row in per_label if any(row[1:])]),
    ]


def several_seeds(columns):
    """Whether a column has means over seeds."""
    rerun, proper = columns["rerun"] or {}, columns["proper"] or {}
    return len(rerun.get("seeds", ())) > 1 or proper.get("seeds", 1) > 1


def told(columns):
    """Lines on what stands in the columns."""
    lines = [
        "- As published: 435 test notes of MIMIC-III, Bio_ClinicalBERT, one seed, the fifth epoch (of low "
        "rank the third, as the authors' files show)."
    ]
    if again := columns["rerun"]:
        sizes, count = again["sizes"], len(again["seeds"])
        seeds = f"mean ± standard deviation of {count} seeds" if count > 1 else f"seed {again['seeds'][0]}"
        rates = ", ".join(f"{name} {rate:g}" for name, rate in again["rates"].items())
        lines.append(
            f"- The recipe re-run (`--recipe paper`): {again['data']}, {again['model']}, labels "
            f"{', '.join(again['labels'])} (label seed {again['label_seed']}), {sizes['train']} training and "
            f"{sizes['test']} test notes, {again['copied']} of them copies of training notes; {seeds}; "
            f"learning rates {rates}."
        )
    else:
        lines.append("- The recipe re-run: not here; `python train.py --recipe paper` makes it.")
    lines.append(
        f"- Done properly: the runs of this report{several(columns['proper'])}"
        if columns["proper"]
        else "- Done properly: not here; `python train.py` makes such runs"
    )
    lines[-1] += ", on a test split that no copy of a training note is in, read once"
    lines[-1] += "; brackets: 95% interval." if (columns["proper"] or {}).get("intervals") else "."
    return [*lines, "- Labels and test notes differ between the columns: compare within one, not across."]


def several(proper):
    """', mean ± standard deviation of 3 seeds', or nothing for one seed."""
    count = proper.get("seeds", 1)
    return f", mean ± standard deviation of {count} seeds" if count > 1 else ""


def value(values):
    """'0.9356', '0.912 ± 0.010', or nothing."""
    if not values:
        return ""
    return f"{values[0]:.4f}" if len(values) == 1 else f"{fmean(values):.4f} ± {stdev(values):.4f}"


def with_brackets(values, intervals, score):
    """'0.9356 [0.907, 0.954]', the brackets where there is an interval."""
    low, high = (intervals or {}).get(score, (None, None))
    return value(values) if low is None else f"{value(values)} [{low:.3f}, {high:.3f}]"


def four(scores):
    """'0.938 / 0.918 / 0.928 / 0.970' of {score: [values]}, means; nothing without scores."""
    return " / ".join(f"{fmean(scores[s]):.3f}" if s in scores else "–" for s in PER_LABEL) if scores else ""
