"""Synthetic hospital stays for the task readmission, in the schemas of MIMIC-III."""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from files import write_csv
from tasks.demo_phrases import (
    AFFIRMED,
    FINDINGS,
    HISTORICAL,
    NEGATED,
    PLANS,
    WORDINGS,
    filler,
    mention,
    sections_text,
    vary,
)

DIAGNOSES = (
    "pneumonia",
    "heart failure",
    "sepsis",
    "atrial fibrillation",
    "hip fracture",
    "kidney injury",
    "stroke",
)
# (speaks for an early return, speaks against it)
SIGNS = (
    ("Lives alone|by_himself, stairs at home.", "Lives with his wife|daughter, no stairs at home."),
    ("Left against medical|the advice.", "Left in agreement|accord with medical|the advice."),
    ("Missed|Skipped follow up last time.", "Kept|Attended follow up last time."),
    ("Poor|Little appetite, skips most meals.", "Good|Normal appetite, eats most meals."),
    ("Unsteady|Weak when ambulating, needs help.", "Ambulating well|steadily, needs no help."),
    ("Unsure of|about his medication|tablets.", "Sure of|about his medication|tablets."),
    ("Family not|rarely able to help|visit.", "Family supportive and able to help|visit."),
    ("Often|Twice in hospital this|last year.", "Not|Never in hospital this|last year."),
)  # fmt: skip
COURSE = (
    "Started on intravenous|oral antibiotics|diuretics|fluids with good|slow effect.",
    "Day {n}: comfortable, labs repeated|stable.",
    "Cardiology|Surgery was consulted and advised rest|imaging.",
    "Chest film|scan showed no|a_small effusion|infiltrate.",
    "Known to Dr. [**Last Name**] of [**Hospital {n}**].",
    "Creatinine|Potassium|Glucose was {n} and then rose|fell|normalized.",
)  # fmt: skip
INFANT = (
    "Term|Preterm infant, vigorous|crying.",
    "Weight up|down {n} grams.",
    "Feeding well|slowly by breast|bottle.",
)
FATES = {"early": 36, "elective": 6, "late": 58}  # percent of the stays that another one follows
NOTE_COLUMNS = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CATEGORY", "TEXT")
STAY_COLUMNS = (
    "ROW_ID", "SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "DEATHTIME", "ADMISSION_TYPE",
    "HOSPITAL_EXPIRE_FLAG", "DIAGNOSIS",
)  # fmt: skip


@dataclass(slots=True)
class Stay:
    """One admission; fate: how the next one follows (early, elective, late) or none."""

    arrives: datetime
    leaves: datetime
    kind: str  # ADMISSION_TYPE
    diagnosis: str
    fate: str
    died: bool


def stays_of_patient(rng):
    """Yield the stays of one patient, in order of time."""
    newborn, dies = rng.random() < 0.04, rng.random() < 0.08
    returns = 0 if newborn else rng.choice((0, 0, 1, 1, 2, 2, 3))
    fates = rng.choices(list(FATES), list(FATES.values()), k=returns) + ["none"]
    arrives = datetime(2100, 1, 1) + timedelta(minutes=rng.randrange(80 * 365 * 24 * 60))
    kind = "NEWBORN" if newborn else "EMERGENCY"
    for fate in fates:
        leaves = arrives + timedelta(minutes=rng.randint(24 * 60, 12 * 24 * 60))
        died = dies and not newborn and fate == "none"
        yield Stay(arrives, leaves, kind, "newborn" if newborn else rng.choice(DIAGNOSES), fate, died)

        days = rng.randint(20, 900) if fate == "late" else rng.uniform(0.2, 2.9)
        arrives = leaves + timedelta(minutes=int(days * 24 * 60))
        planned = fate == "elective" or (fate == "late" and rng.random() < 0.2)
        kind = "ELECTIVE" if planned else rng.choice(("EMERGENCY", "EMERGENCY", "EMERGENCY", "URGENT"))


def paragraph(rng, words, patterns=COURSE):
    """Sentences, at least `words` words: treatment, findings and symptoms, or other patterns."""
    lines, templates = [], (AFFIRMED, NEGATED, HISTORICAL)
    while sum(len(line.split()) for line in lines) < words:
        symptom = mention(rng, rng.choice(list(WORDINGS)), rng.choice(templates))
        line = vary(rng, rng.choice(patterns))
        if patterns is COURSE:
            line = rng.choice((line, line, filler(rng, FINDINGS), symptom))
        lines.append(line)
    return " ".join(lines)


def summary(rng, stay):
    """A discharge summary. Of four to six signs for or against an early return, 70% are right."""
    size = rng.randint(230, 500) if rng.random() < 0.1 else rng.randint(25, 120)
    share = 0.7 if stay.fate == "early" else 0.3
    signs = [vary(rng, pair[rng.random() > share]) for pair in rng.sample(SIGNS, rng.randint(4, 6))]
    return sections_text((
        ("HISTORY OF PRESENT ILLNESS", f"Admitted with {stay.diagnosis}. {paragraph(rng, 10)}"),
        ("SOCIAL HISTORY", " ".join(signs[:2])),
        ("HOSPITAL COURSE", paragraph(rng, size)),
        ("CONDITION AT DISCHARGE", "Expired." if stay.died else " ".join(signs[2:])),
        ("INSTRUCTIONS", "None." if stay.died else filler(rng, PLANS)),
    ))  # fmt: skip


def notes_of_stay(rng, stay):
    """[(date, category, text)] of a stay: often a nursing note, mostly a discharge summary."""
    newborn, notes = stay.diagnosis == "newborn", []
    if rng.random() < 0.8:
        text = paragraph(rng, 40, INFANT if newborn else COURSE)
        notes.append((stay.arrives.date(), "Nursing", text))
    if rng.random() > 0.02:
        text = f"BIRTH:\n{paragraph(rng, 80, INFANT)}" if newborn else summary(rng, stay)
        notes.append((stay.leaves.date(), "Discharge summary", text))
        if rng.random() < 0.05:
            notes.append((stay.leaves.date(), "Discharge summary", f"ADDENDUM:\n{paragraph(rng, 15)}"))
    return notes


def write_admissions(notes_path, admissions_path, admissions, seed=0):
    """Write NOTEEVENTS.csv and ADMISSIONS.csv; returns the notes' texts.

    The same arguments write the same bytes. Of the stays that the patient survives, births aside, a
    fifth are followed by an unplanned one within three days.
    """
    rng = random.Random(seed)
    notes, stays, subject = [], [], 20000
    while len(stays) < admissions:
        subject += 1
        for stay in stays_of_patient(rng):
            stay_id, death = 200000 + len(stays), stay.leaves if stay.died else ""
            times = (stay.arrives, stay.leaves, death)
            facts = (stay.kind, int(stay.died), stay.diagnosis.upper())
            stays.append((len(stays) + 1, subject, stay_id, *times, *facts))
            for note in notes_of_stay(rng, stay):
                notes.append((len(notes) + 1, subject, stay_id, *note))
    write_csv(notes_path, NOTE_COLUMNS, notes)
    write_csv(admissions_path, STAY_COLUMNS, stays)
    return [note[-1] for note in notes]
