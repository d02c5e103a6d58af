"""The embedded default: synthetic notes in the real file's schema, and a tiny BERT, both made by `python demo.py DIR`.

The notes go through the same reader, labels and split as MIMIC's, and the model is an ordinary checkpoint that
`from_pretrained` loads, so everything the project does can be tried on a fresh machine without a download. The wording
is ours and no patient is behind it; scores on it say that the code works, not how good a method is.
"""

import csv
import io
import random
import sys
from collections import Counter
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from data import Table, run_script, write_whole

LEARNING_RATE = 5e-4  # a model of random weights needs a larger step than a pre-trained one; every technique uses it
BANNER = "DEMONSTRATION: synthetic notes or a tiny model of random weights; scores are not comparable to the paper's."

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
    """Write a NOTEEVENTS.csv in the MIMIC-III schema; the same arguments write the same bytes everywhere."""
    rng = random.Random(seed)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("ROW_ID", "SUBJECT_ID", "HADM_ID", "CATEGORY", "TEXT"))
    row, subject = 0, 10000
    while row < notes:
        subject += 1
        written = []
        for _ in range(rng.randint(1, 6)):  # notes of one patient
            row += 1
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
            writer.writerow((row, subject, 100000 + row // 4, rng.choice(CATEGORIES), text))
    write_whole(path, buffer.getvalue())


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


def make(directory, notes=3000, hidden=128, layers=4):
    """Make notes and model under a directory unless they are there. Returns (path of the notes, path of the model)."""
    directory = Path(directory)
    path, model = directory / "NOTEEVENTS.csv", directory / "model"
    if not (model / "tokenizer.json").exists():  # written last
        directory.mkdir(parents=True, exist_ok=True)
        make_notes(path, notes)
        table = Table(path, progress=False)
        text_at = table.column("TEXT", "--text-column")
        make_model(model, [row[text_at] for _, row in table], hidden, layers)
    return path, model


if __name__ == "__main__":
    run_script(lambda: print(*make(sys.argv[1] if len(sys.argv) > 1 else "demo"), sep="\n"))
