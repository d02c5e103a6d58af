"""Early readmission: from a discharge summary, will the patient be back within --days?

Labels come from MIMIC's ADMISSIONS table (tasks/admissions.py); the note is the stay's discharge summary with
its addenda. Or both come from a ready file with a text column and a --label-column of 0 and 1.

A note longer than the window is read in overlapping chunks. Of n chunk probabilities an admission gets the
mean, or Huang's (P_max + P_mean n / c) / (1 + n / c), which trusts the mean more the more chunks there are.
With --head logistic the answer is a logistic regression on the last layer's [CLS] vector; the reference took
layer 0, which is the same for every note.
"""

import re
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import metrics
from cli import BadInput, number
from data import Note, digest, frame, pack, repeated, tokenise, windows
from tasks.admissions import clean_id, read_admissions
from tasks.demo_readmission import write_admissions
from tasks.task import CLASS_WEIGHTS, COLUMNS, LABEL_COLUMN, SUBGROUPS, Task

C_GRID = np.logspace(-4, 2, 20)  # the reference searches 20 values from 0.0001 to 100


def combine_chunks(probabilities, rule, scaling):
    """One probability of an admission from those of its chunks (n,)."""
    mean = probabilities.mean()
    if rule == "mean":
        return mean
    if rule == "max":
        return probabilities.max()
    share = len(probabilities) / scaling
    return (probabilities.max() + mean * share) / (1 + share)


def fit_logistic(x, y, patients, weight):
    """(weights (H,), bias, C, its AUROC) of a logistic regression on vectors x (N, H), labels y (N,).

    The vectors are standardised for the fit; the weights returned are those for the raw vectors. C is the
    value of C_GRID with the best mean AUROC in 5-fold cross-validation grouped by patient. weight: None or
    "balanced".
    """
    from sklearn.linear_model import LogisticRegression  # here, since it takes a second to import
    from sklearn.model_selection import GroupKFold

    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    x = (x - mean) / scale

    def fit(c, x, y):
        return LogisticRegression(C=c, max_iter=1000, class_weight=weight).fit(x, y)

    def fold_score(c, train, held_out):
        return metrics.auroc(y[held_out] == 1, fit(c, x[train], y[train]).decision_function(x[held_out]))

    folds = GroupKFold(n_splits=min(5, len(set(patients)))).split(x, y, patients)
    folds = [(train, held_out) for train, held_out in folds if len(set(y[train])) == 2]
    quality = []
    for c in tqdm(C_GRID, desc="choosing C", leave=False, disable=None):
        scores = [fold_score(c, *fold) for fold in folds]
        quality.append(np.mean([score for score in scores if score is not None] or [0.0]))

    best = C_GRID[int(np.argmax(quality))]
    final = fit(best, x, y)
    slope = final.coef_[0] / scale
    return slope, float(final.intercept_[0] - slope @ mean), float(best), float(max(quality))


def same(cell, name):
    """Whether a cell holds a name, in any case."""
    return cell.strip().casefold() == name.casefold()


class Readmission(Task):
    """Two classes per admission; a row of tokens is a chunk, a prediction is an admission's probability."""

    name, unit = "readmission", "admissions"
    purpose = "Gives the probability that a patient is admitted again soon, from the notes of a stay."
    demo_files = ("NOTEEVENTS.csv", "ADMISSIONS.csv")
    overall, label_column = metrics.BINARY, "Class"
    per_label_csv = "per_class_{}_metrics.csv"
    headline = {
        "AUROC": "AUROC",
        "AUPRC": "AUPRC",
        "Accuracy": "accuracy",
        "Majority": "accuracy of the majority class",
        "RecallAtP80": "recall at 80% precision",
        "Brier": "Brier score",
        "ECE": "calibration error",
    }
    selection, group_score, folds, separate = "AUROC", "AUROC", False, True
    sure_of = "a readmission"
    published = "As published: on MIMIC, 3 days; neither class balance nor AUROC are given."
    OPTIONS = {
        "--admissions": {
            "default": None,
            "help": "ADMISSIONS.csv or .gz, unless --data has the --label-column (the one beside --data)",
        },
        "--days": {
            "type": number(float, 0, 36500, low_open=True),
            "default": 3.0,
            "help": "days after discharge within which a return counts (3)",
        },
        "--category": {
            "default": "Discharge summary",
            "help": "CATEGORY of the notes to read, in any case (Discharge summary)",
        },
        "--combine": {
            "choices": ("mean", "max", "huang"),
            "default": "mean",
            "help": "how an admission's probability is made from those of its chunks (mean)",
        },
        "--scaling-factor": {
            "type": number(float, 0, 10**6, low_open=True),
            "default": 2.0,
            "help": "c of --combine huang (2)",
        },
        "--chunk-overlap": {
            "type": number(float, 0, 0.9),
            "default": 0.1,
            "help": "share of a chunk that the next one repeats (0.1)",
        },
        "--head": {
            "choices": ("linear", "logistic"),
            "default": "linear",
            "help": "logistic: fitted on [CLS] after training, or with --epochs 0 without training (linear)",
        },
        **LABEL_COLUMN,
        **COLUMNS,
        **SUBGROUPS,
        **CLASS_WEIGHTS,
    }

    @classmethod
    def write_demonstration(cls, directory, rows):
        """Notes and admissions, about so many admissions, 1,500 at most."""
        return write_admissions(*(directory / name for name in cls.demo_files), min(rows, 1500))

    def __init__(self, **options):
        super().__init__(**options)
        self.labels = ["not readmitted", "readmitted"]
        self.logistic = self.options.head == "logistic"
        if self.logistic:
            self.auto_class = AutoModelForTokenClassification  # a Linear on every vector; ours is [CLS]'s
        else:
            self.auto_class = AutoModelForSequenceClassification

    # --- a note's way

    def prepare_text(self, text):
        """Without the marks of de-identification; white space becomes single blanks."""
        return re.sub(r"\s+", " ", re.sub(r"\[\*\*[^\]]*\*\*\]", "", text)).strip()

    def read(self, path, keep, counts):
        """Admissions with a note and a label."""
        table = self.open_table(path)
        label_at = table.column(self.options.label_column, "--label-column", required=False)
        admissions = self.options.admissions
        if label_at is not None and not admissions:
            return self._ready(path, table, label_at, keep, counts)
        if not admissions:
            beside = [Path(path).with_name(name) for name in ("ADMISSIONS.csv", "ADMISSIONS.csv.gz")]
            admissions = next((str(file) for file in beside if file.exists()), None)
        if not admissions:
            what = f"no column {self.options.label_column!r} and no ADMISSIONS.csv beside it"
            raise BadInput(f"{path}: {what}; name one with --admissions")
        return self._joined(table, admissions, keep, counts)

    def _ready(self, path, table, label_at, keep, counts):
        """Admissions of a file with a label column of 0 and 1."""
        notes, groups = [], self.group_reader(table)
        for _, row_id, subject, text, row in self.rows(table, counts, keep):
            if (label := row[label_at].strip()) not in ("0", "1"):
                raise BadInput(
                    f"{path}, line {table.line}: column {table.columns[label_at]!r} is neither 0 nor 1"
                )
            text = self.prepare_text(text)
            subject = subject or f"text {digest(text):016x}"
            notes.append(Note(row_id, subject, text, int(label), groups=groups(row)))
        return notes

    def _joined(self, table, admissions, keep, counts):
        """Admissions of an ADMISSIONS table that have notes of the right category, addenda joined."""
        labels, subjects, passed = read_admissions(self.open_table(admissions), self.options.days)
        counts.update(passed)
        texts, groups = self._texts(table, labels, subjects, counts)
        counts["admissions without a note"] += len(labels) - len(texts)
        counts["addenda joined"] += sum(map(len, texts.values())) - len(texts)
        self.by_subject = True
        kept = [admission for admission in texts if keep(admission)]
        counts["admissions not sampled"] += len(texts) - len(kept)
        return [
            Note(a, subjects[a], self.prepare_text("\n".join(texts[a])), labels[a], groups=groups[a])
            for a in kept
        ]

    def _texts(self, table, labels, subjects, counts):
        """{admission id: [texts]} of the labelled admissions, {admission id: groups of the first of them}.

        Notes that are left out are counted.
        """
        at = table.column("HADM_ID", None)
        category_at = table.column("CATEGORY", None, required=False)
        error_at = table.column("ISERROR", None, required=False)
        texts, groups, groups_of = {}, {}, self.group_reader(table)
        for _, _, _, text, row in self.rows(table, counts):
            admission = clean_id(row[at])
            if category_at is not None and not same(row[category_at], self.options.category):
                counts["of another category"] += 1
            elif error_at is not None and row[error_at].strip() == "1":
                counts["marked as errors"] += 1
            elif not admission or admission not in subjects:
                counts["of no admission in the table"] += 1
            elif admission not in labels:
                counts["of admissions that are left out"] += 1
            else:
                texts.setdefault(admission, []).append(text)
                groups.setdefault(admission, groups_of(row))
        return texts, groups

    def fold(self, examples, counts):
        """Nothing is folded: admissions with equal notes are still two; the split is by patient."""
        counts["with the text of another admission, kept"] += repeated(examples)
        return examples

    def check_dealable(self, path, examples, ways):
        """Say so if the patients are not known."""
        if not self.by_subject:
            print(
                f"warning: {path} has no SUBJECT_ID, so the split is by text, not by patient; "
                "name the patient with --subject-column"
            )

    def check_split(self, path, split, tally, dealt):
        """Both classes in train and in every split that is dealt out of a file."""
        for name, count in tally.items():
            if not count:
                raise BadInput(f"{path}: {split} has no admission {name!r}; give more data, or more --days")

    # --- tensors

    def encode(self, examples, tokenizer, max_length, progress=True):
        """Chunks of at most max_length tokens, each with the label of its admission."""
        before, after = frame(tokenizer)
        room = max_length - len(before) - len(after)
        overlap, rows, owner, at = int(self.options.chunk_overlap * room), [], [], 0
        texts = [example.text for example in examples]
        for batch in tokenise(texts, tokenizer, progress, add_special_tokens=False):
            for ids in batch["input_ids"]:
                for start, stop in windows(len(ids), room, overlap):
                    rows.append(np.concatenate([before, np.asarray(ids[start:stop], np.int32), after]))
                    owner.append(at)
                at += 1

        encoded = pack(rows, owner)
        targets = self.targets(examples)
        encoded.labels = None if targets is None else targets[encoded.owner]
        return encoded

    def forward(self, model, batch, **keywords):
        """Logits of chunks, (B, 2); with --head logistic, those of [CLS]."""
        outputs = super().forward(model, batch, **keywords)
        if self.logistic:
            outputs.logits = outputs.logits[:, 0]  # (B, T, 2) -> (B, 2)
        return outputs

    def read_out(self, model, batch, outputs):
        """Probability of a return, one number per chunk."""
        return outputs.logits.float().softmax(-1)[:, 1].cpu().numpy()

    def combine(self, examples, encoded, results):
        """One probability per admission from those of its chunks."""
        chunks = np.split(np.array(results, np.float64), np.flatnonzero(np.diff(encoded.owner)) + 1)
        return [combine_chunks(part, self.options.combine, self.options.scaling_factor) for part in chunks]

    # --- logistic regression

    @classmethod
    def can_fit_head(cls, options):
        """--head logistic needs no epochs."""
        return options["head"] == "logistic"

    def fit_head(self, model, examples, encoded, pad_id):
        """With --head logistic, put a logistic regression on the [CLS] vectors into the classifier."""
        if not self.logistic:
            return {}
        x, patients = self.cls_vectors(model, encoded, pad_id), [examples[i].subject for i in encoded.owner]
        weight = "balanced" if self.options.class_weights else None
        slope, bias, c, quality = fit_logistic(x, encoded.labels, np.array(patients), weight)

        # logits (0, x @ slope + bias): their softmax is the regression's probability
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(np.stack([np.zeros_like(slope), slope])))
            model.classifier.bias.copy_(torch.tensor([0.0, bias]))
        print(
            f"logistic: {len(x)} [CLS] vectors of {len(set(patients))} patients, "
            f"C {c:.4g} of {len(C_GRID)}, cross-validated AUROC {quality:.4f}"
        )
        return {"C": c, "cross-validated AUROC": quality}

    # --- scores

    def score(self, examples, predictions):
        """metrics.binary over admissions."""
        return metrics.binary(np.array([e.label for e in examples]), np.array(predictions), self.labels)

    def limits(self):
        """That the prediction comes late."""
        return ["It reads notes that are written at discharge, so it answers no earlier than that."]

    def certainty(self, examples, predictions):
        """The probability of a return, (N, 1)."""
        return np.array([[e.label == 1] for e in examples]), np.array(predictions)[:, None]

    def from_probabilities(self, probabilities):
        """That of a return."""
        return list(probabilities[:, 1])

    def certainty_of(self, rows):
        """The probability of a return, (N, 1)."""
        truth, _, probabilities = self.read_back(rows)
        return truth[:, 1:], probabilities[:, 1:]

    def rescored(self, rows):
        """metrics.binary of predictions.csv."""
        truth, called, probabilities = self.read_back(rows)
        columns = truth[:, 1], called[:, 1], probabilities[:, 1]
        scores = metrics.binary(truth.argmax(1), probabilities[:, 1], self.labels)
        return scores.overall, metrics.weighted_binary(*columns)

    def record(self, prediction):
        """[class, probability of 0, probability of 1]."""
        said = self.stated(prediction)
        return [self.labels[int(prediction > 0.5)], f"{1 - said:.6f}", f"{said:.6f}"]

    def answer(self, example, prediction):
        """Class and probability."""
        said = self.stated(prediction)
        return {"predicted": self.labels[int(prediction > 0.5)], "probability": round(float(said), 6)}
