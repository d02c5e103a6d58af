"""Synthetic notes for the task symptoms, in the schema of MIMIC-III's NOTEEVENTS.csv."""

import random

from files import write_csv
from tasks.demo_phrases import AFFIRMED, HISTORICAL, NEGATED, PLANS, WORDINGS, filler, mention, sections_text

# Shares of the notes by main symptom. A note that also denies an earlier symptom of the list gets
# that label, so a later symptom is given more notes to keep its class from being rare.
SHARES = {"edema": 12, "pain": 22, "cough": 24, "fever": 28, "bleeding": 36}
# Percent: the symptom's word, a synonym, a derived word. In five epochs the tiny model learns which
# words a note has, but hardly that "painless" is not "pain": derived words keep scores below 1.
WORDING_WEIGHTS = (60, 34, 6)
UNLISTED = ("nausea", "dizziness", "fatigue")  # of a note without a label
CATEGORIES = ("Nursing", "Physician", "Discharge summary", "Radiology")


def say(rng, symptom, templates):
    """A sentence about a symptom, worded by this demonstration's weights."""
    return mention(rng, symptom, templates, WORDING_WEIGHTS)


def compose_note(rng, main):
    """One note about a main symptom: sections, with other symptoms denied or in the history."""
    others = rng.sample([symptom for symptom in WORDINGS if symptom != main], 5)
    history = [say(rng, main, AFFIRMED), *(filler(rng) for _ in range(rng.randint(0, 2)))]
    history += [say(rng, other, HISTORICAL) for other in others[: rng.randint(0, 2)]]
    review = [say(rng, other, NEGATED) for other in others[2 : rng.randint(2, 5)]]
    review.append(filler(rng))
    for lines in (history, review):
        rng.shuffle(lines)

    chief = rng.choice((rng.choice(WORDINGS[main][1]), "routine check", "unwell", "transfer"))
    exam = [filler(rng) for _ in range(rng.randint(1, 2))]
    sections = (
        ("CHIEF COMPLAINT", chief),
        ("HISTORY OF PRESENT ILLNESS", " ".join(history)),
        ("REVIEW OF SYSTEMS", " ".join(review)),
        ("EXAM", " ".join(exam)),
        ("PLAN", filler(rng, PLANS)),
    )
    return sections_text(sections)


def next_text(rng, written):
    """The next note of a patient with the notes `written`; some are empty, copied or unlabelled."""
    main = rng.choices(list(SHARES), list(SHARES.values()))[0]
    draw = rng.random()
    if draw < 0.03 and written:
        return rng.choice(written)  # filed twice
    if draw < 0.12 and written:  # copied forward
        return f"{rng.choice(written)}\n\nADDENDUM:\n{say(rng, main, AFFIRMED)}"
    if draw < 0.14:
        return ""
    return compose_note(rng, main if draw < 0.93 else rng.choice(UNLISTED))


def write_symptom_notes(path, notes, seed=0):
    """Write a NOTEEVENTS.csv; returns its texts. The same arguments write the same bytes."""
    rng = random.Random(seed)
    rows, subject = [], 10000
    while len(rows) < notes:
        subject += 1
        written = []
        for _ in range(rng.randint(1, 6)):  # notes of one patient
            row = len(rows) + 1
            text = next_text(rng, [text for text in written if text])
            written.append(text)
            rows.append((row, subject, 100000 + row // 4, rng.choice(CATEGORIES), text))
    write_csv(path, ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CATEGORY", "TEXT"), rows)
    return [row[-1] for row in rows]
