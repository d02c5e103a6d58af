"""Symptom classification: one note, one of a few symptoms; the label is found in the note itself.

The label is the first symptom of a fixed list that occurs as a whole word in the lower-cased first 1,000
characters, the rule of the published system. It is a silver label: "denies fever" counts as fever, "pyrexia"
does not, and a model that scores 1.0 has learnt to search for five words. It serves to compare models on the
same notes. With --mask-labels the words are hidden and the model has to infer the label from the rest.
"""

import re
from collections import Counter
from functools import cache
from itertools import islice

from cli import BadInput, number
from data import balance, digest
from tasks.demo_symptoms import write_symptom_notes
from tasks.label_sets import LABEL_SETS, LabelSets
from tasks.negation import negated
from tasks.task import CLASS_WEIGHTS, COLUMNS, SUBGROUPS

SYMPTOMS = ("edema", "pain", "cough", "fever", "bleeding")
MENTION = "mention of the label"  # the groups in which test notes are scored
NONE = "none"  # the class of notes that name no symptom
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
    """A pattern for a phrase that is no part of a longer word."""
    return re.compile(rf"\b{re.escape(phrase)}\b")


def affirmed(text, symptom):
    """Whether a lower-cased text mentions a symptom at least once without negating it."""
    return any(not negated(text, *found.span()) for found in whole_word(symptom).finditer(text))


def named(text, symptoms, negation="keep"):
    """Yield the index of each symptom that occurs in the text as a whole word, in list order.

    One of which all mentions are negated is left out to "drop" negations; for "label" its index counts on
    from the number of symptoms.
    """
    for index, symptom in enumerate(symptoms):
        at = text.find(symptom)
        if at >= 0 and whole_word(symptom).search(text, at):  # find is much faster than a pattern
            if negation == "keep" or affirmed(text, symptom):
                yield index
            elif negation == "label":
                yield index + len(symptoms)


def first_match(text, symptoms):
    """Index of the first symptom in list order that occurs in the text as a whole word, or None."""
    return next(named(text, symptoms), None)


@cache
def any_word(phrases):
    """A pattern for any of the phrases (a tuple) as a whole word, the longest that begins at a place."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")


def hide(text, phrases, mask):
    """The text with one `mask` in the place of each phrase, whatever the phrase's length."""
    return any_word(phrases).sub(lambda _: mask, text)


class Symptoms(LabelSets):
    """One label per note, or all: symptoms of --symptoms, or the --top-k most frequent of the lexicon."""

    name = "symptoms"
    reads_rows = True
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
        "--with-none": {
            "action": "store_true",
            "help": "a class more, none: notes that name no symptom, as many as a class has on average (off)",
        },
        "--negation": {
            "choices": ("keep", "drop", "label"),
            "default": "keep",
            "help": "a symptom that is only denied counts, does not, or is a label such as 'no fever' (keep)",
        },
        "--mask-labels": {
            "action": "store_true",
            "help": "hide all symptoms of the lexicon and of --symptoms from the model (off)",
        },
        **LABEL_SETS,
        **COLUMNS,
        **SUBGROUPS,
        **CLASS_WEIGHTS,
    }

    @classmethod
    def write_demonstration(cls, directory, rows):
        """A NOTEEVENTS.csv of about so many notes."""
        return write_symptom_notes(directory / "NOTEEVENTS.csv", rows)

    def __init__(self, **options):
        super().__init__(**options)
        chosen = self.options
        listed = [symptom.strip().lower() for symptom in chosen.symptoms.split(",") if symptom.strip()]
        self.symptoms = LEXICON if chosen.top_k else listed  # searched for, in this order
        negated_ones = [f"no {symptom}" for symptom in self.symptoms] if chosen.negation == "label" else []
        self.names = [*self.symptoms, *negated_ones]
        self.hidden = (*LEXICON, *listed) if chosen.mask_labels else ()
        self._check(listed)
        if chosen.multi_label:
            self.answer_sets()
        self.labels = self._labels_of_run(self.names)
        plain = not (self.sets or self.hidden or chosen.with_none)
        self.as_published = plain and chosen.negation == "keep"

    def _check(self, listed):
        """Raises BadInput for options that give no labels, or labels of one name."""
        chosen, given = self.options, f"--symptoms {self.options.symptoms}"
        if len(set(listed)) < max(2, len(listed)):
            raise BadInput(f"{given}: needs at least two, each of them once")
        if len(set(self.names)) < len(self.names):
            raise BadInput(f"{given}: --negation label has such a label of its own")
        if chosen.with_none and NONE in listed:
            raise BadInput(f"{given}: --with-none has a class {NONE} of its own")
        if chosen.top_k == 1:
            raise BadInput("--top-k 1: one class cannot be learnt; use 2 or more")
        if chosen.multi_label and chosen.balance:
            raise BadInput("--balance: goes with one label per note, not with --multi-label")

    def _labels_of_run(self, symptoms):
        """The symptoms, and --with-none the class none; among sets it is the empty one."""
        return [*symptoms, *[NONE] * (self.options.with_none and not self.sets)]

    def prepare_text(self, text):
        """In lower case and cut: the label is searched in what the model sees."""
        if text.isascii():  # elsewhere what follows may change a letter's lower case
            text = text[: self.options.max_chars]
        return text.lower()[: self.options.max_chars]

    def shown(self, texts, tokenizer):
        """With --mask-labels a mask token, or without one the word "symptom", for each symptom named.

        Only here: labels, duplicates and splits are those of the whole text, so that runs with and without
        can be compared note by note.
        """
        mask = tokenizer.mask_token or "symptom"
        return (hide(text, self.hidden, mask) for text in texts) if self.hidden else texts

    def read(self, path, keep, counts):
        """Notes that name a symptom, and others --with-none; their label: the indices of those they name.

        The first is enough, but for sets, and for none among the --top-k, which are known at the end.
        """
        counts.update({"without text": 0, "without label": 0})
        table = self.open_table(path)
        every = self.sets or (self.options.top_k and self.options.with_none)
        most, notes = None if every else 1, []
        groups = self.group_reader(table)
        for place, row_id, subject, text, row in self.rows(table, counts, keep):
            text = self.prepare_text(text)
            label = tuple(islice(named(text, self.symptoms, self.options.negation), most))
            if label or self.options.with_none:
                notes.append(self.note(table, place, row_id, subject, text, label, groups(row)))
            else:
                counts["without label"] += 1
        return notes

    def settle_labels(self, examples, counts, path, seed):
        """Labels: the first symptom, or all; of the most frequent with --top-k; none with --with-none."""
        kept = self._most_frequent(examples) if self.options.top_k else range(len(self.names))
        self.labels = self._labels_of_run([self.names[symptom] for symptom in kept])
        for note in examples:
            note.label = self._label_of(note.label, kept)
        labelled = [note for note in examples if note.label is not None]
        if self.options.top_k:
            counts["of a rarer label"] = len(examples) - len(labelled)

        present = sorted(name for name, count in self.tally(labelled).items() if count)
        if len(present) < 2:
            what = f"only one class, {present[0]!r}" if present else "no class at all"
            raise BadInput(
                f"{path}: {what} among {len(labelled)} labelled notes; choose other --symptoms or more rows"
            )
        return labelled

    def sample(self, examples, home, counts, seed):
        """--with-none and --balance: of the notes of --data alone; other files are taken row for row."""
        kept = [note for note in examples if id(note) not in home]
        if not kept or not (self.options.with_none or self.options.balance):
            return examples
        if self.options.with_none:
            kept = self._sample_none(kept, counts, seed)
        if self.options.balance:
            unbalanced = len(kept)
            kept = balance(kept, seed)
            counts["removed by --balance"] = unbalanced - len(kept)
        if home:
            counts["of a test or validation file, none removed"] = sum(id(n) in home for n in examples)
        chosen = set(map(id, kept))
        return [note for note in examples if id(note) in home or id(note) in chosen]

    def _most_frequent(self, notes):
        """The --top-k symptoms that most notes have as their label, or in their set; ties by list order."""
        most = None if self.sets else 1
        frequency = Counter(symptom for note in notes for symptom in note.label[:most])
        return sorted(frequency, key=lambda symptom: (-frequency[symptom], symptom))[: self.options.top_k]

    @property
    def _none(self):
        """The label of a note that names no symptom of the run; None leaves it out."""
        if not self.options.with_none:
            return None
        return () if self.sets else len(self.labels) - 1

    def _label_of(self, found, kept):
        """A note's label from the symptoms it names, both in list order, and those that are kept."""
        classes = tuple(kept.index(symptom) for symptom in found if symptom in kept)
        if not classes:
            return self._none
        if self.sets:
            return tuple(sorted(classes))
        return classes[0] if found[0] in kept else None

    def _sample_none(self, notes, counts, seed):
        """As many of the notes that name no symptom as name one of the others on average."""
        found = [note for note in notes if note.label == self._none]
        mentions = sum(len(self.labels_of(note)) for note in notes if note.label != self._none)
        symptoms = len(self.labels) if self.sets else len(self.labels) - 1
        most = round(mentions / symptoms)
        in_order = sorted(found, key=lambda note: digest(str(seed), note.row_id))
        left_out = set(map(id, in_order[most:]))
        counts["that name no symptom, left out"] = len(left_out)
        return [note for note in notes if id(note) not in left_out]

    @property
    def marks(self):
        """Whether labels do not tell affirmed mentions from negated ones."""
        return not self.sets and self.options.negation == "keep"

    def mark(self, examples):
        """Whether the mention that gave a note its label is affirmed, where labels do not tell."""
        if not self.marks:
            return
        for note, text in zip(examples, self.texts(examples), strict=True):
            symptom = self.labels[note.label]
            said = symptom if symptom == NONE else "affirmed" if affirmed(text, symptom) else "negated"
            note.groups = {**(note.groups or {}), MENTION: said}

    def known_labels(self, examples):
        """By name. A note whose first symptom the run does not know is left out."""
        kept = [self.names.index(label) for label in self.labels if label in self.names]
        known, unknown = [], Counter()
        for note in examples:
            found, note.label = note.label, self._label_of(note.label, kept)
            if note.label is None:
                unknown[self.names[found[0]]] += 1
            else:
                known.append(note)
        return known, unknown

    def limits(self):
        """That the labels are words, which of a note's words they are, and what notes without one get."""
        chosen = self.options
        which = "the first of the words above that a note names"
        if self.sets:
            which = "the words above that a note names"
        elif chosen.top_k:
            which = f"the first of {len(LEXICON)} words that a note names, where it is one of those above"
        counts = "A synonym does not count, a negated word does."
        if chosen.negation != "keep":
            counts = "A synonym does not count; what is negated is found by a rule that misses some."
        means = "High scores mean that it finds words, not symptoms."
        if self.hidden:
            means = "The words are hidden from the model, so it infers them from the rest of the note."
        found = [f"Its labels are silver: {which}. {counts} {means}"]
        if not (self.sets or NONE in self.labels):
            found.append("A note that names none of these words still gets one of them as its answer.")
        return found

    def rule(self, text):
        """A note's label by the rule, of its prepared text; None if it is none of the run's."""
        kept = [self.names.index(label) for label in self.labels if label in self.names]
        return self._label_of(tuple(named(text, self.symptoms, self.options.negation)), kept)

    # --- what the splits must hold

    def check_dealable(self, path, examples, ways):
        """A patient for each split in every class."""
        for i, name in enumerate(self.labels):
            patients = len({note.subject for note in examples if i in self.labels_of(note)})
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
