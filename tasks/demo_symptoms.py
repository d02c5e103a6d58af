"""Synthetic notes for the task symptoms, in the schema of MIMIC-III's NOTEEVENTS.csv."""

import random

from files import write_csv
from tasks.demo_phrases import (
    AFFIRMED,
    HISTORICAL,
    NEGATED,
    PLANS,
    WORDINGS,
    filler,
    mention,
    sections_text,
)

SHARES = {
    "edema": 14,
    "pain": 30,
    "cough": 26,
    "fever": 20,
    "bleeding": 16,
}  # of notes by main symptom
CATEGORIES = ("Nursing", "Physician", "Discharge summary", "Radiology")


def compose_note(rng, main):
    """One note about a main symptom: sections, with other symptoms denied or in the history."""
    others = rng.sample([symptom for symptom in WORDINGS if symptom != main], 5)
    history = [mention(rng, main, AFFIRMED)] + [filler(rng) for _ in range(rng.randint(1, 3))]
    history += [mention(rng, other, HISTORICAL) for other in others[: rng.randint(0, 2)]]
    review = [mention(rng, other, NEGATED) for other in others[2 : rng.randint(2, 5)]] + [
        filler(rng)
    ]
    for lines in (history, review):
        rng.shuffle(lines)

    chief = rng.choice((rng.choice(WORDINGS[main][1]), "routine check", "unwell", "transfer"))
    exam, plan = (
        [filler(rng) for _ in range(rng.randint(2, 4))],
        [filler(rng, PLANS) for _ in range(2)],
    )
    return sections_text((
        ("CHIEF COMPLAINT", chief), ("HISTORY OF PRESENT ILLNESS", " ".join(history)),
        ("REVIEW OF SYSTEMS", " ".join(review)), ("EXAM", " ".join(exam)), ("PLAN", " ".join(plan)),
    ))  # fmt: skip


def next_text(rng, written):
    """The next note of a patient with the notes `written`; some are empty, copied or unlabelled."""
    main = rng.choices(list(SHARES), list(SHARES.values()))[0]
    draw = rng.random()
    if draw < 0.03 and written:
        return rng.choice(written)  # filed twice
    if draw < 0.12 and written:
        return (
            rng.choice(written) + f"\n\nADDENDUM:\n{mention(rng, main, AFFIRMED)}"
        )  # copied forward
    if draw < 0.14:
        return ""
    return compose_note(
        rng, main if draw < 0.93 else rng.choice(("nausea", "dizziness", "fatigue"))
    )


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
