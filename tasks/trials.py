"""Classification of clinical trials by their text: one class each, or a set of labels.

One label column gives classes (softmax, cross-entropy). Several 0/1 columns, a column of separated labels, or one column
with --multi-label give sets: a sigmoid per label, binary cross-entropy, and a label is called where its probability
reaches the threshold, 0.3 as in the reference or per label the one of the best F1 on validation. Rows of the same text are
one example: its set is their union; of classes the first is kept, and contradictions are counted.
"""

import re

import numpy as np
import torch.nn.functional as F

import metrics
from cli import BadInput, number
from data import Note, Table, fold_duplicates
from tasks.demo_trials import write_both
from tasks.task import CLASS_WEIGHTS, COLUMNS, LABEL_COLUMN, Task


def threshold_or_auto(text):
    """An argparse type: a probability in (0, 1), or 'auto'."""
    return text if text == "auto" else number(float, 0, 1, True, True)(text)


def best_thresholds(truth, probabilities):
    """Of each label the threshold of the highest F1 (the highest of several); 0.5 for a label without positives.

    truth (N, L) bool, probabilities (N, L) -> list of L floats.
    """
    found = []
    for true, said in zip(truth.T, probabilities.T):
        hits, called = metrics.ranked(true, said)
        f1 = 2 * hits / (called + true.sum())
        found.append(float(np.unique(said)[::-1][f1.argmax()]) if true.any() else 0.5)
    return found


class Trials(Task):
    """Classes or label sets, scored by a classification report in the reference's form."""

    name, unit = "trials", "texts"
    demo_files = ("stop_reasons.csv", "trials.csv")
    per_label, per_label_csv, label_column = metrics.REPORT, "classification_report_{}.csv", "Label"
    usual_text = (("context",), ("brief_title", "brief_summary", "eligibility_criteria"), ("TEXT",))
    usual_row, usual_subject = ("ROW_ID",), ()
    published = (
        "Reference (stop reasons, 17 labels, threshold 0.3): micro-F1 0.8709 before and 0.9585 after adaptation, but scored on all rows, "
        "training rows included; on its held-out rows micro-F1 0.776 and 0.786, macro-F1 0.525 and 0.581."
    )
    OPTIONS = {
        "--label-separator": dict(default=None, help="what separates several labels in the column, such as ';'; makes label sets"),
        "--multi-label": dict(action="store_true", help="label sets although there is one column of one label; same texts unite theirs"),
        "--threshold": dict(type=threshold_or_auto, default=0.3, help="probability that calls a label; auto = per label, on validation"),
        **LABEL_COLUMN, **COLUMNS, **CLASS_WEIGHTS,
    }  # fmt: skip

    @classmethod
    def write_demonstration(cls, directory, rows):
        """Reasons why a trial stopped, 3,000 at most, and descriptions of trials for mlm."""
        return write_both(directory, rows)

    def __init__(self, **options):
        super().__init__(**options)
        self.columns_of_labels = [name.strip() for name in self.options.label_column.split(",") if name.strip()]
        self.sets = bool(self.options.multi_label or self.options.label_separator or len(self.columns_of_labels) > 1)
        self.thresholds = None  # per label, once chosen
        if self.sets:
            self.overall = metrics.MULTI_LABEL
            self.headline = {"MicroF1": "micro-F1", "MacroF1": "macro-F1", "Accuracy": "subset accuracy"}
            self.selection = "MicroF1"
        if not self.columns_of_labels or len(set(self.columns_of_labels)) < len(self.columns_of_labels):
            raise BadInput("--label-column: must name a column, or several, each of them once")
        if self.options.label_separator and len(self.columns_of_labels) > 1:
            raise BadInput("--label-separator: goes with one --label-column, not with several 0/1 columns")

    def read(self, path, keep, counts):
        """Texts with their labels, as names for now."""
        table, notes = Table(path), []
        label_at = [table.column(name, "--label-column") for name in self.columns_of_labels]
        if set(label_at) & set(self.columns(table)[0]):
            raise BadInput(f"{path}: --label-column names a column of the text; a label must stand in a column of its own")
        counts.update({"without text": 0, "without label": 0})
        for line, row_id, subject, text, row in self.rows(table, counts, keep):
            if len(label_at) > 1:
                label = []
                for name, at in zip(self.columns_of_labels, label_at):
                    if row[at].strip() not in ("0", "1", "0.0", "1.0"):
                        raise BadInput(f"{path}, line {line}: column {name!r} is neither 0 nor 1; several label columns must be")
                    label += [name] * (row[at].strip()[0] == "1")
            else:
                cell = row[label_at[0]]
                label = [part.strip() for part in (cell.split(self.options.label_separator) if self.options.label_separator else [cell])]
            label = tuple(dict.fromkeys(name for name in label if name))
            counts["with an empty set of labels" if self.sets and not self.options.multi_label else "without label"] += not label
            if label or (self.sets and not self.options.multi_label):  # an empty set is an answer, an empty class is none
                notes.append(Note(row_id, subject or f"row {row_id}", text, label))
        return notes

    def fold(self, examples, counts):
        """Same text, one example: sets are united, of contradicting classes the first stays."""

        def merge(kept, other):
            if kept.label != other.label:
                counts["contradicting duplicates" if not self.sets else "duplicates with other labels, united"] += 1
            if self.sets:
                kept.label = tuple(dict.fromkeys(kept.label + other.label))

        examples, folded = fold_duplicates(examples, merge)
        counts["exact duplicates"] += folded
        return examples

    def settle_labels(self, examples, counts, path, seed):
        """All names found, in alphabetical order (0/1 columns in theirs); labels become indices."""
        found = {name for note in examples for name in note.label}
        self.labels = self.columns_of_labels if len(self.columns_of_labels) > 1 else sorted(found)
        if len(self.labels) > max(2, len(examples) / 3):  # labels are printed and stored, so text must not pass for them
            raise BadInput(f"{path}: {len(self.labels)} distinct labels among {len(examples)} texts; is --label-column right?")
        if strange := [
            name for name in self.labels if not re.fullmatch(r"[\w .,:;/&()+'-]{1,60}", name) or len(re.findall(r"\w+", name)) > 6
        ]:
            raise BadInput(f"{path}: {len(strange)} of {len(self.labels)} labels look like text, not like names; is --label-column right?")
        if len(self.labels) < 2 or len(self.labels) > 500:
            raise BadInput(f"{path}: {len(self.labels)} distinct labels among {len(examples)} texts; needs 2 to 500")
        index = {name: i for i, name in enumerate(self.labels)}
        for note in examples:
            indices = tuple(sorted(index[name] for name in note.label))
            note.label = indices if self.sets else indices[0]
        return examples

    def head(self):
        """Label sets and classes are not learnt alike."""
        return [*super().head(), self.sets]

    def strata(self, example):
        """The labels of a set, or none."""
        return (example.label if example.label else (None,)) if self.sets else (example.label,)

    def tally(self, examples):
        """{label: how many have it}."""
        return {name: sum(i in e.label for e in examples) for i, name in enumerate(self.labels)} if self.sets else super().tally(examples)

    def check(self, files, per_split):
        """Something to learn and to score in every split; rare labels are named, not refused."""
        for split, counts in per_split.items():
            if sum(count > 0 for count in counts.values()) < (1 if self.sets else 2):
                raise BadInput(f"{files[split]}: {split} has {'no label' if self.sets else 'fewer than two classes'}; give more rows")
        for split in ("validation", "test"):
            if missing := [name for name, count in per_split[split].items() if not count]:
                print(f"warning: {split} has no text of {', '.join(missing)}; too few rows have it")

    def targets(self, examples):
        """(N,) classes, or (N, L) zeros and ones as float."""
        if not self.sets or any(e.label is None for e in examples):
            return super().targets(examples)
        return self._sets(examples).astype(np.float32)

    def _sets(self, examples):
        truth = np.zeros((len(examples), len(self.labels)), bool)
        for row, example in zip(truth, examples):
            row[list(example.label if self.sets else [example.label])] = True
        return truth

    def loss(self, model, batch, outputs):
        """Cross-entropy, or binary cross-entropy, the mean over texts and labels. logits (B, L)."""
        if not self.sets:
            return super().loss(model, batch, outputs)
        weights = None if self.weights is None else self.weights.to(outputs.logits)
        return F.binary_cross_entropy_with_logits(outputs.logits, batch["labels"], pos_weight=weights)

    def categorical(self, logits, batch):
        """Of label sets each label is a softmax of its own over (absent, present): (B * L, 2)."""
        return F.pad(logits.reshape(-1, 1), (1, 0)) if self.sets else logits

    def read_out(self, model, batch, outputs):
        """Probabilities, (L,) each."""
        return outputs.logits.float().sigmoid().cpu().numpy() if self.sets else super().read_out(model, batch, outputs)

    def calibrate(self, examples, predictions):
        """With --threshold auto, one threshold per label by validation F1."""
        if self.sets and self.options.threshold == "auto":
            self.thresholds = best_thresholds(self._sets(examples), np.stack(predictions))
            print("thresholds chosen on validation:", ", ".join(f"{name} {t:.2f}" for name, t in zip(self.labels, self.thresholds)))

    def called(self, probabilities):
        """Which labels the probabilities (..., L) call, bool."""
        if not self.sets:
            return np.arange(len(self.labels)) == probabilities.argmax(-1)[..., None]
        fixed = 0.3 if self.options.threshold == "auto" else self.options.threshold  # auto chooses epochs by the reference's
        return probabilities >= (np.array(self.thresholds) if self.thresholds else fixed)

    def score(self, examples, predictions, intervals=False):
        """Overall scores, and as per-label rows the classification report with its four averages."""
        probabilities = np.stack(predictions)
        if self.sets:
            return metrics.multi_label(self._sets(examples), self.called(probabilities), self.labels, intervals)
        scores = super().score(examples, predictions, intervals)
        report = metrics.classification_report(self._sets(examples), self.called(probabilities), self.labels)
        macro = {name: report["macro avg"][name] for name in ("Precision", "Recall", "F1")}  # defined even where a class is rare
        if intervals:
            scores.intervals["F1"] = metrics.bootstrap_interval(scores.confusion, lambda counts: metrics.macro_f1_of(counts, absent=0.0))
        return scores._replace(overall={**scores.overall, **macro}, per_label=report)

    def table(self, scores):
        """The classification report as text."""
        width = max(map(len, scores.per_label))
        lines = [f"{'':{width}}  precision  recall  f1-score  support"]
        for name, row in scores.per_label.items():
            precision, recall, f1 = (f"{row[s]:.4f}" if row[s] is not None else "-" for s in metrics.REPORT[:3])
            lines.append(f"{name:{width}}  {precision:>9}  {recall:>6}  {f1:>8}  {row['Support']:>7}")
        return "\n".join(lines + ["- : never called, or never true; counts as 0 in the averages, as in the reference"])

    def _names(self, chosen):
        return ";".join(name for name, yes in zip(self.labels, chosen) if yes)

    def record(self, prediction):
        """[names called, joined by ;, probability of each label]."""
        return [self._names(self.called(prediction)), *(f"{p:.6f}" for p in prediction)]

    def truth(self, example):
        """The true names, joined by ;."""
        return self._names(self._sets([example])[0])

    def answer(self, example, prediction):
        """The label or the labels called, and all probabilities."""
        called = [name for name, yes in zip(self.labels, self.called(prediction)) if yes]
        return {
            "predicted": called if self.sets else called[0],
            "probabilities": {n: round(float(p), 6) for n, p in zip(self.labels, prediction)},
        }

    def describe(self):
        """With the thresholds, if they were chosen."""
        return {**super().describe(), "thresholds": self.thresholds}

    @classmethod
    def from_facts(cls, facts):
        """With the thresholds, if they were chosen."""
        task = super().from_facts(facts)
        task.thresholds = facts["thresholds"]
        return task
