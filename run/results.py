"""What stands in a results directory: finished runs, their score files, tables of many runs."""

import csv
import re
from pathlib import Path

from cli import BadInput
from files import write_csv
from metrics import Scores
from run import checkpoint
from run.untrusted import check_file, read_run


def find_runs(paths):
    """Finished run directories among the paths and one level below them, base first, the others by name."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise BadInput(f"{path}: no such directory")
        inside = (
            [path]
            if checkpoint.is_finished(path)
            else sorted(p for p in path.iterdir() if checkpoint.is_finished(p))
        )
        found += [run for run in inside if run not in found and not run.name.startswith(".")]
    if not found:
        names = ", ".join(map(str, paths))
        raise BadInput(f"{names}: no finished run in there; train one with python train.py")
    return sorted(found, key=lambda run: run.name != "base")


def techniques_of(directory, later=()):
    """Techniques of a finished run and of the runs that it starts from, oldest first: 'pruning+quantization'.

    'base' if there is nothing else. A run that it starts from is also found beside it, if both were moved.
    later: the runs from which it was reached, so that runs that name each other come to an end.
    """
    directory = Path(directory)
    record = read_run(directory, "technique", "start")
    start = record["start"]
    places = [Path(start), directory.parent / Path(start).name] if start else []
    origin = next((p for p in places if p not in (directory, *later) and checkpoint.is_finished(p)), None)

    earlier = techniques_of(origin, (directory, *later)).split("+") if origin else []
    parts = [part for part in [*earlier, *record["technique"].split("+")] if part != "base"]
    return "+".join(dict.fromkeys(parts)) or "base"


def pareto(rows, cost):
    """Names of the rows on the Pareto front.

    No other row beats them: is at least as good on validation and cheaper, or better and no dearer.
    """

    def beats(a, b):
        no_worse = a["validation"] >= b["validation"] and a[cost] <= b[cost]
        return no_worse and (a["validation"] > b["validation"] or a[cost] < b[cost])

    return [row["run"] for row in rows if not any(beats(other, row) for other in rows)]


# --- what a run prints and writes of its notes -----------------------------------------------------------


def print_data(task, facts, whose="each its own subject"):
    """Where the rows went, and how many examples of each label every split has.

    whose: how they were split, where the subjects are not known.
    """
    whose = f"of {facts['subjects']} subjects, split by subject" if facts["subjects"] else whose
    print_rows(facts["rows"], facts["notes"], f"{task.unit}, {whose}")
    for split, size in facts["sizes"].items():
        labels = list(facts["splits"][split].items())
        if len(labels) > 12:
            labels.sort(key=lambda item: -item[1])
        more = [f"{len(labels) - 12} labels more"] if len(labels) > 12 else []
        print(
            f"  {split}: {size} {task.unit}",
            *(f"{count} {name}" for name, count in labels[:12]),
            *more,
            sep=", ",
        )


def print_rows(counts, notes, unit):
    """One line: {what: how many rows}, and how many notes they gave."""
    rows = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    print(f"data: {rows} -> {notes} {unit}")


def write_predictions(path, task, examples, predictions):
    """predictions.csv of a run directory: row id, cluster, label, prediction, probabilities; no text.

    Rows of one patient, or sentences of one document, have one cluster, a number of this file's own.
    """
    if columns := task.stored_columns():
        numbers = {}
        rows = (
            [row_id, numbers.setdefault(subject, len(numbers)), *cells]
            for row_id, subject, cells in task.stored(examples, predictions)
        )
        write_csv(path / "predictions.csv", ["row_id", "cluster", *columns], rows, private=True)


# --- tables in files ------------------------------------------------------------------------------


def read_table(path):
    """A CSV as a list of dicts; empty if there is no such file. Raises BadInput if it is damaged."""
    if not path.exists():
        return []
    check_file(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(short_lines(file), strict=True))
    except (ValueError, csv.Error, OSError) as error:
        raise BadInput(f"{path}: cannot be read as CSV ({type(error).__name__})") from None
    if any(None in row or None in row.values() for row in rows):
        raise BadInput(f"{path}: is damaged: a row has another number of cells than the header")
    return rows


def short_lines(file, most=10**6):
    """The lines of an open text file. Raises ValueError for one that is very long or has a NUL byte in it."""
    while line := file.readline(most):
        if len(line) == most or "\0" in line:
            raise ValueError("no line of a table")
        yield line


def write_rows(path, rows):
    """Write a list of dicts as a CSV; a column for every key, in the order in which they first occur."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(path, header, [[row.get(column) for column in header] for row in rows])


def read_rows(path, names=("run", "technique", "techniques")):
    """What write_rows wrote: a list of dicts, empty if there is no such file.

    Cells become numbers and truth values, empty ones are left out; the columns in `names` stay text.
    """
    rows = read_table(path)
    return [
        {key: text if key in names else typed(text) for key, text in row.items() if text != ""}
        for row in rows
    ]


def typed(text):
    """A cell of a CSV as a truth value, a number, or the text that it is."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def markdown_table(header, rows):
    """Lines of a Markdown table, numbers to the right."""
    lines = [f"| {' | '.join(map(as_cell, cells))} |" for cells in (header, *rows)]
    return [lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]]


def as_cell(text):
    """A text as a cell of a Markdown table: a label may have | or < or a new line in it."""
    text = re.sub(r"\s", " ", text).replace("|", "\\|")
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", text)  # what would open a tag


def shown(source):
    """A path, a name or a flag=path as a report may show it: of an absolute path the last two parts."""
    if source.startswith("--") and "=" in source:
        flag, _, value = source.partition("=")
        return f"{flag}={shown(value)}"
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source


def spelled(scores, names):
    """'accuracy 0.9321, macro-F1 0.8553' from a row of scores; names {score: wording}."""
    return ", ".join(
        f"{text} {scores[name]:.4f}" for name, text in names.items() if scores.get(name) is not None
    )


# --- the score files of one run -------------------------------------------------------------------


def write_score_files(out, task, record):
    """The two CSVs of a run: overall, by epoch on validation and then on test; and per label on test.

    Loss is the mean loss on the row's split, TrainingLoss the technique's mean loss in training since the
    last validation. A run without epochs of its own has one validation row, of the finished model, as epoch
    0. A task without labels has no second file.
    """
    name, epoch = record["name"], record["best_epoch"]
    rows = record["history"]
    if not rows and "validation" in record:
        rows = [{"Epoch": 0, **record["validation"]["overall"], "Split": "validation"}]
    rows = [*rows, {"Epoch": epoch, **record["test"]["overall"], "Split": "test"}]
    write_scores(out, task, name, rows, record["test"]["per_label"])


def write_scores(out, task, name, rows, per_label):
    """The two CSVs: rows of overall scores with Epoch and Split; scores per label, of the last row."""
    header = ["Epoch", *task.overall, "Split", "Loss", "TrainingLoss", "Step"]
    cells = [[row.get(column) for column in header] for row in rows]
    write_csv(out / task.overall_csv.format(name), header, cells)

    if per_label:
        epoch, split = rows[-1]["Epoch"], rows[-1]["Split"]
        header = ["Epoch", task.label_column, *task.per_label, "Split"]
        cells = [[epoch, label, *map(row.get, task.per_label), split] for label, row in per_label.items()]
        write_csv(out / task.per_label_csv.format(name), header, cells)


def snake_case(name):
    """'MicroF1' -> 'micro_f1'."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def eval_metrics(scores, rows):
    """Scores as a flat dict, with the names of Hugging Face's Trainer: eval_loss, eval_f1, eval_samples.

    scores: metrics.Scores of so many rows; eval_f1_low and eval_f1_high are the ends of the 95% interval.
    """
    found = {"eval_samples": rows, **{f"eval_{snake_case(k)}": v for k, v in scores.overall.items()}}
    for name, ends in (scores.intervals or {}).items():
        found |= {f"eval_{snake_case(name)}_{end}": x for end, x in zip(("low", "high"), ends, strict=True)}
    return found | {f"eval_{name}": value for name, value in calibration_cells(scores.calibration).items()}


def group_metrics(groups):
    """{"groups": {column: {value: eval_metrics}}} of what tasks.groups.group_scores found; {} without any."""
    found = {
        column: {
            value: eval_metrics(Scores(group["overall"], {}, intervals=group["intervals"]), group["count"])
            for value, group in members.items()
        }
        for column, members in groups.items()
    }
    return {"groups": found} if found else {}


def calibration_cells(calibration):
    """{"ece", "brier", "temperature", "ece_scaled", "brier_scaled"} of Scores.calibration; what there is."""
    if not calibration:
        return {}
    plain, scaled = calibration["plain"], calibration["scaled"]
    cells = {"ece": plain["ECE"], "brier": plain["Brier"]}
    if scaled:
        cells |= {"temperature": calibration["temperature"]}
        cells |= {"ece_scaled": scaled["ECE"], "brier_scaled": scaled["Brier"]}
    return cells
