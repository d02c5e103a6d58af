"""What other published systems reached, beside ours: reference/ -> facts of a report.

The symptom paper has columns of its own (run/columns.py). Of the other systems stand here overall scores, the
scores of each label where a run has the labels of a published table, and accuracy by epochs of adaptation.
"""

import re
from pathlib import Path

from run.results import read_rows

AVERAGE, TEXT = " avg", ("table", "encoder", "label")


def published_facts(task, reference):
    """{"published": a line or None, "published_scores", "published_labels"} for results.json.

    published_scores {score: value}; published_labels {label: {encoder: {score: value}}}.
    """
    rows = read_rows(Path(reference) / "overall.csv", names=("task", "score"))
    scores = {row["score"]: row["value"] for row in rows if row["task"] == task.name}
    line, table = task.published, read_rows(Path(reference) / f"{task.name}.csv", TEXT)
    name, members = table_of(table, task.labels)
    if any("table" in row for row in table) and (name is None or name not in line):
        line = None  # it is about one table, and these labels are not that table's
    by_epoch = [f"{row['epochs']}: {row['accuracy']:.4f}" for row in table if "epochs" in row]
    line = f"{line} {', '.join(by_epoch)}." if by_epoch else line
    return {
        "published": line,
        "published_scores": {score: value for score, value in scores.items() if score in task.overall},
        "published_labels": label_cells(members, task.labels),
    }


def table_of(rows, labels):
    """(name, rows) of the published table that has all our labels; (None, []) if there is none."""
    ours, tables = set(map(plain_name, labels)), {}
    for row in rows:
        if "table" in row:
            tables.setdefault(row["table"], []).append(row)
    for name, members in tables.items():
        if len(ours) > 1 and ours <= label_names(members):
            return name, members
    return None, []


def label_names(rows):
    """The labels of a published table, its averages left out."""
    return {plain_name(row["label"]) for row in rows if not row["label"].endswith(AVERAGE)}


def label_cells(rows, labels):
    """{label of ours: {encoder: {score: value}}} of a published table's rows.

    Its averages come along if it has no other label than ours.
    """
    ours, found = {plain_name(label): label for label in labels}, {}
    same = label_names(rows) == ours.keys()
    for row in rows:
        average = row["label"].endswith(AVERAGE)
        label = row["label"] if average and same else ours.get(plain_name(row["label"]))
        if label:
            scores = {key: value for key, value in row.items() if key not in TEXT}
            found.setdefault(label, {})[row["encoder"]] = scores
    return found


def plain_name(label):
    """A label as it is compared: 'Another_Study' and 'another study' are one."""
    return re.sub(r"[\W_]+", " ", label).strip().casefold()
