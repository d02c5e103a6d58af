"""One label per example, or a set of labels: what tasks with both share.

Of a set each label has a sigmoid and binary cross-entropy. A label is predicted where its probability reaches
the threshold: 0.3 as in the reference, or per label the one with the best F1 on validation.
"""

from collections import Counter

import numpy as np
import torch.nn.functional as F

import metrics
from cli import number
from tasks.task import Task


def threshold_or_auto(text):
    """An argparse type: a probability in (0, 1), or 'auto'."""
    return text if text == "auto" else number(float, 0, 1, True, True)(text)


def best_thresholds(truth, probabilities):
    """Of each label the (highest) threshold of the best F1; 0.5 for a label without positives.

    It lies midway to the next lower probability, so that rounding elsewhere does not move a note across it.
    truth (N, L) bool, probabilities (N, L) -> list of L floats.
    """
    from sklearn.metrics import confusion_matrix_at_thresholds  # half a second, and predict.py needs none

    found = []
    for true, said in zip(truth.T, probabilities.T):
        # thresholds from the highest down; F1 from whole counts, so that equal ones tie exactly
        _, false, missed, hits, thresholds = confusion_matrix_at_thresholds(true, said)
        f1 = 2 * hits / (2 * hits + false + missed)
        midway = (thresholds + np.append(thresholds[1:], 0)) / 2
        found.append(float(midway[f1.argmax()]) if true.any() else 0.5)
    return found


LABEL_SETS = {
    "--multi-label": {
        "action": "store_true",
        "help": "label sets: all symptoms of a note; of trials, rows with the same text unite theirs (off)",
    },
    "--threshold": {
        "type": threshold_or_auto,
        "default": 0.3,
        "help": "probability that predicts a label of a set; auto = per label, chosen on validation (0.3)",
    },
}


class LabelSets(Task):
    """A task whose examples have one label each, or several or none after answer_sets()."""

    sets = False
    thresholds = None  # per label, once chosen

    def answer_sets(self):
        """From now on labels are tuples of indices, and the scores those of sets."""
        self.sets, self.fewest_labels = True, 1
        self.purpose = "Gives a text all of the labels below that fit it."
        self.overall, self.per_label, self.selection = metrics.MULTI_LABEL, metrics.REPORT, "MicroF1"
        self.group_score, self.separate, self.sure_of = "MicroF1", True, "every label of every text"
        self.headline = {"MicroF1": "micro-F1", "MacroF1": "macro-F1", "Accuracy": "subset accuracy"}

    def labels_of(self, example):
        """The indices of an example's labels, a tuple."""
        return example.label if self.sets else (example.label,)

    def strata(self, example):
        """The labels of a set, or None if it is empty."""
        return self.labels_of(example) or (None,)

    def tally(self, examples):
        """{label: how many have it}."""
        counts = Counter(label for example in examples for label in self.labels_of(example))
        return {name: counts[label] for label, name in enumerate(self.labels)}

    # --- tensors

    def head(self):
        """What must be equal for heads to be exchanged: also whether they answer sets or classes."""
        return [*super().head(), self.sets]

    def targets(self, examples):
        """(N,) classes, or (N, L) zeros and ones as float32."""
        if not self.sets or any(e.label is None for e in examples):
            return super().targets(examples)
        return self._truth(examples).astype(np.float32)

    def _truth(self, examples):
        """Which example has which label, (N, L) bool."""
        truth = np.zeros((len(examples), len(self.labels)), bool)
        for row, example in zip(truth, examples, strict=True):
            row[list(self.labels_of(example))] = True
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
        """With --threshold auto, also choose a threshold per label by its F1 on validation."""
        super().calibrate(examples, predictions)
        if self.sets and self.options.threshold == "auto":
            self.thresholds = best_thresholds(self._truth(examples), np.stack(predictions))
            pairs = zip(self.labels, self.thresholds, strict=True)
            print("thresholds chosen on validation:", ", ".join(f"{name} {t:.2f}" for name, t in pairs))

    def certainty(self, examples, predictions):
        """Of label sets every label's probability, (N, L)."""
        if not self.sets:
            return super().certainty(examples, predictions)
        return self._truth(examples), np.stack(predictions)

    def called(self, probabilities):
        """Which labels the probabilities (..., L) predict, bool."""
        if not self.sets:
            return np.arange(len(self.labels)) == probabilities.argmax(-1)[..., None]
        if self.thresholds:
            return probabilities >= np.array(self.thresholds)
        auto = self.options.threshold == "auto"
        return probabilities >= (0.3 if auto else self.options.threshold)  # auto: epochs are compared at 0.3

    # --- scores and files

    def score(self, examples, predictions):
        """Of sets metrics.multi_label: per-label rows are a classification report with its four averages."""
        if not self.sets:
            return super().score(examples, predictions)
        called = self.called(np.stack(predictions))
        return metrics.multi_label(self._truth(examples), called, self.labels)

    def table(self, scores):
        """A classification report as text, if the per-label rows are one."""
        if self.per_label != metrics.REPORT:
            return None
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
        return [self._names(self.called(prediction)), *(f"{p:.6f}" for p in self.stated(prediction))]

    def truth(self, example):
        """The true names, joined by ;."""
        return self._names(self._truth([example])[0])

    def read_back(self, rows):
        """Of sets, too: their names are joined by ;."""
        truth, called, probabilities = super().read_back(rows)
        if self.sets:
            truth, called = (
                np.array([[f";{name};" in f";{row[key]};" for name in self.labels] for row in rows])
                for key in ("label", "predicted")
            )
        return truth, called, probabilities

    def certainty_of(self, rows):
        """Of label sets every label's probability, (N, L)."""
        truth, _, probabilities = self.read_back(rows)
        return (truth, probabilities) if self.sets else super().certainty_of(rows)

    def rescored(self, rows):
        """Classes as single labels, sets by metrics.multi_label."""
        if not self.sets:
            return super().rescored(rows)
        truth, called, _ = self.read_back(rows)
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
        task.thresholds = facts.get("thresholds")  # symptoms of older runs have none
        return task
