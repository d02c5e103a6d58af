"""What demonstrations share: sentences of clinical notes, and patterns with alternatives."""

import re

# Each symptom: the word that carries the label, synonyms that do not, and derived words that do not
# either, although their first WordPiece is the symptom's word ("pain ##l ##e ##s ##s").
WORDINGS = {
    "edema": ("edema", ("puffy ankles", "fluid retention"), ("edematous legs", "edemas elsewhere")),
    "pain": ("pain", ("discomfort", "soreness"), ("painless swelling", "painful joints", "pains elsewhere")),
    "cough": (
        "cough",
        ("a hacking throat", "phlegm"),
        ("coughing fits", "coughs at night", "coughed up sputum"),
    ),
    "fever": ("fever", ("pyrexia", "a raised temperature"), ("feverish nights", "fevers elsewhere")),
    "bleeding": ("bleeding", ("hemorrhage", "oozing"), ("bleedings elsewhere",)),
    "nausea": ("nausea", ("queasiness",), ("nauseated mornings",)),
    "dizziness": ("dizziness", ("lightheadedness",), ("dizzy spells",)),
    "fatigue": ("fatigue", ("tiredness",), ("fatigued days",)),
    "rash": ("rash", ("red spots",), ("rashes elsewhere",)),
    "chills": ("chills", ("shivering",), ("chilly nights",)),
}
SITES = ("left leg", "right leg", "lower back", "chest wall", "abdomen", "left arm", "right hip", "neck")
TIMES = (
    "since yesterday", "for three days", "for two weeks", "on and off for a month",
    "since the last visit", "overnight",
)  # fmt: skip
AFFIRMED = (
    "Patient reports {s} {t}.", "Complains of {s} {t}.", "There is {s} near the {p}, worse {t}.",
    "Admitted with {s} {t}.", "Noted {s} {t}, not relieved by rest.",
    "Wife says he has had {s} {t}.",
)  # fmt: skip
NEGATED = ("Denies {s}.", "No {s} at this time.", "Negative for {s}.", "Has not had {s} {t}.")
HISTORICAL = ("History of {s} in the past, resolved.", "Previous admission for {s}.", "Had {s} last winter.")
FINDINGS = (
    "Vital signs are stable.", "Blood pressure {n} over {m}.", "Pulse {n}, regular.",
    "Lungs are clear on both sides.", "Heart rate and rhythm are regular.", "Abdomen is soft.",
    "Skin is warm and dry.", "Alert and oriented.",
)  # fmt: skip
FILLERS = (
    *FINDINGS, "Takes his tablets every morning.", "Lives with his daughter and walks with a cane.",
    "Former smoker, quit long ago.", "Slept well and ate most of the meal.",
    "Family at bedside, questions answered.", "Oxygen saturation {n} percent.",
    "White count {m}, hematocrit stable.", 'Patient states "I feel about the same" today.',
    "Wound edges are clean.",
)  # fmt: skip
PLANS = (
    "Continue current medication.", "Follow up with the clinic in two weeks.",
    "Repeat labs in the morning.", "Physical therapy to see the patient.",
    "Discharge home when stable.", "Increase fluids, monitor output.",
)  # fmt: skip


def mention(rng, symptom, templates, weights=(6, 3, 1)):
    """A sentence about a symptom; weights of its word, of a synonym and of a derived word."""
    word, synonyms, derived = WORDINGS[symptom]
    wording = rng.choices((word, rng.choice(synonyms), rng.choice(derived)), weights)[0]
    return rng.choice(templates).format(s=wording, t=rng.choice(TIMES), p=rng.choice(SITES))


def filler(rng, lines=FILLERS):
    """A sentence that has nothing to do with symptoms."""
    return rng.choice(lines).format(n=rng.randint(60, 140), m=rng.randint(5, 95))


def sections_text(sections):
    """(title, text) pairs -> a note with headings."""
    return "\n\n".join(f"{title}:\n{text}" for title, text in sections)


def vary(rng, pattern, **slots):
    """Draw one alternative of each "a|b|c_d" ("_": a space), then fill the slots; {n}: a number."""
    alternatives = r"[\w{}-]*(?:\|[\w{}-]*)+"
    text = re.sub(alternatives, lambda found: rng.choice(found[0].split("|")).replace("_", " "), pattern)
    return re.sub(" +", " ", text).strip().format(**{"n": rng.randint(2, 40), **slots})


def capitalized(text):
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]
