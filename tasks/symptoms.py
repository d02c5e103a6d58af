"""Symptom classification: one note, one of a few symptoms; the label is found in the note itself.

The label is the first symptom of a fixed list that occurs as a whole word in the lower-cased first 1,000
characters, the rule of the published system. It is a silver label: "denies fever" counts as fever, "pyrexia"
does not, and a model that scores 1.0 has learnt to search for five words. It serves to compare models on the
same notes.
"""

import re
from collections import Counter
from functools import cache

from cli import BadInput, number
from data import balance
from tasks.demo_symptoms import write_symptom_notes
from tasks.task import CLASS_WEIGHTS, COLUMNS, Task

SYMPTOMS = ("edema", "pain", "cough", "fever", "bleeding")
# The order decides the label of a note that names several, so it is fixed here, for good.
LEXICON = (
    "fever", "cough", "headache", "nausea", "vomiting", "fatigue", "chest pain", "shortness of breath",
    "abdominal pain", "dizziness", "diarrhea", "constipation", "joint pain", "back pain", "depression",
    "anxiety", "rash", "itching", "seizure", "confusion", "palpitations", "insomnia", "loss of appetite",
    "urinary frequency", "chills", "syncope", "sore throat", "swelling", "pain", "malaise", "cramps",
    "numbness", "tingling", "blurry vision", "weakness", "edema", "hallucinations", "bleeding",
    "difficulty breathing", "burning",
)  # fmt: skip


@cache
def whole_word(phrase):
    """A function (text) -> a match, or None, of a phrase that is no part of a longer word."""
    return re.compile(rf"\b{re.escape(phrase)}\b").search


def first_match(text, symptoms):
    """Index of the first symptom in list order that occurs in the text as a whole word, or None."""
    for index, symptom in enumerate(symptoms):
        if symptom in text and whole_word(symptom)(text):
            return index
    return None


class Symptoms(Task):
    """One label per note: a symptom of --symptoms, or one of the --top-k most frequent in the lexicon."""

    name = "symptoms"
    overall_csv, per_label_csv = "multiclass_{}_metrics.csv", "per_symptom_{}_metrics.csv"
    label_column = "Symptom"
    demo_files = ("NOTEEVENTS.csv",)
    baselines = ("majority", "rule", "tfidf")
    OPTIONS = {
        "--symptoms": {
            "default": ",".join(SYMPTOMS),
            "help": f"symptoms in order of precedence, comma-separated ({','.join(SYMPTOMS)})",
        },
        "--top-k": {
            "type": number(int, 0, len(LEXICON)),
            "default": 0,
            "help": "the k most frequent labels of the 40-symptom lexicon instead (0 = use --symptoms)",
        },
        "--max-chars": {
            "type": number(int, 1, 10**9),
            "default": 1000,
            "help": "characters of a note that are used (1000)",
        },
        "--balance": {
            "action": "store_true",
            "help": "down-sample every class to the smallest one, as the paper does (off)",
        },
        **COLUMNS,
        **CLASS_WEIGHTS,
    }

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
        """In lower case and cut: the label is searched in what the model sees."""
        if text.isascii():  # elsewhere what follows may change a letter's lower case
            text = text[: self.options.max_chars]
        return text.lower()[: self.options.max_chars]

    def read(self, path, keep, counts):
        """Notes that name a symptom, labelled by the index of the first in list order."""
        symptoms, notes = LEXICON if self.options.top_k else self.labels, []
        counts.update({"without text": 0, "without label": 0})
        table = self.open_table(path)
        for line, row_id, subject, text, _ in self.rows(table, counts, keep):
            text = self.prepare_text(text)
            if (label := first_match(text, symptoms)) is None:
                counts["without label"] += 1
            else:
                notes.append(self.note(table, line, row_id, subject, text, label))
        return notes

    def settle_labels(self, examples, counts, path, seed):
        """With --top-k the most frequent labels, with --balance as many notes of each class."""
        if self.options.top_k:
            examples = self._keep_most_frequent(examples, counts)

        present = sorted({self.labels[note.label] for note in examples})
        if len(present) < 2:
            what = f"only one class, {present[0]!r}" if present else "no class at all"
            raise BadInput(
                f"{path}: {what} among {len(examples)} labelled notes; choose other --symptoms or more rows"
            )

        if self.options.balance:
            unbalanced = len(examples)
            examples = balance(examples, seed)
            counts["removed by --balance"] = unbalanced - len(examples)
        return examples

    def _keep_most_frequent(self, notes, counts):
        """Notes of the --top-k most frequent symptoms, which become self.labels; ties by list order."""
        frequency = Counter(note.label for note in notes)
        kept = sorted(frequency, key=lambda label: (-frequency[label], label))[: self.options.top_k]
        self.labels = [LEXICON[label] for label in kept]
        counts["of a rarer label"] = sum(note.label not in kept for note in notes)
        notes = [note for note in notes if note.label in kept]
        for note in notes:
            note.label = kept.index(note.label)
        return notes

    def rule(self, text):
        """Index of the label that the rule finds in a prepared text; None if it is none of the run's."""
        names = LEXICON if self.options.top_k else self.labels
        found = first_match(text, names)
        return None if found is None or names[found] not in self.labels else self.labels.index(names[found])

    # --- what the splits must hold

    def check_dealable(self, path, examples, ways):
        """A patient for each split in every class."""
        for i, name in enumerate(self.labels):
            patients = len({note.subject for note in examples if note.label == i})
            if patients < ways:
                raise BadInput(
                    f"{path}: class {name!r} has notes of {patients} patients, too small to split "
                    f"{ways} ways; drop it from --symptoms or use more rows"
                )

    def check_split(self, path, split, tally, dealt):
        """Every class in every split that is dealt out of a file."""
        super().check_split(path, split, tally, dealt)
        if dealt and (absent := [name for name, count in tally.items() if not count]):
            raise BadInput(
                f"{path}: class {absent[0]!r} is too small to split, {split} got none; drop it or add notes"
            )
