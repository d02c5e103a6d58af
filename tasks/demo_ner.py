"""Synthetic sentences about cycles and IVF for the task ner, with five types of entities."""

import random
import re

from files import write_whole
from tasks.demo_phrases import capitalized, vary

# Some words stand in two types or in none: "low estrogen" and "estrogen patches"; a cyst that a
# scan shows, and one that a patient tells of.
ENTITIES = {
    "Symptoms": (
        "irregular|heavy|painful|missed|late periods|cycles|bleeding",
        "pelvic|abdominal|breast pain|tenderness", "hot flashes", "night sweats", "mood swings",
        "spotting |between_periods", "cramps", "weight gain|loss", "fatigue",
    ),
    "Hormones": (
        "estrogen", "progesterone", "FSH|LH|AMH|TSH", "prolactin", "|free testosterone|T4",
        "beta hCG", "anti - mullerian hormone",
    ),
    "Medications": (
        "estrogen|progesterone|iron tablets|patches|gel", "FSH|LH|hCG injections", "metformin",
        "vitamin D|B12", "letrozole|clomiphene |{n}_mg", "hCG trigger shot", "birth control pills",
        "low - dose aspirin",
    ),
    "Procedures": (
        "|frozen|fresh embryo transfer", "egg retrieval", "IVF |cycle",
        "endometrial|ovarian biopsy", "|diagnostic|office hysteroscopy|laparoscopy",
        "ovulation induction", "pelvic ultrasound|scan", "insemination",
    ),
    "Ultrasound": (
        "thin|thick endometrial| lining", "|small|large ovarian cyst", "|small fibroid|polyp",
        "hydrosalpinx", "two|{n} follicles", "polycystic ovaries", "free fluid",
        "follicle of {n} mm", "empty|single gestational sac",
    ),
}  # fmt: skip
REMARKS = (
    "patient reports|has |severe|mild <Symptoms> and low|high <Hormones> .",
    "she denies|reports <Symptoms> or|and <Symptoms> .",
    "patient : I have|had <Symptoms> since|after the <Procedures> .",
    "complains of <Symptoms> , <Symptoms> and <Symptoms> .",
    "low|high|normal <Hormones> level on day {n} .",
    "<Hormones> is {n} , <Hormones> is low|normal|raised .",
    "labs show|showed low|normal <Hormones> and <Hormones> today .",
    "<Symptoms> got worse|better on <Medications> .",
    "started|continue <Medications> and|then <Medications> for {n} days .",
    "she takes|stopped <Medications> at night .",
    "patient : can I take <Medications> before|after the <Procedures> ?",
    "<Hormones> rose|fell after {n} days of <Medications> .",
    "scheduled|booked for <Procedures> next week|month .",
    "she had one|another <Procedures> {n} weeks|months ago .",
    "ultrasound|scan showed|shows <Ultrasound> and <Ultrasound> .",
    "ultrasound today : <Ultrasound> , no <Ultrasound> .",
    "[Procedures pelvic ultrasound|scan] showed <Ultrasound> on the left|right .",
    "plan : <Procedures> <Medications> , review in {n} days .",
    "told years ago of an [Symptoms ovarian cyst] and a [Symptoms fibroid|polyp] .",
    "today <Symptoms> <Symptoms> , no <Symptoms> .",
    "worried that the [Symptoms ovarian cyst] causes her <Symptoms> .",
    "<Ultrasound> , so|hence <Procedures> was|is postponed .",
    "doctor : when was your last period|scan ?",
    "doctor : how long are your cycles|periods , about {n} days ?",
    "her sister|mother works in the ultrasound|IVF clinic .",
    "bring the transfer|hormone leaflet|form on day {n} .",
    "partner|husband is present , {n} years|months together .",
    "next visit|call in {n} days|weeks , no change|news .",
)  # fmt: skip


def tagged_tokens(rng, remark):
    """A sentence as [(token, BIO tag)]. <Type> draws a phrase of that type, none of them twice."""
    fresh = {kind: iter(rng.sample(phrases, 3)) for kind, phrases in ENTITIES.items()}
    text = re.sub(r"<(\w+)>", lambda found: f"[{found[1]} {next(fresh[found[1]])}]", remark)
    tokens = []
    for kind, phrase, other in re.findall(r"\[(\w+) ([^]]+)\]|(\w+|[^\w\s])", vary(rng, text)):
        words = re.findall(r"\w+|[^\w\s]", phrase or other)
        tokens += [(word, f"{'I' if at else 'B'}-{kind}" if kind else "O") for at, word in enumerate(words)]
    return [(capitalized(tokens[0][0]), tokens[0][1]), *tokens[1:]]


def write_sentences(path, sentences, seed=0):
    """Write a BIO file, token<TAB>tag, in documents of 3 to 8 sentences; returns the sentences."""
    rng = random.Random(seed)
    texts, lines, document = [], [], 0
    while len(texts) < sentences:
        document += 1
        lines.append(f"# doc {document}")
        for remark in rng.sample(REMARKS, rng.randint(3, 8)):
            tokens = tagged_tokens(rng, remark)
            lines += [*(f"{word}\t{tag}" for word, tag in tokens), ""]
            texts.append(" ".join(word for word, _ in tokens))
    write_whole(path, "\n".join(lines))
    return texts
