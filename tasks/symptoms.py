"""Symptom classification: one note, one of a few symptoms; the label is found in the note itself.

The label is the first symptom of a fixed list that occurs as a whole word in the lower-cased first 1,000 characters,
the rule of the published system. It is a silver label: "denies fever" counts as fever, "pyrexia" does not, and a model
that scores 1.0 has learnt to search for five words. What it is good for is comparing models on the same notes.
"""

import re
from collections import Counter

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

import metrics
from data import SPLITS, BadInput, Note, Table, balance, fold_duplicates, number, sampled, split_by_subject

SYMPTOMS = ("edema", "pain", "cough", "fever", "bleeding")
# The order decides the label of a note that names several, so it is fixed here, for good.
LEXICON = (
    "fever", "cough", "headache", "nausea", "vomiting", "fatigue", "chest pain", "shortness of breath",
    "abdominal pain", "dizziness", "diarrhea", "constipation", "joint pain", "back pain", "depression", "anxiety",
    "rash", "itching", "seizure", "confusion", "palpitations", "insomnia", "loss of appetite", "urinary frequency",
    "chills", "syncope", "sore throat", "swelling", "pain", "malaise", "cramps", "numbness", "tingling",
    "blurry vision", "weakness", "edema", "hallucinations", "bleeding", "difficulty breathing", "burning",
)  # fmt: skip


def first_match(text, symptoms):
    """Index of the first symptom in list order that stands in the text as a whole word, or None."""
    for index, symptom in enumerate(symptoms):
        if symptom in text and re.search(rf"\b{re.escape(symptom)}\b", text):
            return index


class Symptoms:
    """The task: reads notes, labels them, gives the loss and the scores. The keywords are the flags below."""

    name = "symptoms"
    auto_class = AutoModelForSequenceClassification
    overall_csv, per_label_csv, label_column = "multiclass_{}_metrics.csv", "per_symptom_{}_metrics.csv", "Symptom"
    OPTIONS = {
        "--symptoms": dict(default=",".join(SYMPTOMS), help="symptoms in order of precedence, comma-separated"),
        "--top-k": dict(type=number(int, 0, len(LEXICON)), default=0,
                        help="instead, the k most frequent labels of the 40-symptom lexicon (0 = use --symptoms)"),
        "--max-chars": dict(type=number(int, 1, 10**9), default=1000, help="characters of a note that are used"),
        "--text-column": dict(default="TEXT", help="column of the note, in any case"),
        "--subject-column": dict(default=None, help="column of the patient (SUBJECT_ID if there; else each note stands alone)"),
        "--row-column": dict(default=None, help="column of the row id (ROW_ID if there; else rows are numbered from 1)"),
        "--balance": dict(action="store_true", help="down-sample every class to the smallest, as the paper does"),
        "--class-weights": dict(action="store_true", help="weight the loss by inverse class frequency"),
    }  # fmt: skip

    def __init__(self, symptoms=",".join(SYMPTOMS), top_k=0, max_chars=1000, text_column="TEXT",
                 subject_column=None, row_column=None, balance=False, class_weights=False):  # fmt: skip
        self.labels = [symptom.strip().lower() for symptom in symptoms.split(",") if symptom.strip()]
        self.top_k, self.max_chars, self.balance, self.class_weights = top_k, max_chars, balance, class_weights
        self.text_column, self.subject_column, self.row_column = text_column, subject_column, row_column
        self.weights = None
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise BadInput(f"--symptoms {symptoms}: needs at least two, each of them once")
        if top_k == 1:
            raise BadInput("--top-k 1: one class cannot be learnt; use 2 or more")

    def prepare_text(self, text):
        """What the model sees of a note; applied to every note, in training and in predict.py."""
        return text.lower()[: self.max_chars]

    def columns(self, table):
        """Indices of the text, row id and subject columns; the last two may be None."""
        return (
            table.column(self.text_column, "--text-column"),
            table.column(self.row_column or "ROW_ID", "--row-column", required=bool(self.row_column)),
            table.column(self.subject_column or "SUBJECT_ID", "--subject-column", required=bool(self.subject_column)),
        )

    def load(self, path, fraction, validation, test, seed):
        """Read, label, fold and split a file of notes. Returns ({split: [Note]}, facts to print and to store)."""
        counts = Counter({"rows": 0, "without text": 0, "without label": 0})
        table = Table(path)
        text_at, row_at, subject_at = self.columns(table)
        symptoms = LEXICON if self.top_k else self.labels
        notes = []
        for _, row in table:
            counts["rows"] += 1
            row_id = row[row_at] if row_at is not None else str(counts["rows"])
            if not sampled(row_id, fraction, seed):
                counts["not sampled"] += 1
            elif not row[text_at].strip():
                counts["without text"] += 1
            elif (label := first_match(text := self.prepare_text(row[text_at]), symptoms)) is None:
                counts["without label"] += 1
            else:
                subject = row[subject_at].strip() if subject_at is not None else ""
                notes.append(Note(row_id, subject or f"row {row_id}", text, label))
        if not counts["rows"]:
            raise BadInput(f"{path}: a header and no rows")
        if self.top_k:
            frequency = Counter(note.label for note in notes)
            kept = sorted(frequency, key=lambda label: (-frequency[label], label))[: self.top_k]
            self.labels = [LEXICON[label] for label in kept]
            counts["of a rarer label"] = sum(note.label not in kept for note in notes)
            notes = [Note(n.row_id, n.subject, n.text, kept.index(n.label)) for n in notes if n.label in kept]
        notes, counts["exact duplicates"] = fold_duplicates(notes)
        self._check_classes(path, notes)
        if self.balance:
            unbalanced = len(notes)
            notes = balance(notes, seed)
            counts["removed by --balance"] = unbalanced - len(notes)
        splits = split_by_subject(notes, validation, test, seed)
        per_split = {s: {name: sum(n.label == i for n in splits[s]) for i, name in enumerate(self.labels)} for s in SPLITS}
        for split, per_class in per_split.items():
            for name, count in per_class.items():
                if not count:
                    raise BadInput(f"{path}: class {name!r} is too small to split, {split} got none; drop it or add notes")
        if self.class_weights:
            sizes = torch.tensor(list(per_split["train"].values()), dtype=torch.float)
            self.weights = sizes.sum() / (len(sizes) * sizes)
        subjects = len({note.subject for note in notes}) if subject_at is not None else None
        return splits, {"rows": dict(counts), "notes": len(notes), "subjects": subjects, "splits": per_split}

    def _check_classes(self, path, notes):
        subjects = {name: {n.subject for n in notes if n.label == i} for i, name in enumerate(self.labels)}
        present = [name for name in subjects if subjects[name]]
        if len(present) < 2:
            what = f"only one class, {present[0]!r}" if present else "no class at all"
            raise BadInput(f"{path}: {what} among {len(notes)} labelled notes; choose other --symptoms or more rows")
        for name, members in subjects.items():
            if len(members) < len(SPLITS):
                raise BadInput(
                    f"{path}: class {name!r} has notes of {len(members)} patients, too small to split three ways; "
                    "drop it from --symptoms or use more rows"
                )

    def loss(self, logits, labels):
        """Cross-entropy, class-weighted if asked for. logits (B, C), labels (B,) -> scalar."""
        weights = self.weights.to(logits) if self.weights is not None else None
        return F.cross_entropy(logits, labels, weight=weights)

    def probabilities(self, logits):
        """logits (N, C) -> probabilities (N, C)."""
        return logits.softmax(-1)

    def score(self, labels, probabilities):
        """metrics.Scores of true labels (N,) and probabilities (N, C), both NumPy."""
        return metrics.single_label(labels, probabilities, self.labels)

    def describe(self):
        """JSON facts from which predict.py and report.py make the same task again."""
        return {"task": self.name, "labels": self.labels, "max_chars": self.max_chars,
                "text_column": self.text_column, "row_column": self.row_column}  # fmt: skip

    @classmethod
    def from_facts(cls, facts):
        """The task that describe() told of."""
        return cls(",".join(facts["labels"]), max_chars=facts["max_chars"],
                   text_column=facts["text_column"], row_column=facts["row_column"])  # fmt: skip
