"""The embedded default: synthetic data in the real files' schemas, and a tiny BERT, made by `python demo.py DIR [TASK]`.

The data go through the same reader, labels and split as the real files, and the model is an ordinary checkpoint that
`from_pretrained` loads, so everything the project does can be tried on a fresh machine without a download. The wording
is ours and no patient is behind it; scores on it say that the code works, not how good a method is.
"""

import random
import re
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from cli import BadInput, run_script
from files import write_csv, write_whole

LEARNING_RATE = 5e-4  # a model of random weights needs a larger step than a pre-trained one; every technique uses it
TASK_FILES = {  # the first is the one a run reads as --data
    "symptoms": ("NOTEEVENTS.csv",), "readmission": ("NOTEEVENTS.csv", "ADMISSIONS.csv"), "ner": ("train.tsv",),
    "mlm": ("trials.csv", "stop_reasons.csv"), "trials": ("stop_reasons.csv", "trials.csv"),
}  # fmt: skip
BANNER = "DEMONSTRATION: synthetic notes or a tiny model of random weights; scores are not comparable to the paper's."

# --- symptoms ----------------------------------------------------------------------------------------------------

# How a symptom is worded: the lexicon's word, which carries the label; synonyms, which do not; and derived words, which do
# not either although their first WordPiece is the lexicon's word ("pain ##l ##e ##s ##s").
WORDINGS = {
    "edema": ("edema", ("puffy ankles", "fluid retention"), ("edematous legs", "edemas elsewhere")),
    "pain": ("pain", ("discomfort", "soreness"), ("painless swelling", "painful joints", "pains elsewhere")),
    "cough": ("cough", ("a hacking throat", "phlegm"), ("coughing fits", "coughs at night", "coughed up sputum")),
    "fever": ("fever", ("pyrexia", "a raised temperature"), ("feverish nights", "fevers elsewhere")),
    "bleeding": ("bleeding", ("hemorrhage", "oozing"), ("bleedings elsewhere",)),
    "nausea": ("nausea", ("queasiness",), ("nauseated mornings",)),
    "dizziness": ("dizziness", ("lightheadedness",), ("dizzy spells",)),
    "fatigue": ("fatigue", ("tiredness",), ("fatigued days",)),
    "rash": ("rash", ("red spots",), ("rashes elsewhere",)),
    "chills": ("chills", ("shivering",), ("chilly nights",)),
}
SHARES = {"edema": 14, "pain": 30, "cough": 26, "fever": 20, "bleeding": 16}
SITES = ("left leg", "right leg", "lower back", "chest wall", "abdomen", "left arm", "right hip", "neck")
TIMES = ("since yesterday", "for three days", "for two weeks", "on and off for a month", "since the last visit", "overnight")
AFFIRMED = (
    "Patient reports {s} {t}.", "Complains of {s} {t}.", "There is {s} near the {p}, worse {t}.",
    "Admitted with {s} {t}.", "Noted {s} {t}, not relieved by rest.", "Wife says he has had {s} {t}.",
)  # fmt: skip
NEGATED = ("Denies {s}.", "No {s} at this time.", "Negative for {s}.", "Has not had {s} {t}.")
HISTORICAL = ("History of {s} in the past, resolved.", "Previous admission for {s}.", "Had {s} last winter.")
FILLERS = (
    "Vital signs are stable.", "Blood pressure {n} over {m}.", "Pulse {n}, regular.", "Lungs are clear on both sides.",
    "Heart rate and rhythm are regular.", "Abdomen is soft.", "Skin is warm and dry.", "Alert and oriented.",
    "Takes his tablets every morning.", "Lives with his daughter and walks with a cane.", "Former smoker, quit long ago.",
    "Slept well and ate most of the meal.", "Family at bedside, questions answered.", "Oxygen saturation {n} percent.",
    "White count {m}, hematocrit stable.", 'Patient states "I feel about the same" today.', "Wound edges are clean.",
)  # fmt: skip
PLANS = (
    "Continue current medication.", "Follow up with the clinic in two weeks.", "Repeat labs in the morning.",
    "Physical therapy to see the patient.", "Discharge home when stable.", "Increase fluids, monitor output.",
)  # fmt: skip
CATEGORIES = ("Nursing", "Physician", "Discharge summary", "Radiology")


def _mention(rng, symptom, templates):
    word, synonyms, derived = WORDINGS[symptom]
    wording = rng.choices((word, rng.choice(synonyms), rng.choice(derived)), (6, 3, 1))[0]
    return rng.choice(templates).format(s=wording, t=rng.choice(TIMES), p=rng.choice(SITES))


def _filler(rng, lines=FILLERS):
    return rng.choice(lines).format(n=rng.randint(60, 140), m=rng.randint(5, 95))


def _note(rng, main):
    """One note about a main symptom: sections, with other symptoms denied or in the history."""
    others = rng.sample([symptom for symptom in WORDINGS if symptom != main], 5)
    history = [_mention(rng, main, AFFIRMED)] + [_filler(rng) for _ in range(rng.randint(1, 3))]
    history += [_mention(rng, other, HISTORICAL) for other in others[: rng.randint(0, 2)]]
    review = [_mention(rng, other, NEGATED) for other in others[2 : rng.randint(2, 5)]] + [_filler(rng)]
    for lines in (history, review):
        rng.shuffle(lines)
    chief = rng.choice((rng.choice(WORDINGS[main][1]), "routine check", "unwell", "transfer"))
    sections = (
        ("CHIEF COMPLAINT", [chief]), ("HISTORY OF PRESENT ILLNESS", history), ("REVIEW OF SYSTEMS", review),
        ("EXAM", [_filler(rng) for _ in range(rng.randint(2, 4))]), ("PLAN", [_filler(rng, PLANS) for _ in range(2)]),
    )  # fmt: skip
    return "\n\n".join(f"{title}:\n{' '.join(lines)}" for title, lines in sections)


def make_notes(path, notes=3000, seed=0):
    """Write a NOTEEVENTS.csv in the MIMIC-III schema; returns its texts. The same arguments write the same bytes."""
    rng = random.Random(seed)
    rows, subject = [], 10000
    while len(rows) < notes:
        subject += 1
        written = []
        for _ in range(rng.randint(1, 6)):  # notes of one patient
            row = len(rows) + 1
            main = rng.choices(list(SHARES), list(SHARES.values()))[0]
            draw = rng.random()
            if draw < 0.03 and written:
                text = rng.choice(written)  # filed twice
            elif draw < 0.12 and written:
                text = rng.choice(written) + f"\n\nADDENDUM:\n{_mention(rng, main, AFFIRMED)}"  # copied forward
            elif draw < 0.14:
                text = ""
            else:
                text = _note(rng, main if draw < 0.93 else rng.choice(("nausea", "dizziness", "fatigue")))
            if text:
                written.append(text)
            rows.append((row, subject, 100000 + row // 4, rng.choice(CATEGORIES), text))
    write_csv(path, ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CATEGORY", "TEXT"), rows)
    return [row[-1] for row in rows]


def _vary(rng, pattern, **slots):
    """Fill a pattern: one alternative of each "a|b|c_d" ("_" is a space), then the slots; {n} is a number."""
    text = re.sub(r"[\w{}-]*(?:\|[\w{}-]*)+", lambda found: rng.choice(found[0].split("|")).replace("_", " "), pattern)
    return re.sub(" +", " ", text).strip().format(**{"n": rng.randint(2, 40), **slots})


def _upper(text):
    return text[:1].upper() + text[1:]


# --- ner ---------------------------------------------------------------------------------------------------------

# The same words in another entity or in none: "low estrogen", "estrogen patches"; a cyst seen on a scan, a cyst told of.
ENTITIES = {
    "Symptoms": ("irregular|heavy|painful|missed|late periods|cycles|bleeding", "pelvic|abdominal|breast pain|tenderness",
        "hot flashes", "night sweats", "mood swings", "spotting |between_periods", "cramps", "weight gain|loss", "fatigue"),
    "Hormones": ("estrogen", "progesterone", "FSH|LH|AMH|TSH", "prolactin", "|free testosterone|T4", "beta hCG",
        "anti - mullerian hormone"),
    "Medications": ("estrogen|progesterone|iron tablets|patches|gel", "FSH|LH|hCG injections", "metformin", "vitamin D|B12",
        "letrozole|clomiphene |{n}_mg", "hCG trigger shot", "birth control pills", "low - dose aspirin"),
    "Procedures": ("|frozen|fresh embryo transfer", "egg retrieval", "IVF |cycle", "endometrial|ovarian biopsy",
        "|diagnostic|office hysteroscopy|laparoscopy", "ovulation induction", "pelvic ultrasound|scan", "insemination"),
    "Ultrasound": ("thin|thick endometrial| lining", "|small|large ovarian cyst", "|small fibroid|polyp", "hydrosalpinx",
        "two|{n} follicles", "polycystic ovaries", "free fluid", "follicle of {n} mm", "empty|single gestational sac"),
}  # fmt: skip
REMARKS = (
    "patient reports|has |severe|mild <Symptoms> and low|high <Hormones> .",
    "she denies|reports <Symptoms> or|and <Symptoms> .", "patient : I have|had <Symptoms> since|after the <Procedures> .",
    "complains of <Symptoms> , <Symptoms> and <Symptoms> .", "low|high|normal <Hormones> level on day {n} .",
    "<Hormones> is {n} , <Hormones> is low|normal|raised .", "labs show|showed low|normal <Hormones> and <Hormones> today .",
    "<Symptoms> got worse|better on <Medications> .", "started|continue <Medications> and|then <Medications> for {n} days .",
    "she takes|stopped <Medications> at night .", "patient : can I take <Medications> before|after the <Procedures> ?",
    "<Hormones> rose|fell after {n} days of <Medications> .", "scheduled|booked for <Procedures> next week|month .",
    "she had one|another <Procedures> {n} weeks|months ago .",
    "ultrasound|scan showed|shows <Ultrasound> and <Ultrasound> .", "ultrasound today : <Ultrasound> , no <Ultrasound> .",
    "[Procedures pelvic ultrasound|scan] showed <Ultrasound> on the left|right .",
    "plan : <Procedures> <Medications> , review in {n} days .",
    "told years ago of an [Symptoms ovarian cyst] and a [Symptoms fibroid|polyp] .",
    "today <Symptoms> <Symptoms> , no <Symptoms> .", "worried that the [Symptoms ovarian cyst] causes her <Symptoms> .",
    "<Ultrasound> , so|hence <Procedures> was|is postponed .", "doctor : when was your last period|scan ?",
    "doctor : how long are your cycles|periods , about {n} days ?", "her sister|mother works in the ultrasound|IVF clinic .",
    "bring the transfer|hormone leaflet|form on day {n} .", "partner|husband is present , {n} years|months together .",
    "next visit|call in {n} days|weeks , no change|news .",
)  # fmt: skip


def make_sentences(path, sentences=2000, seed=0):
    """Write a BIO file, token<TAB>tag, of documents of 3 to 8 sentences about cycles and IVF; returns its sentences."""
    rng = random.Random(seed)
    texts, lines, document = [], [], 0
    while len(texts) < sentences:
        document += 1
        lines.append(f"# doc {document}")
        for remark in rng.sample(REMARKS, rng.randint(3, 8)):
            fresh = {kind: iter(rng.sample(phrases, 3)) for kind, phrases in ENTITIES.items()}
            text = re.sub(r"<(\w+)>", lambda found: f"[{found[1]} {next(fresh[found[1]])}]", remark)
            tokens = []
            for kind, phrase, other in re.findall(r"\[(\w+) ([^]]+)\]|(\w+|[^\w\s])", _vary(rng, text)):
                words = re.findall(r"\w+|[^\w\s]", phrase or other)
                tokens += [(word, f"{'I' if at else 'B'}-{kind}" if kind else "O") for at, word in enumerate(words)]
            tokens[0] = (_upper(tokens[0][0]), tokens[0][1])
            lines += [*(f"{word}\t{tag}" for word, tag in tokens), ""]
            texts.append(" ".join(word for word, _ in tokens))
    write_whole(path, "\n".join(lines))
    return texts


# --- readmission -------------------------------------------------------------------------------------------------

DIAGNOSES = ("pneumonia", "heart failure", "sepsis", "atrial fibrillation", "hip fracture", "kidney injury", "stroke")
SIGNS = (  # (of an early return, of a late one or none)
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
    "Day {n}: comfortable, labs repeated|stable.", "Cardiology|Surgery was consulted and advised rest|imaging.",
    "Chest film|scan showed no|a_small effusion|infiltrate.", "Known to Dr. [**Last Name**] of [**Hospital {n}**].",
    "Creatinine|Potassium|Glucose was {n} and then rose|fell|normalized.",
)  # fmt: skip
INFANT = ("Term|Preterm infant, vigorous|crying.", "Weight up|down {n} grams.", "Feeding well|slowly by breast|bottle.")


def _lines(rng, words, patterns=COURSE):
    """Lines of about so many words: treatment, examination and symptoms unless other patterns are given."""
    lines = []
    while sum(len(line.split()) for line in lines) < words:
        symptom = _mention(rng, rng.choice(list(WORDINGS)), rng.choice((AFFIRMED, NEGATED, HISTORICAL)))
        line = _vary(rng, rng.choice(patterns))
        lines.append(line if patterns != COURSE else rng.choice((line, line, _filler(rng, FILLERS[:8]), symptom)))
    return " ".join(lines)


def _summary(rng, diagnosis, early, died):
    """A discharge summary. Four to six signs point, each for itself and not always rightly, to an early return or none."""
    size = rng.randint(230, 500) if rng.random() < 0.1 else rng.randint(25, 120)
    signs = [_vary(rng, pair[rng.random() > (0.7 if early else 0.3)]) for pair in rng.sample(SIGNS, rng.randint(4, 6))]
    sections = (
        ("HISTORY OF PRESENT ILLNESS", f"Admitted with {diagnosis}. {_lines(rng, 10)}"),
        ("SOCIAL HISTORY", " ".join(signs[:2])),
        ("HOSPITAL COURSE", _lines(rng, size)), ("CONDITION AT DISCHARGE", "Expired." if died else " ".join(signs[2:])),
        ("INSTRUCTIONS", "None." if died else _filler(rng, PLANS)),
    )  # fmt: skip
    return "\n\n".join(f"{title}:\n{text}" for title, text in sections)


def make_admissions(notes_path, admissions_path, admissions=1500, seed=0):
    """Write NOTEEVENTS.csv and ADMISSIONS.csv in the MIMIC-III schema; returns the notes.

    A fifth of the stays that the patient survives, births aside, are followed by an unplanned one within three days.
    """
    rng = random.Random(seed)
    notes, stays, subject = [], [], 20000
    while len(stays) < admissions:
        subject += 1
        newborn, dies = rng.random() < 0.04, rng.random() < 0.08
        returns = 0 if newborn else rng.choice((0, 0, 1, 1, 2, 2, 3))
        fates = rng.choices(("early", "elective", "late"), (36, 6, 58), k=returns) + ["none"]
        arrival = datetime(2100, 1, 1) + timedelta(minutes=rng.randrange(80 * 365 * 24 * 60))
        kind = "NEWBORN" if newborn else "EMERGENCY"
        for fate in fates:
            stay, leaves = 200000 + len(stays), arrival + timedelta(minutes=rng.randint(24 * 60, 12 * 24 * 60))
            died = dies and not newborn and fate == "none"
            diagnosis = "newborn" if newborn else rng.choice(DIAGNOSES)
            flag = (leaves, kind, 1) if died else ("", kind, 0)
            stays.append((len(stays) + 1, subject, stay, arrival, leaves, *flag, diagnosis.upper()))
            texts = []
            if rng.random() < 0.8:
                texts.append((arrival.date(), "Nursing", _lines(rng, 40, INFANT if newborn else COURSE)))
            if rng.random() > 0.02:
                text = f"BIRTH:\n{_lines(rng, 80, INFANT)}" if newborn else _summary(rng, diagnosis, fate == "early", died)
                texts.append((leaves.date(), "Discharge summary", text))
                if rng.random() < 0.05:
                    texts.append((leaves.date(), "Discharge summary", f"ADDENDUM:\n{_lines(rng, 15)}"))
            notes += [(len(notes) + at, subject, stay, *text) for at, text in enumerate(texts, 1)]
            days = rng.randint(20, 900) if fate == "late" else rng.uniform(0.2, 2.9)
            arrival = leaves + timedelta(minutes=int(days * 24 * 60))
            planned = fate == "elective" or fate == "late" and rng.random() < 0.2
            kind = "ELECTIVE" if planned else rng.choice(("EMERGENCY", "EMERGENCY", "EMERGENCY", "URGENT"))
    write_csv(notes_path, ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CATEGORY", "TEXT"), notes)
    write_csv(admissions_path, ("ROW_ID", "SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "DEATHTIME", "ADMISSION_TYPE",
                                "HOSPITAL_EXPIRE_FLAG", "DIAGNOSIS"), stays)  # fmt: skip
    return [note[-1] for note in notes]


# --- trials and mlm ----------------------------------------------------------------------------------------------

CAUSES = {  # why a trial stopped: (share in percent, *wordings)
    "Insufficient_Enrollment": (35, "slow|low|poor|insufficient enrollment|recruitment|accrual",
        "problems recruiting|enrolling patients", "lack|shortage of eligible|suitable|interested patients|participants",
        "only {n} patients|participants enrolled|recruited"),
    "Business_Administrative": (20, "business|strategic|administrative decision|reasons",
        "lack|loss|withdrawal of funding|sponsorship", "shift|change in company|portfolio priorities|strategy",
        "company bankruptcy", "contract|agreement not signed|renewed"),
    "Negative": (10, "lack of efficacy|benefit|effect", "futility|negative_result at|in the interim|second analysis",
        "primary|main endpoint not met", "no difference|improvement over|against placebo"),
    "Logistics_Resources": (9, "drug|device supply shortage|delay|problems", "lack of staff|resources|equipment",
        "study drug|kit|scanner not available", "site|laboratory closure|relocation"),
    "Study_Design": (8, "change|error|flaw in the|study protocol|design", "protocol|design to be revised|replaced",
        "a new|larger study instead", "inclusion criteria too strict|narrow"),
    "Covid19": (7, "COVID-19 pandemic|restrictions|lockdown", "coronavirus pandemic|restrictions",
        "recruitment halted in the pandemic"),
    "Safety_Sideeffects": (6, "safety|toxicity concerns|signal|findings", "serious|severe adverse events|reactions",
        "{n} deaths|bleeds in the first|active arm"),
    "Study_Staff_Moved": (5, "PI|investigator left|leaving the institution|university|site",
        "PI|investigator retired|relocated", "departure|retirement of the PI|coordinator",
        "investigator|PI no longer at the|this site|institution"),
}  # fmt: skip
STOPPED = (
    "{c}", "{c}", "due to {c}", "study|trial stopped|terminated|halted early because_of|due_to {c}",
    "{c} at the site|center", "ended after {n} months|patients: {c}", "{c}, no safety concerns",
    "{c}; not related to safety|efficacy|funding", "{c} and|with {o}", "{c}, also|then {o}", "PI|sponsor decision: {c}",
    "{c} |with_{n}_of_50_enrolled",
)  # fmt: skip


def make_reasons(path, rows=3000, seed=0):
    """Write stop_reasons.csv, short reasons why a trial stopped, eight classes; returns the reasons. One in 12 is a copy."""
    rng = random.Random(seed)
    written, seen = [], set()
    for row in range(rows):
        if written and rng.random() < 0.08:
            reason, *_, label = rng.choice(written)
        else:
            label = rng.choices(list(CAUSES), [share for share, *_ in CAUSES.values()])[0]
            others, reason = [name for name in CAUSES if name != label], None
            while reason is None or reason in seen:
                cause, other = (_vary(rng, rng.choice(CAUSES[name][1:])) for name in (label, rng.choice(others)))
                reason = f"{_upper(_vary(rng, rng.choice(STOPPED), c=cause, o=other))}."
            seen.add(reason)
        phase = rng.choice(("", "Phase 1", "Phase 2", "Phase 3", "Phase 4"))
        status = rng.choice(("Terminated", "Withdrawn", "Suspended"))
        written.append((reason, f"NCT{row + 1000001:08d}", phase, status, label))
    write_csv(path, ("context", "nct_id", "phase", "status", "label"), written)
    return [row[0] for row in written]


CONDITIONS = {
    "All": ("type 2 diabetes", "hypertension", "asthma", "depression", "colorectal cancer", "migraine", "lung cancer"),
    "Male": ("prostate cancer", "prostate enlargement", "low testosterone", "erectile dysfunction", "male infertility"),
    "Female": ("breast cancer", "ovarian cancer", "endometriosis", "preterm birth", "menopause", "female infertility"),
}  # fmt: skip
ELIGIBLE = {  # the lines that tell who may take part
    "All": ("Men or|and women aged {n} years|or_older", "Adults of any|either sex|gender"),
    "Male": ("Male patients|participants", "Men aged {n} years|or_older"),
    "Female": ("Female patients|participants", "Women aged {n} years|or_older", "Pregnant|Postmenopausal women"),
}  # fmt: skip
TREATMENTS = ("metformin", "exercise|yoga training", "vitamin D", "a new vaccine|antibody", "cognitive therapy")
SUMMARIES = (
    "This study tests|compares {t} in patients|participants with {c}",
    "The aim is to learn whether {t} improves|relieves {c}",
    "Patients will receive {t} or|against placebo for {n} weeks|months", "{c} is a common|major health problem",
    "The main|primary outcome is survival|pain at {n} months|weeks", "About {n} sites|clinics take part in the trial|study",
)  # fmt: skip
CRITERIA = (
    "Able|Willing to give|sign informed consent", "Diagnosis of {c} for at_least|over {n} months|weeks", "No allergy to {t}",
    "Adequate liver|kidney|bone_marrow function", "No other cancer|trial within {n} months",
    "Stable use of {t} for {n} weeks", "Pregnant or nursing|breastfeeding women are excluded",
    "Partners use contraception for {n} weeks",
)  # fmt: skip


def make_trials(path, rows=1500, seed=0):
    """Write trials.csv, summaries and criteria of trials, which mostly tell the participants' sex; returns all its texts."""
    rng = random.Random(seed)
    written = []
    for row in range(rows):
        gender = rng.choices(list(CONDITIONS), (70, 15, 15))[0]
        condition = rng.choice(CONDITIONS[gender if rng.random() < 0.5 else "All"])
        slots = {"c": condition, "t": _vary(rng, rng.choice(TREATMENTS))}
        title = _vary(rng, "{t} for|in|against {c}|patients_with_{c}", **slots)
        summary = [f"{_upper(_vary(rng, line, **slots))}." for line in rng.sample(SUMMARIES, rng.randint(2, 5))]
        told = [rng.choice(ELIGIBLE[gender])] if rng.random() < 0.85 else []
        told += rng.sample(CRITERIA[: 6 if gender == "Male" else 8], rng.randint(2, 5))
        criteria = [f"- {_vary(rng, line, **slots)}" for line in told]
        written.append((f"NCT{row + 2000001:08d}", gender, _upper(title), " ".join(summary), "\n".join(criteria)))
    write_csv(path, ("nct_id", "gender", "brief_title", "brief_summary", "eligibility_criteria"), written)
    return [text for row in written for text in row[2:]]


# --- the model ---------------------------------------------------------------------------------------------------


def wordpiece_vocabulary(texts, size):
    """Special tokens, characters alone and as continuations, then the commonest words: a list of at most `size` pieces.

    A word that only lengthens a commoner one ("painless") is left to that word and continuations. The tokenizers library's
    own trainer breaks ties by hash order: two runs of it give two vocabularies.
    """
    words = Counter(word for text in texts for word, _ in BertPreTokenizer().pre_tokenize_str(text.lower()))
    characters = sorted(set("".join(words)))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    stems = set()
    for word in sorted(words, key=lambda word: (-words[word], word)):
        if len(word) > 1 and not any(word[:cut] in stems for cut in range(4, len(word))):
            stems.add(word)
            pieces.append(word)
    return pieces[:size]


def make_model(directory, texts, hidden=128, layers=4, vocabulary=600, seed=0):
    """Save a tiny BERT of random weights, with a WordPiece vocabulary of these texts, as an ordinary checkpoint."""
    words = wordpiece_vocabulary(texts, vocabulary)
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_whole(Path(directory) / "vocab.txt", "\n".join(words) + "\n")
    tokenizer = BertTokenizerFast.from_pretrained(directory, do_lower_case=True, model_max_length=256)
    config = BertConfig(
        vocab_size=len(words), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=max(2, hidden // 32),
        intermediate_size=2 * hidden, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make(directory, task="symptoms", notes=3000, hidden=128, layers=4):
    """Make a task's data, about `notes` rows, and a model under a directory unless they are there. Returns their two paths.

    mlm and trials make the same files and model, so that an encoder adapted by one has the vocabulary of the other.
    """
    if task not in TASK_FILES:
        raise BadInput(f"{task}: no such task; choose one of {', '.join(TASK_FILES)}")
    directory = Path(directory)
    paths, model = [directory / name for name in TASK_FILES[task]], directory / "model"
    complete = (model / "tokenizer.json").exists()  # written last
    held = {name for names in TASK_FILES.values() for name in names if (directory / name).exists()}
    if held - set(TASK_FILES[task]) or complete and held != set(TASK_FILES[task]):
        raise BadInput(f"{directory}: holds the demonstration of another task than {task}; choose another directory")
    if not complete:
        directory.mkdir(parents=True, exist_ok=True)
        if task == "symptoms":
            texts = make_notes(*paths, notes)
        elif task == "ner":
            texts = make_sentences(*paths, min(notes, 2000))
        elif task == "readmission":
            texts = make_admissions(*paths, min(notes, 1500))
        else:
            texts = make_reasons(directory / "stop_reasons.csv", notes)
            texts += make_trials(directory / "trials.csv", min(notes // 2, 1500))
        make_model(model, texts, hidden, layers)
    return paths[0], model


if __name__ == "__main__":
    run_script(lambda: print(*make(*(sys.argv[1:3] or ["demo"])), sep="\n"))
