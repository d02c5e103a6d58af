"""Early readmission: from a discharge summary, will the patient be back within --days?

From MIMIC's tables, as Huang et al. (2019, ClinicalBERT) do: an admission is positive if the patient's next unplanned
admission begins within --days of its discharge. Planned (ELECTIVE) next admissions are looked past, stays that begin before
the discharge too; newborns and stays that end in death are left out. The note is the stay's discharge summary, addenda
joined to it. Or from a ready file with a text column and --label-column of 0 and 1.

A note longer than the window is read in overlapping chunks; of n chunk probabilities an admission gets the mean, or Huang's
(P_max + P_mean n / c) / (1 + n / c), which trusts the mean more the more chunks there are. With --head logistic the answer
is a logistic regression on the last layer's [CLS] vector; the reference took layer 0, which is the same for every note.
"""

import re
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import metrics
from cli import BadInput, number
from data import Note, Table, budget_batches, collate, digest, frame, pack, tokenise, windows
from tasks.demo_readmission import write_admissions
from tasks.task import CLASS_WEIGHTS, COLUMNS, LABEL_COLUMN, Task

NOTHING = ("", "0", "0.0", "na", "nat", "nan", "null", "none")  # how tables write that nobody died
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


def readmitted(stays, days):
    """{admission id: 0 or 1} of one patient, and counts of what was looked past. stays: dicts sorted by admission time.

    A stay has id, begin, end, kind (upper case), died.
    """
    labels, counts = {}, Counter()
    for i, stay in enumerate(stays):
        if stay["kind"] == "NEWBORN" or stay["died"]:
            counts["newborn" if stay["kind"] == "NEWBORN" else "died in hospital"] += 1
            continue
        later = [s for s in stays[i + 1 :] if s["kind"] != "NEWBORN"]
        counts["overlapping next stays looked past"] += sum(s["begin"] < stay["end"] for s in later)
        soon = [s for s in later if stay["end"] <= s["begin"] <= stay["end"] + timedelta(days=days)]
        unplanned = [s for s in soon if s["kind"] != "ELECTIVE"]
        counts["planned readmissions looked past"] += len(soon) - len(unplanned)
        labels[stay["id"]] = int(bool(unplanned))
    return labels, counts


def read_admissions(path, days):
    """({admission id: 0 or 1}, {admission id: subject}, counts) from an ADMISSIONS table. Raises BadInput naming the line."""
    table = Table(path)
    names = ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE", "DEATHTIME", "HOSPITAL_EXPIRE_FLAG")
    at = {name: table.column(name, None, required=name not in names[5:]) for name in names}
    by_subject, lines, counts = {}, {}, Counter()
    for line, row in table:
        times = {}
        for name in ("ADMITTIME", "DISCHTIME"):
            try:
                times[name] = datetime.fromisoformat(row[at[name]].strip()).replace(tzinfo=None)
            except ValueError:
                raise BadInput(f"{path}, line {line}: column {name} is no date and time such as 2164-10-23 21:09:00") from None
        admission = row[at["HADM_ID"]].strip().removesuffix(".0")  # of tables that went through pandas
        if admission in lines:
            raise BadInput(f"{path}, line {line}: the HADM_ID of line {lines[admission]} again; each admission must stand once")
        if times["DISCHTIME"] < times["ADMITTIME"]:
            counts["discharged before admitted, left out"] += 1
            continue
        lines[admission] = line
        died = any(at[name] is not None and row[at[name]].strip().casefold() not in NOTHING for name in names[5:])
        stay = {
            "id": admission,
            "begin": times["ADMITTIME"],
            "end": times["DISCHTIME"],
            "kind": row[at["ADMISSION_TYPE"]].strip().upper(),
            "died": died,
        }
        by_subject.setdefault(row[at["SUBJECT_ID"]].strip(), []).append(stay)
    if not lines:
        raise BadInput(f"{path}: no admission in it")
    labels, subjects = {}, {}
    for subject, stays in by_subject.items():
        ours, passed = readmitted(sorted(stays, key=lambda stay: stay["begin"]), days)
        labels.update(ours)
        counts.update(passed)
        subjects.update({stay["id"]: subject for stay in stays})
    return labels, subjects, {"admissions": len(lines), **counts}


class Readmission(Task):
    """Two classes by admission; a row of tokens is a chunk, a prediction an admission's probability."""

    name, unit = "readmission", "admissions"
    demo_files = ("NOTEEVENTS.csv", "ADMISSIONS.csv")
    overall, label_column = metrics.BINARY, "Class"
    per_label_csv = "per_class_{}_metrics.csv"
    headline = {"AUROC": "AUROC", "AUPRC": "AUPRC", "Accuracy": "accuracy", "Majority": "accuracy of the majority class",
                "RecallAtP80": "recall at 80% precision", "Brier": "Brier score", "ECE": "calibration error"}  # fmt: skip
    selection, folds = "AUROC", False
    published = "Reference (MIMIC, 3 days): accuracy 0.67, without class balance or AUROC."
    OPTIONS = {
        "--admissions": dict(default=None, help="ADMISSIONS.csv or .gz (the one beside --data; unless --data has --label-column)"),
        "--days": dict(type=number(float, 0, 36500, low_open=True), default=3.0, help="days within which a return counts (3)"),
        "--category": dict(default="Discharge summary", help="CATEGORY of the notes to read, in any case"),
        "--combine": dict(choices=("mean", "max", "huang"), default="mean", help="how chunk probabilities make the admission's (mean)"),
        "--scaling-factor": dict(type=number(float, 0, 10**6, low_open=True), default=2.0, help="c of the huang rule (2)"),
        "--chunk-overlap": dict(type=number(float, 0, 0.9), default=0.1, help="share of a chunk that the next one repeats (0.1)"),
        "--head": dict(choices=("linear", "logistic"), default="linear", help="logistic: fitted on [CLS] after training; at once with --epochs 0"),
        **LABEL_COLUMN, **COLUMNS, **CLASS_WEIGHTS,
    }  # fmt: skip

    @classmethod
    def write_demonstration(cls, directory, rows):
        """Notes and admissions, about so many admissions, 1,500 at most."""
        return write_admissions(*(directory / name for name in cls.demo_files), min(rows, 1500))

    def __init__(self, **options):
        super().__init__(**options)
        self.labels = ["not readmitted", "readmitted"]
        self.logistic = self.options.head == "logistic"
        if self.logistic:
            self.auto_class = AutoModelForTokenClassification  # a Linear on every last-layer vector; ours is that of [CLS]
        else:
            self.auto_class = AutoModelForSequenceClassification

    # --- rows

    def prepare_text(self, text):
        """Without the marks of de-identification, white space as single blanks."""
        return re.sub(r"\s+", " ", re.sub(r"\[\*\*[^\]]*\*\*\]", "", text)).strip()

    def read(self, path, keep, counts):
        """Admissions with a note and a label."""
        table = Table(path)
        label_at = table.column(self.options.label_column, "--label-column", required=False)
        admissions = self.options.admissions
        if label_at is not None and not admissions:
            return self._ready(path, table, label_at, keep, counts)
        if not admissions:
            beside = [Path(path).with_name(name) for name in ("ADMISSIONS.csv", "ADMISSIONS.csv.gz")]
            admissions = next((str(file) for file in beside if file.exists()), None)
            if not admissions:
                raise BadInput(
                    f"{path}: no column {self.options.label_column!r} and no ADMISSIONS.csv beside it; name one with --admissions"
                )
        return self._joined(path, table, admissions, keep, counts)

    def _ready(self, path, table, label_at, keep, counts):
        notes = []
        for line, row_id, subject, text, row in self.rows(table, counts, keep):
            if row[label_at].strip() not in ("0", "1"):
                raise BadInput(f"{path}, line {line}: column {table.columns[label_at]!r} is neither 0 nor 1")
            text = self.prepare_text(text)
            notes.append(Note(row_id, subject or f"text {digest(text):016x}", text, int(row[label_at])))
        if not self.by_subject:
            print(f"warning: {path} has no SUBJECT_ID, so the split is by text, not by patient; name the patient with --subject-column")
        return notes

    def _joined(self, path, table, admissions, keep, counts):
        labels, subjects, passed = read_admissions(admissions, self.options.days)
        counts.update(passed)
        at = table.column("HADM_ID", None)
        category_at = table.column("CATEGORY", None, required=False)
        error_at = table.column("ISERROR", None, required=False)
        texts = {}
        for _, _, _, text, row in self.rows(table, counts):
            admission = row[at].strip().removesuffix(".0")
            if category_at is not None and row[category_at].strip().casefold() != self.options.category.casefold():
                counts["of another category"] += 1
            elif error_at is not None and row[error_at].strip() == "1":
                counts["marked as errors"] += 1
            elif not admission or admission not in subjects:
                counts["of no admission in the table"] += 1
            elif admission in labels:
                texts.setdefault(admission, []).append(text)
        counts["admissions without a note"] = len(labels) - len(texts)
        counts["addenda joined"] = sum(map(len, texts.values())) - len(texts)
        self.by_subject = True
        kept = [admission for admission in texts if keep(admission)]
        counts["admissions not sampled"] = len(texts) - len(kept)
        return [Note(a, subjects[a], self.prepare_text("\n".join(texts[a])), labels[a]) for a in kept]

    def fold(self, examples, counts):
        """Admissions are never one and the same, whatever their notes say; the split is by patient."""
        counts["with the text of another admission, kept"] += len(examples) - len({note.text for note in examples})
        return examples

    def check(self, files, per_split):
        """Both classes in every split."""
        for split, counts in per_split.items():
            for name, count in counts.items():
                if not count:
                    raise BadInput(f"{files[split]}: {split} has no admission {name!r}; give more data, or more --days")

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
        """Logits of chunks, (B, 2): with --head logistic those of [CLS]."""
        outputs = super().forward(model, batch, **keywords)
        if self.logistic:
            outputs.logits = outputs.logits[:, 0]  # (B, T, 2) -> (B, 2)
        return outputs

    def read_out(self, model, batch, outputs):
        """Probability of a return, a number each."""
        return outputs.logits.float().softmax(-1)[:, 1].cpu().numpy()

    def combine(self, examples, encoded, results):
        """The chunks' probabilities of each admission as one."""
        chunks = np.split(np.array(results, np.float64), np.flatnonzero(np.diff(encoded.owner)) + 1)
        return [combine_chunks(part, self.options.combine, self.options.scaling_factor) for part in chunks]

    # --- logistic regression

    @classmethod
    def can_fit_head(cls, options):
        """--head logistic needs no epochs."""
        return options["head"] == "logistic"

    @torch.inference_mode()
    def _cls_vectors(self, model, encoded, pad_id):
        model.eval()
        vectors = np.empty((len(encoded.lengths), model.config.hidden_size), np.float32)
        device = next(model.parameters()).device
        for rows in tqdm(budget_batches(encoded.lengths, 4096), desc="[CLS]", unit="batch", leave=False, disable=None):
            batch = collate(encoded, rows, pad_id, device)
            hidden = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]  # (B, T, H)
            vectors[rows] = hidden[:, 0].float().cpu().numpy()
        return vectors

    def fit_head(self, model, examples, encoded, pad_id):
        """With --head logistic, put a logistic regression on the chunks' [CLS] vectors into the model's classifier.

        Vectors are standardised; C is the one of the best mean AUROC in 5-fold cross-validation grouped by patient. A frozen
        encoder whose vectors hardly vary gets large weights, which int8 does not carry well.
        """
        if not self.logistic:
            return {}
        from sklearn.linear_model import (
            LogisticRegression,  # imported here: it takes a second, and nothing else needs it
        )
        from sklearn.model_selection import GroupKFold

        x, y = self._cls_vectors(model, encoded, pad_id), encoded.labels
        mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
        x, patients = (x - mean) / scale, np.array([examples[i].subject for i in encoded.owner])
        weight = "balanced" if self.options.class_weights else None
        folds = list(GroupKFold(n_splits=min(5, len(set(patients)))).split(x, y, patients))
        quality = []
        for c in tqdm(C_GRID, desc="choosing C", leave=False, disable=None):
            fits = [
                (LogisticRegression(C=c, max_iter=1000, class_weight=weight).fit(x[a], y[a]), b) for a, b in folds if len(set(y[a])) == 2
            ]
            scores = [metrics.auroc(y[b] == 1, fit.decision_function(x[b])) for fit, b in fits]
            quality.append(np.mean([score for score in scores if score is not None] or [0.0]))
        best = C_GRID[int(np.argmax(quality))]
        fit = LogisticRegression(C=best, max_iter=1000, class_weight=weight).fit(x, y)
        slope = fit.coef_[0] / scale
        head = model.classifier
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(np.stack([np.zeros_like(slope), slope])))
            head.bias.copy_(torch.tensor([0.0, float(fit.intercept_[0] - slope @ mean)]))
        print(
            f"logistic: {len(y)} [CLS] vectors of {len(set(patients))} patients, C {best:.4g} of {len(C_GRID)}, cross-validated AUROC {max(quality):.4f}"
        )
        return {"C": float(best), "cross-validated AUROC": float(max(quality))}

    # --- scores

    def score(self, examples, predictions, intervals=False):
        """metrics.binary over admissions."""
        return metrics.binary(np.array([e.label for e in examples]), np.array(predictions), self.labels, intervals)

    def record(self, prediction):
        """[class, its probability and the other's]."""
        return [self.labels[int(prediction > 0.5)], f"{1 - prediction:.6f}", f"{prediction:.6f}"]

    def answer(self, example, prediction):
        """Class and probability."""
        return {"predicted": self.labels[int(prediction > 0.5)], "probability": round(float(prediction), 6)}
