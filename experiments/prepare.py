"""From a public data set to the file that a task reads: python -m experiments.prepare NAME SOURCE OUT

    mtsamples     Kaggle's mtsamples.csv                    -> a CSV of notes, as MIMIC-III's NOTEEVENTS
    stop_reasons  stopped_predictions_27.11.tsv             -> a CSV: text, nct_id, phase, status, label
    maccrobat     a directory of brat files (.txt, .ann)    -> train.tsv, dev.tsv, test.tsv in OUT
    encounters    diabetic_data.csv; IDs_mapping.csv too    -> a CSV: SUBJECT_ID, HADM_ID, TEXT, Label
    trials        a directory of ClinicalTrials.gov's XML   -> a CSV, one trial per row

OUT may end in .gz. experiments/data.md says where each source is, and how its result was checked.
"""

import csv
import gzip
import random
import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from cli import BadInput, Parser, run_script
from data import Table, open_text, text_lines
from files import whole_file, writable_directory, write_whole


def source_rows(path, **dialect):
    """[[cell]] of a file whose rows may differ in length, without blank lines."""
    csv.field_size_limit(2**31 - 1)
    file, stream = open_text(path)
    with file:
        try:
            return [row for row in csv.reader(text_lines(path, stream), **dialect) if row]
        except csv.Error as error:
            raise BadInput(f"{path}: not a CSV file ({error})") from None


class Row(dict):
    """A row by its columns' names. Raises BadInput for a column that is missing."""

    def __missing__(self, column):
        raise BadInput(f"no column {column!r} in the source; is it the file that experiments/data.md names?")


def named_rows(path):
    """[Row] of a CSV file with a header."""
    table = Table(path)
    return [Row(zip(table.columns, cells, strict=True)) for cells in table]


def write_table(path, header, rows):
    """Write a CSV whole; one named .gz as gzip without a date, so that equal rows give equal bytes."""
    if Path(path).is_dir():
        raise BadInput(f"{path}: is a directory; name the file to write")
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    content = buffer.getvalue().encode()
    with whole_file(path) as file:
        file.write(gzip.compress(content, mtime=0) if str(path).endswith(".gz") else content)


def read_text(path):
    """The whole text of a UTF-8 file. Raises BadInput if it cannot be read."""
    file, stream = open_text(path)
    with file:
        return "".join(text_lines(path, stream))


def one_line(text):
    """The text with each run of white space made one space."""
    return " ".join(text.split())


# --- MTSamples ------------------------------------------------------------------------------------


def mtsamples(source, out):
    """Notes with one subject per text: MTSamples lists a note once under each of its specialties."""
    subjects, rows = {}, []
    for number, row in enumerate(named_rows(source), 1):
        if text := row["transcription"].strip():
            words = " ".join(re.findall(r"\w+", text.lower()))
            subject = subjects.setdefault(words, len(subjects) + 1)
            rows.append((number, subject, row["medical_specialty"].strip(), row["sample_name"].strip(), text))
    write_table(out, ("ROW_ID", "SUBJECT_ID", "CATEGORY", "DESCRIPTION", "TEXT"), rows)
    return f"{len(rows)} notes, {len(subjects)} of them distinct"


# --- stop reasons ---------------------------------------------------------------------------------


def stop_reason(cells):
    """(text, nct_id, phase, status, label) of a row, or None if it lacks one of them.

    The trial's number is looked for, since some rows are shifted: text and phase stand before it; start date,
    status, two more dates and the predicted reason after it.
    """
    at = next((i for i, cell in enumerate(cells) if re.fullmatch(r"NCT\d{8}", cell)), 0)
    if at < 2 or len(cells) < at + 6 or not re.fullmatch(r"[A-Z]\w+", cells[at + 5]):
        return None
    text = one_line(" ".join(cells[: at - 1]).replace('"', ""))
    phase = "" if cells[at - 1] == "nan" else cells[at - 1]
    return (text, cells[at], phase, cells[at + 2], cells[at + 5]) if text else None


def stop_reasons(source, out):
    """Why trials stopped, each with the reason that the Open Targets model predicted."""
    header, *rows = source_rows(source, delimiter="\t", quoting=csv.QUOTE_NONE) or [[]]
    if header[:3] != ["stop_reason", "phase", "nct_id"]:
        raise BadInput(
            f"{source}: the first line should begin with stop_reason, phase, nct_id, tab-separated"
        )
    kept = [reason for reason in map(stop_reason, rows) if reason]
    write_table(out, ("text", "nct_id", "phase", "status", "label"), kept)
    return f"{len(kept)} of {len(rows)} rows"


# --- MACCROBAT ------------------------------------------------------------------------------------


def brat_entities(path):
    """[(start, stop, type)] of a .ann file, without discontinuous spans; of overlapping ones the longest."""
    chosen = []
    spans = re.findall(r"^T\d+\t(\S+) (\d+) (\d+)\t", read_text(path), re.M)
    for label, start, stop in sorted(spans, key=lambda span: int(span[1]) - int(span[2])):
        start, stop = int(start), int(stop)
        if all(stop <= first or start >= last for first, last, _ in chosen):
            chosen.append((start, stop, label))
    return sorted(chosen)


def bio_lines(text, entities):
    """Word, tab, tag for each word or mark of the text, and a blank line after each line of it.

    A word of which an entity covers a part belongs to the entity.
    """
    at = 0
    for line in text.split("\n"):
        words, entity = list(re.finditer(r"\w+|[^\w\s]", line)), None
        for word in words:
            start, stop = at + word.start(), at + word.end()
            found = next((e for e in entities if e[0] < stop and e[1] > start), None)
            yield f"{word.group()}\t" + (f"{'I' if found == entity else 'B'}-{found[2]}" if found else "O")
            entity = found
        at += len(line) + 1
        if words:
            yield ""


def maccrobat(source, out):
    """BIO files of 140, 20 and 40 case reports, drawn with seed 13."""
    reports = sorted(path.stem for path in Path(source).glob("*.ann"))
    if len(reports) != 200:
        raise BadInput(f"{source}: {len(reports)} .ann files where MACCROBAT 2020 has 200")
    random.Random(13).shuffle(reports)
    out = writable_directory(out)
    for name, chosen in {"train": reports[:140], "dev": reports[140:160], "test": reports[160:]}.items():
        lines = []
        for report in sorted(chosen):
            text, annotated = (Path(source) / f"{report}.{ending}" for ending in ("txt", "ann"))
            lines += [f"# doc {report}", *bio_lines(read_text(text), brat_entities(annotated))]
        write_whole(out / f"{name}.tsv", "\n".join([*lines, ""]))
    return "140 case reports to train, 20 for validation, 40 to test"


# --- encounters -----------------------------------------------------------------------------------

DIED = {"11", "13", "14", "19", "20", "21"}  # discharge dispositions: died, or went to a hospice
CODED = ("admission_type_id", "discharge_disposition_id", "admission_source_id")


def read_codes(path):
    """{column: {code: meaning}} of IDs_mapping.csv, which holds three tables one below the other."""
    codes, table = {}, {}
    for row in source_rows(path):
        if len(row) == 2 and row[0].endswith("_id"):
            table = codes.setdefault(row[0], {})
        elif len(row) == 2 and row[0]:
            table[row[0]] = row[1].strip()
    if missing := set(CODED) - set(codes):
        raise BadInput(f"{path}: no table of {missing.pop()}")
    return codes


def encounter_text(row, codes):
    """An encounter's fields as sentences."""
    meaning = {name: codes[name].get(row[name], "Unknown") for name in CODED}
    race = "Race not recorded" if row["race"] == "?" else row["race"]
    diagnoses = [row[name] for name in ("diag_1", "diag_2", "diag_3") if row[name] != "?"]
    hba1c, change, columns = row["A1Cresult"], row["change"], list(row)
    drugs = columns[columns.index("A1Cresult") + 1 : columns.index("change")]  # a column for each drug
    taken = [f"{drug} {row[drug].lower()}" for drug in drugs if row[drug] != "No"]
    sentences = [
        "DISCHARGE SUMMARY.",
        f"{race} {row['gender'].lower()}, age {row['age'].strip('[)').replace('-', ' to ')} years.",
        f"Admission type: {meaning['admission_type_id']}.",
        f"Admitted from: {meaning['admission_source_id']}.",
        f"Length of stay {row['time_in_hospital']} days.",
        f"Discharge disposition: {meaning['discharge_disposition_id']}.",
        row["medical_specialty"] != "?" and f"Service: {row['medical_specialty']}.",
        f"Diagnoses (ICD-9): {', '.join(diagnoses)}; {row['number_diagnoses']} diagnoses in all.",
        f"{row['num_lab_procedures']} laboratory tests, {row['num_procedures']} procedures, "
        f"{row['num_medications']} medications.",
        f"In the year before: {row['number_outpatient']} outpatient, {row['number_emergency']} emergency and "
        f"{row['number_inpatient']} inpatient visits.",
        row["max_glu_serum"] != "None" and f"Maximum serum glucose {row['max_glu_serum']}.",
        hba1c != "None" and f"HbA1c {hba1c}.",
        f"Diabetes medication: {', '.join(taken) or 'none'}.",
        change == "Ch" and "Regimen changed.",
    ]
    return " ".join(filter(None, sentences))


def encounters(source, out, patients=18_000):
    """Encounters of patients drawn at random, labelled 1 if the patient was readmitted within 30 days."""
    codes = read_codes(Path(source).with_name("IDs_mapping.csv"))
    rows = [row for row in named_rows(source) if row["discharge_disposition_id"] not in DIED]
    everyone = list(dict.fromkeys(row["patient_nbr"] for row in rows))
    drawn = {everyone[i] for i in np.random.RandomState(0).permutation(len(everyone))[:patients]}
    kept = []
    for row in rows:
        if row["patient_nbr"] in drawn:
            label = int(row["readmitted"] == "<30")
            kept.append((row["patient_nbr"], row["encounter_id"], encounter_text(row, codes), label))
    write_table(out, ("SUBJECT_ID", "HADM_ID", "TEXT", "Label"), kept)
    return f"{len(kept)} encounters of {len(drawn)} patients"


# --- trials ---------------------------------------------------------------------------------------

# column -> where its text is in a <clinical_study>; several are joined with "; "
TRIAL = {
    "nct_id": "id_info/nct_id", "gender": "eligibility/gender", "gender_based": "eligibility/gender_based",
    "minimum_age": "eligibility/minimum_age", "maximum_age": "eligibility/maximum_age",
    "healthy_volunteers": "eligibility/healthy_volunteers", "brief_title": "brief_title",
    "official_title": "official_title", "brief_summary": "brief_summary/textblock",
    "detailed_description": "detailed_description/textblock",
    "eligibility_criteria": "eligibility/criteria/textblock", "conditions": "condition",
    "interventions": "intervention", "keywords": "keyword", "study_type": "study_type", "phase": "phase",
    "overall_status": "overall_status", "why_stopped": "why_stopped", "enrollment": "enrollment",
    "start_date": "start_date", "completion_date": "completion_date",
}  # fmt: skip


def field_text(element):
    """An element's text: hard line breaks joined, one line per paragraph; an intervention as 'type: name'."""
    if element.tag == "intervention":
        return f"{element.findtext('intervention_type', '')}: {element.findtext('intervention_name', '')}"
    paragraphs = re.split(r"\n\s*\n", (element.text or "").replace("\r", ""))
    return "\n".join(filter(None, map(one_line, paragraphs)))


def trials(source, out):
    """One row per trial that states a sex, sorted by number; of two files of a trial the first by path."""
    kept, broken = {}, 0
    paths = sorted(Path(source).rglob("NCT*.xml"))
    for path in paths:
        try:
            study = ElementTree.fromstring(path.read_bytes())
        except ElementTree.ParseError:
            broken += 1
            continue
        row = {name: "; ".join(map(field_text, study.findall(where))) for name, where in TRIAL.items()}
        if row["nct_id"] and row["gender"]:
            kept.setdefault(row["nct_id"], row)
    if not kept:
        raise BadInput(f"{source}: no trial could be read in {len(paths)} NCT*.xml files")
    write_table(out, tuple(TRIAL), (tuple(kept[number].values()) for number in sorted(kept)))
    return f"{len(kept)} trials of {len(paths)} files, {broken} of them not XML"


CONVERTERS = {
    "mtsamples": mtsamples, "stop_reasons": stop_reasons, "maccrobat": maccrobat,
    "encounters": encounters, "trials": trials,
}  # fmt: skip


def main(argv=None):
    """Convert one source and say what came of it."""
    parser = Parser(prog="-m experiments.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONVERTERS, help="the data set, see experiments/data.md")
    parser.add_argument("source", help="the public file or directory")
    parser.add_argument("out", help="the file to write; maccrobat: the directory")
    args = parser.parse_args(argv)
    writable_directory(Path(args.out).parent)
    print(f"{args.out}: {CONVERTERS[args.name](args.source, args.out)}")


if __name__ == "__main__":
    run_script(main)
