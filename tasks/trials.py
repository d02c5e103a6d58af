"""Classification of clinical trials by their text: one class each, or a set of labels.

One label column gives classes (softmax, cross-entropy). Several 0/1 columns, a column of separated labels, or
one column with --multi-label give sets: a sigmoid per label and binary cross-entropy. A label is predicted
where its probability reaches the threshold: 0.3 as in the reference, or per label the one with the best F1 on
validation. Rows with the same text are one example: its set is their union; of classes the first is kept, and
contradictions are counted.
"""

import re

import numpy as np
import torch.nn.functional as F

import metrics
from cli import BadInput, number
from data import fold_duplicates
from tasks.demo_trials import write_both
from tasks.task import CLASS_WEIGHTS, COLUMNS, LABEL_COLUMN, Task


def threshold_or_auto(text):
    """An argparse type: a probability in (0, 1), or 'auto'."""
    return text if text == "auto" else number(float, 0, 1, True, True)(text)


def best_thresholds(truth, probabilities):
    """Of each label the (highest) threshold of the best F1; 0.5 for a label without positives.

    truth (N, L) bool, probabilities (N, L) -> list of L floats.
    """
    from sklearn.metrics import confusion_matrix_at_thresholds  # half a second, and predict.py needs none

    found = []
    for true, said in zip(truth.T, probabilities.T):
        # thresholds from the highest down; F1 from whole counts, so that equal ones tie exactly
        _, false, missed, hits, thresholds = confusion_matrix_at_thresholds(true, said)
        f1 = 2 * hits / (2 * hits + false + missed)
        found.append(float(thresholds[f1.argmax()]) if true.any() else 0.5)
    return found


def refuse_strange_labels(labels, texts, path):
    """Raises BadInput for too many or too few labels, or labels like text: they are printed and stored."""
    count = f"{path}: {len(labels)} distinct labels among {texts} texts"
    if len(labels) > max(2, texts / 3):
        raise BadInput(f"{count}; is --label-column right?")
    names = re.compile(r"[\w .,:;/&()+'-]{1,60}")
    strange = [name for name in labels if not names.fullmatch(name) or len(re.findall(r"\w+", name)) > 6]
    if strange:
        what = f"{len(strange)} of {len(labels)} labels look like text, not like names"
        raise BadInput(f"{path}: {what}; is --label-column right?")
    if not 2 <= len(labels) <= 500:
        raise BadInput(f"{count}; needs 2 to 500")


class Trials(Task):
    """Classes or label sets, scored by a classification report as in the reference."""

    name, unit = "trials", "texts"
    per_label, per_label_csv = metrics.REPORT, "classification_report_{}.csv"
    demo_files = ("stop_reasons.csv", "trials.csv")
    usual_text = (("context",), ("brief_title", "brief_summary", "eligibility_criteria"), ("TEXT",))
    published = (
        "Reference (stop reasons, 17 labels, threshold 0.3): micro-F1 0.8709 before and 0.9585 after "
        "adaptation, but scored on all rows, training rows included; on its held-out rows micro-F1 0.776 and "
        "0.786, macro-F1 0.525 and 0.581."
    )
    OPTIONS = {
        "--label-separator": {
            "default": None,
            "help": "separator of several labels in the column, such as ';'; gives label sets (one label)",
        },
        "--multi-label": {
            "action": "store_true",
            "help": "label sets from one column of one label: rows with the same text unite theirs (off)",
        },
        "--threshold": {
            "type": threshold_or_auto,
            "default": 0.3,
            "help": "probability that predicts a label; auto = one per label, chosen on validation (0.3)",
        },
        **LABEL_COLUMN,
        **COLUMNS,
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

        self.sets = bool(chosen.multi_label or chosen.label_separator or several)
        self.thresholds = None  # per label, once chosen
        if self.sets:
            self.overall, self.selection, self.fewest_labels = metrics.MULTI_LABEL, "MicroF1", 1
            self.headline = {"MicroF1": "micro-F1", "MacroF1": "macro-F1", "Accuracy": "subset accuracy"}

    # --- a note's way

    def read(self, path, keep, counts):
        """Texts with their labels, as names for now."""
        table, notes = self.open_table(path), []
        label_at = [table.column(name, "--label-column") for name in self.label_columns]
        if set(label_at) & set(self.columns(table)[0]):
            what = "--label-column names a column of the text; a label must stand in a column of its own"
            raise BadInput(f"{path}: {what}")

        counts.update({"without text": 0, "without label": 0})
        empty_is_a_set = self.sets and not self.options.multi_label  # an empty class is no label
        for line, row_id, subject, text, row in self.rows(table, counts, keep):
            label = self._label_names([row[at] for at in label_at], f"{path}, line {line}")
            counts["with an empty set of labels" if empty_is_a_set else "without label"] += not label
            if label or empty_is_a_set:
                notes.append(self.note(table, line, row_id, subject, text, label))
        return notes

    def _label_names(self, cells, where):
        """The names in a row's label columns, each once, a tuple."""
        if len(cells) == 1:
            separator = self.options.label_separator
            names = cells[0].split(separator) if separator else cells
            return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        for name, cell in zip(self.label_columns, cells, strict=True):
            if cell.strip() not in ("0", "1", "0.0", "1.0"):
                raise BadInput(f"{where}: column {name!r} is neither 0 nor 1; several label columns must be")
        return tuple(
            name for name, cell in zip(self.label_columns, cells, strict=True) if cell.strip()[0] == "1"
        )

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
        index = {name: i for i, name in enumerate(self.labels)}
        for note in examples:
            indices = tuple(sorted(index[name] for name in note.label))
            note.label = indices if self.sets else indices[0]
        return examples

    def strata(self, example):
        """The labels of a set, or None if it is empty."""
        return (example.label or (None,)) if self.sets else (example.label,)

    def tally(self, examples):
        """{label: how many have it}."""
        if not self.sets:
            return super().tally(examples)
        return {name: sum(i in e.label for e in examples) for i, name in enumerate(self.labels)}

    # --- tensors

    def head(self):
        """What must be equal for heads to be exchanged: also whether they answer sets or classes."""
        return [*super().head(), self.sets]

    def targets(self, examples):
        """(N,) classes, or (N, L) zeros and ones as float32."""
        if not self.sets or any(e.label is None for e in examples):
            return super().targets(examples)
        return self._sets(examples).astype(np.float32)

    def _sets(self, examples):
        """Which example has which label, (N, L) bool."""
        truth = np.zeros((len(examples), len(self.labels)), bool)
        for row, example in zip(truth, examples, strict=True):
            row[list(example.label if self.sets else [example.label])] = True
        return truth

    def loss(self, model, batch, outputs):
        """Cross-entropy, or binary cross-entropy, the mean over texts and labels: logits (B, L) -> scalar."""
        if not self.sets:
            return super().loss(model, batch, outputs)
        weights = None if self.weights is None else self.weights.to(outputs.logits)
        return F.binary_cross_entropy_with_logits(outputs.logits, batch["labels"], pos_weight=weights)

    def categorical(self, logits, batch):
        """Of label sets each label is a softmax of its own over (absent, present): (B * L, 2)."""
        return F.pad(logits.reshape(-1, 1), (1, 0)) if self.sets else logits

    def read_out(self, model, batch, outputs):
        """Probabilities, (L,) each."""
        if not self.sets:
            return super().read_out(model, batch, outputs)
        return outputs.logits.float().sigmoid().cpu().numpy()

    def calibrate(self, examples, predictions):
        """With --threshold auto, choose a threshold per label by its F1 on validation."""
        if self.sets and self.options.threshold == "auto":
            self.thresholds = best_thresholds(self._sets(examples), np.stack(predictions))
            pairs = zip(self.labels, self.thresholds, strict=True)
            print("thresholds chosen on validation:", ", ".join(f"{name} {t:.2f}" for name, t in pairs))

    def called(self, probabilities):
        """Which labels the probabilities (..., L) predict, bool."""
        if not self.sets:
            return np.arange(len(self.labels)) == probabilities.argmax(-1)[..., None]
        if self.thresholds:
            return probabilities >= np.array(self.thresholds)
        auto = self.options.threshold == "auto"
        return probabilities >= (0.3 if auto else self.options.threshold)  # auto: epochs are compared at 0.3

    # --- scores and files

    def score(self, examples, predictions, intervals=False):
        """Overall scores, and as per-label rows the classification report with its four averages."""
        probabilities = np.stack(predictions)
        if self.sets:
            return metrics.multi_label(
                self._sets(examples), self.called(probabilities), self.labels, intervals
            )
        scores = super().score(examples, predictions, intervals)
        report = metrics.classification_report(self._sets(examples), self.called(probabilities), self.labels)
        return scores._replace(per_label=report)

    def table(self, scores):
        """The classification report as text."""
        width = max(map(len, scores.per_label))
        lines = [f"{'':{width}}  precision  recall  f1-score  support"]
        for name, row in scores.per_label.items():
            precision, recall, f1 = (
                f"{row[s]:.4f}" if row[s] is not None else "-" for s in metrics.REPORT[:3]
            )
            lines.append(f"{name:{width}}  {precision:>9}  {recall:>6}  {f1:>8}  {row['Support']:>7}")
        return "\n".join(
            lines + ["- : never called, or never true; counts as 0 in the averages, as in the reference"]
        )

    def _names(self, chosen):
        return ";".join(name for name, yes in zip(self.labels, chosen, strict=True) if yes)

    def record(self, prediction):
        """[predicted names, joined by ;, probability of each label]."""
        return [self._names(self.called(prediction)), *(f"{p:.6f}" for p in prediction)]

    def truth(self, example):
        """The true names, joined by ;."""
        return self._names(self._sets([example])[0])

    def rescored(self, rows):
        """Classes as single labels, sets by metrics.multi_label."""
        if not self.sets:
            return super().rescored(rows)
        truth, called = (
            np.array([[f";{name};" in f";{row[key]};" for name in self.labels] for row in rows])
            for key in ("label", "predicted")
        )
        scores = metrics.multi_label(truth, called, self.labels)
        return scores.overall, metrics.weighted_multi_label(truth, called)

    def answer(self, example, prediction):
        """The label or labels predicted, and all probabilities."""
        called = [name for name, yes in zip(self.labels, self.called(prediction), strict=True) if yes]
        return {**super().answer(example, prediction), "predicted": called if self.sets else called[0]}

    def describe(self):
        """Also the thresholds, if they were chosen."""
        return {**super().describe(), "thresholds": self.thresholds}

    @classmethod
    def from_facts(cls, facts):
        """Also the thresholds, if they were chosen."""
        task = super().from_facts(facts)
        task.thresholds = facts["thresholds"]
        return task
