"""Symptom classification: one note, one of a few symptoms; the label is found in the note itself.

The label is the first symptom of a fixed list that occurs as a whole word in the lower-cased first 1,000 characters,
the rule of the published system. It is a silver label: "denies fever" counts as fever, "pyrexia" does not, and a model
that scores 1.0 has learnt to search for five words. What it is good for is comparing models on the same notes.
"""

import re
from collections import Counter

from cli import BadInput, number
from data import SPLITS, Note, Table, balance
from tasks.demo_symptoms import write_symptom_notes
from tasks.task import CLASS_WEIGHTS, COLUMNS, Task

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


class Symptoms(Task):
    """One label per note; top_k = 0 and a list of symptoms by default."""

    name = "symptoms"
    demo_files = ("NOTEEVENTS.csv",)
    overall_csv, per_label_csv, label_column = "multiclass_{}_metrics.csv", "per_symptom_{}_metrics.csv", "Symptom"
    OPTIONS = {
        "--symptoms": dict(default=",".join(SYMPTOMS), help="symptoms in order of precedence, comma-separated"),
        "--top-k": dict(type=number(int, 0, len(LEXICON)), default=0,
                        help="instead, the k most frequent labels of the 40-symptom lexicon (0 = use --symptoms)"),
        "--max-chars": dict(type=number(int, 1, 10**9), default=1000, help="characters of a note that are used"),
        "--balance": dict(action="store_true", help="down-sample every class to the smallest, as the paper does"),
        **COLUMNS, **CLASS_WEIGHTS,
    }  # fmt: skip

    @classmethod
    def write_demonstration(cls, directory, rows):
        """A NOTEEVENTS.csv of about so many notes."""
        return write_symptom_notes(directory / "NOTEEVENTS.csv", rows)

    def __init__(self, **options):
        super().__init__(**options)
        symptoms, top_k = self.options.symptoms, self.options.top_k
        self.labels = [symptom.strip().lower() for symptom in symptoms.split(",") if symptom.strip()]
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise BadInput(f"--symptoms {symptoms}: needs at least two, each of them once")
        if top_k == 1:
            raise BadInput("--top-k 1: one class cannot be learnt; use 2 or more")

    def prepare_text(self, text):
        """Lower case, cut: the label is looked for in what the model sees."""
        return text.lower()[: self.options.max_chars]

    def read(self, path, keep, counts):
        """Notes that name a symptom, labelled by the index of the first in list order."""
        symptoms, notes = LEXICON if self.options.top_k else self.labels, []
        counts.update({"without text": 0, "without label": 0})
        for _, row_id, subject, text, _ in self.rows(Table(path), counts, keep):
            text = self.prepare_text(text)
            if (label := first_match(text, symptoms)) is None:
                counts["without label"] += 1
            else:
                notes.append(Note(row_id, subject or f"row {row_id}", text, label))
        return notes

    def settle_labels(self, examples, counts, path, seed):
        """The k most frequent labels, if that was asked for; the classes balanced, if that was."""
        if self.options.top_k:
            frequency = Counter(note.label for note in examples)
            kept = sorted(frequency, key=lambda label: (-frequency[label], label))[: self.options.top_k]
            self.labels = [LEXICON[label] for label in kept]
            counts["of a rarer label"] = sum(note.label not in kept for note in examples)
            examples = [note for note in examples if note.label in kept]
            for note in examples:
                note.label = kept.index(note.label)
        self._check_classes(path, examples)
        if self.options.balance:
            unbalanced = len(examples)
            examples = balance(examples, seed)
            counts["removed by --balance"] = unbalanced - len(examples)
        return examples

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

    def check(self, files, per_split):
        """Every class in every split."""
        for split, per_class in per_split.items():
            for name, count in per_class.items():
                if not count:
                    raise BadInput(f"{files[split]}: class {name!r} is too small to split, {split} got none; drop it or add notes")
