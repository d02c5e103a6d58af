"""Finished runs in a results directory, and tables of text."""

import csv
from pathlib import Path

from cli import BadInput
from files import write_csv
from run import checkpoint


def find_runs(paths):
    """Finished run directories among the paths and one level below them, base first, the others as they come."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise BadInput(f"{path}: no such directory")
        inside = [path] if checkpoint.is_finished(path) else sorted(p for p in path.iterdir() if checkpoint.is_finished(p))
        found += [run for run in inside if run not in found and not run.name.startswith(".")]
    if not found:
        raise BadInput(f"{', '.join(map(str, paths))}: no finished run in there; train one with python train.py")
    return sorted(found, key=lambda run: run.name != "base")


def read_table(path):
    """A CSV as a list of dicts; empty if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown_table(header, rows):
    """Lines of a Markdown table, numbers to the right."""
    return [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def shown(source):
    """A path, a name or a flag=path as a report may show it: of an absolute path the last two parts."""
    if source.startswith("--") and "=" in source:
        flag, _, value = source.partition("=")
        return f"{flag}={shown(value)}"
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source


def write_score_files(out, task, record):
    """The two CSVs of a run: overall, by epoch on validation and then on test; and per label on test, if there are labels.

    A run without epochs of its own has one validation row, of the finished model, as epoch 0.
    """
    name, epoch = record["name"], record["best_epoch"]
    rows = record["history"] or [{"Epoch": 0, **record["validation"]["overall"], "Split": "validation"}]
    rows = [*rows, {"Epoch": epoch, **record["test"]["overall"], "Split": "test"}]
    header = ["Epoch", *task.overall, "Split", "Loss", "TrainingLoss", "Step"]
    write_csv(out / task.overall_csv.format(name), header, [[row.get(column) for column in header] for row in rows])
    if per_label := record["test"]["per_label"].items():
        header = ["Epoch", task.label_column, *task.per_label, "Split"]
        write_csv(
            out / task.per_label_csv.format(name), header, [[epoch, label, *map(v.get, task.per_label), "test"] for label, v in per_label]
        )


def spelled(scores, names):
    """'accuracy 0.9321, macro-F1 0.8553' from a row of scores; names {score: wording}."""
    return ", ".join(f"{text} {scores[name]:.4f}" for name, text in names.items() if scores.get(name) is not None)
