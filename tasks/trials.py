"""Classification of clinical trials by their text: one class each, or a set of labels.

One label column gives classes. Several 0/1 columns, a column of separated labels, or one column with
--multi-label, of labels or of lists, give sets (tasks/label_sets.py). Rows with the same text are one
example: its set is their union; of classes the first is kept, and contradictions are counted.
"""

import ast
import re
from collections import Counter

import numpy as np

import metrics
from cli import BadInput
from data import fold_duplicates
from tasks.demo_trials import write_both
from tasks.groups import LIKE_TEXT, strange_names
from tasks.label_sets import LABEL_SETS, LabelSets
from tasks.task import CLASS_WEIGHTS, COLUMNS, LABEL_COLUMN, SUBGROUPS


def refuse_strange_labels(labels, texts, path):
    """Raises BadInput for too many or too few labels, or labels like text: they are printed and stored."""
    count = f"{path}: {len(labels)} distinct labels among {texts} texts"
    if len(labels) > max(2, texts / 3):
        raise BadInput(f"{count}; is --label-column right?")
    if strange := strange_names(labels):
        what = f"{len(strange)} of {len(labels)} labels {LIKE_TEXT}"
        raise BadInput(f"{path}: {what}; use codes, or is --label-column right?")
    if not 2 <= len(labels) <= 500:
        raise BadInput(f"{count}; needs 2 to 500")


ESCAPE = r"""\\(?:['"\\]|u[0-9a-fA-F]{4})"""
QUOTED = rf"""'(?:[^'\\\n\r]|{ESCAPE})*+'|"(?:[^"\\\n\r]|{ESCAPE})*+\""""  # as Python or JSON writes a string
LIST = re.compile(rf"\[\s*+(?:(?:{QUOTED})\s*+(?:,\s*+|(?=\])))*+\]")


def looks_like_a_list(cell):
    """Whether a cell is in square brackets, as no label is."""
    return cell.lstrip().startswith("[") and cell.rstrip().endswith("]")


def listed_names(cell):
    """The strings of a list as Python or JSON writes it; None if it is no such list, or has no commas."""
    if not LIST.fullmatch(cell.strip()):
        return None
    return [ast.literal_eval(found[0]) for found in re.finditer(QUOTED, cell)]


class Trials(LabelSets):
    """Classes or label sets of texts, scored by a classification report."""

    name, unit = "trials", "texts"
    reads_rows = True
    per_label, per_label_csv = metrics.REPORT, "classification_report_{}.csv"
    demo_files = ("stop_reasons.csv", "trials.csv")
    usual_text = (("context",), ("brief_title", "brief_summary", "eligibility_criteria"), ("TEXT",))
    published = (
        "Reference (stop reasons, 17 labels, threshold 0.3): micro-F1 0.8709 before and 0.9585 after "
        "adaptation, but scored on all rows, training rows included. The notebook's models: micro-F1 0.924 "
        "and 0.962 on all rows, 0.776 and 0.786 on the 375 held-out ones, macro-F1 there 0.525 and 0.581."
    )
    OPTIONS = {
        "--label-separator": {
            "default": None,
            "help": "separator of several labels in the column, such as ';'; gives label sets (one label)",
        },
        **LABEL_SETS,
        **LABEL_COLUMN,
        **COLUMNS,
        **SUBGROUPS,
        **CLASS_WEIGHTS,
    }

    @classmethod
    def write_demonstration(cls, directory, rows):
        """Reasons why a trial stopped, 3,000 at most, and descriptions of trials for mlm."""
        return write_both(directory, rows)

    def __init__(self, **options):
        super().__init__(**options)
        chosen = self.options
        self.label_columns = [name.strip() for name in chosen.label_column.split(",") if name.strip()]
        several = len(self.label_columns) > 1
        if not self.label_columns or len(set(self.label_columns)) < len(self.label_columns):
            raise BadInput("--label-column: must name a column, or several, each of them once")
        if chosen.label_separator and several:
            raise BadInput("--label-separator: goes with one --label-column, not with several 0/1 columns")

        if chosen.multi_label or chosen.label_separator or several:
            self.answer_sets()
        self.unites = chosen.multi_label  # only together do rows of one text give its set

    # --- a note's way

    def read(self, path, keep, counts):
        """Texts with their labels, as names for now."""
        table, notes = self.open_table(path), []
        label_at = [table.column(name, "--label-column") for name in self.label_columns]
        if set(label_at) & set(self.columns(table)[0]):
            what = "--label-column names a column of the text; a label must stand in a column of its own"
            raise BadInput(f"{path}: {what}")

        counts.update({"without text": 0, "without label": 0})
        groups = self.group_reader(table)
        for place, row_id, subject, text, row in self.rows(table, counts, keep):
            cells, where = [row[at] for at in label_at], f"{path}, line {table.line}"
            label = self._label_names(cells, where)
            # an empty class is no label, an empty list or set of columns is a set
            a_set = self.sets and (not self.options.multi_label or looks_like_a_list(cells[0]))
            counts["with an empty set of labels" if a_set else "without label"] += not label
            if label or a_set:
                notes.append(self.note(table, place, row_id, subject, text, label, groups(row)))
        return notes

    def _label_names(self, cells, where):
        """The names in a row's label columns, each once, a tuple."""
        if len(cells) == 1:
            if looks_like_a_list(cells[0]):
                names = self._names_in_list(cells[0], where)
            else:
                separator = self.options.label_separator
                names = cells[0].split(separator) if separator else cells
            return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        for name, cell in zip(self.label_columns, cells, strict=True):
            if cell.strip() not in ("0", "1", "0.0", "1.0"):
                raise BadInput(f"{where}: column {name!r} is neither 0 nor 1; several label columns must be")
        return tuple(
            name for name, cell in zip(self.label_columns, cells, strict=True) if cell.strip()[0] == "1"
        )

    def _names_in_list(self, cell, where):
        """The names in a cell such as "['A', 'B']"."""
        what = f"{where}: column {self.label_columns[0]!r}"
        if not self.sets:
            raise BadInput(f"{what} has a list of labels; give one, or train with --multi-label, for all")
        names = listed_names(cell)
        if names is None:
            raise BadInput(f"{what} has no list such as ['A', 'B'] or [\"A\", \"B\"]; correct that cell")
        return names

    def fold(self, examples, counts):
        """One example per text: sets are united, of contradicting classes the first stays."""

        def merge(kept, other):
            if kept.label != other.label:
                what = "duplicates with other labels, united" if self.sets else "contradicting duplicates"
                counts[what] += 1
            if self.sets:
                kept.label = tuple(dict.fromkeys(kept.label + other.label))

        examples, folded = fold_duplicates(examples, merge)
        counts["exact duplicates"] += folded
        return examples

    def settle_labels(self, examples, counts, path, seed):
        """All names found, in alphabetical order (0/1 columns in theirs); labels become indices."""
        found = {name for note in examples for name in note.label}
        self.labels = self.label_columns if len(self.label_columns) > 1 else sorted(found)
        refuse_strange_labels(self.labels, len(examples), path)
        if self.sets and any(";" in name for name in self.labels):
            raise BadInput(f"{path}: a label has a ';', which separates labels in the answers; rename it")
        index = {name: i for i, name in enumerate(self.labels)}
        for note in examples:
            indices = tuple(sorted(index[name] for name in note.label))
            note.label = indices if self.sets else indices[0]
        return examples

    def known_labels(self, examples):
        """By name. A set that has a known label, or was empty, is scored by what is known of it."""
        index, known = {name: i for i, name in enumerate(self.labels)}, []
        unknown = Counter(name for note in examples for name in note.label if name not in index)
        for note in examples:
            indices = tuple(sorted(index[name] for name in note.label if name in index))
            if indices or not note.label:
                note.label = indices if self.sets else indices[0]
                known.append(note)
        return known, unknown

    # --- scores and files

    def score(self, examples, predictions):
        """Of classes the usual scores, but per label a classification report."""
        scores = super().score(examples, predictions)
        if self.sets:
            return scores
        called = self.called(np.stack(predictions))
        report = metrics.classification_report(self._truth(examples), called, self.labels)
        return scores._replace(per_label=report)
