"""Many notes: predict.py end to end (reading, tokenising, writing), and reading them for training.

Each measurement has a process of its own, which tells its peak memory when it ends.
"""

import csv
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from cli import BadInput
from tasks.symptoms import SYMPTOMS

ROOT = Path(__file__).resolve().parent.parent
WORDS = [
    *("patient", "denies", "reports", "chest", "abdominal", "pain", "fever", "cough", "edema", "bleeding"),
    *("stable", "improved", "daily", "mg", "left", "right", "no", "acute", "severe"),
]
PEAK = """
import resource, sys
def peak():
    try:  # of this process alone; ru_maxrss begins with what the parent had
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
"""
PREDICT = """
import predict
from cli import run_script
run_script(lambda: predict.main(sys.argv[1:]))
print(peak())
"""
OURS = """
import time
from collections import Counter
from tasks.symptoms import Symptoms
began, cpu, counts = time.perf_counter(), time.process_time(), Counter()
notes = Symptoms().read(sys.argv[1], lambda row_id: True, counts)
print(len(notes), time.perf_counter() - began, time.process_time() - cpu, peak())
"""
PANDAS = """
import time
import pandas
from tasks.symptoms import SYMPTOMS, first_match
began, cpu = time.perf_counter(), time.process_time()
table = pandas.read_csv(sys.argv[1], usecols=["ROW_ID", "SUBJECT_ID", "TEXT"]).dropna(subset="TEXT")
table["TEXT"] = table.TEXT.str.lower().str[:1000]
table["label"] = [first_match(text, SYMPTOMS) for text in table.TEXT]
print(len(table.dropna(subset="label")), time.perf_counter() - began, time.process_time() - cpu, peak())
"""
FIRST_BATCH = """
import time
import torch
from transformers import AutoTokenizer
from data import collate, make_batches
from fast import cpu
from run.inference import Notes
from tasks.symptoms import Symptoms
cpu.keep_memory()
task, tokenizer = Symptoms(), AutoTokenizer.from_pretrained(sys.argv[2])
began, cpu = time.perf_counter(), time.process_time()
examples, facts = task.load(sys.argv[1], 1.0, 0.1, 0.2, 42)
read = time.perf_counter()
notes = Notes.read(task, examples, tokenizer, 256, sys.argv[3])
rows = notes.rows["train"]
collate(rows, make_batches(rows.lengths, 16, 0)[0], notes.pad_id)
tokens = sum(int(notes.rows[split].starts[-1]) for split in notes.rows)
seconds = time.perf_counter() - began
print(facts["notes"], seconds, time.process_time() - cpu, peak(), read - began, tokens)
"""


def write_random_notes(path, count, words=12):
    """A CSV of synthetic notes of `words` words each."""
    generator = random.Random(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("ROW_ID", "TEXT"))
        writer.writerows((row, " ".join(generator.choices(WORDS, k=words))) for row in range(count))


def write_mimic_notes(path, count):
    """A CSV like MIMIC-III's NOTEEVENTS: 2,000 characters a note, 40 notes a patient, 1 in 6 unlabelled."""
    rng = random.Random(0)
    words = [word for word in WORDS if word not in SYMPTOMS]
    words += [*("the", "of", "and", "with", "on", "Pt.", "w/o", "b.i.d.", "x2"), "[**2151-7-16**]", "120/80"]
    lines = [" ".join(rng.choices(words, k=rng.randint(4, 14))) + rng.choice(".;,:") for _ in range(20_000)]
    lines[::50] = ['said "no", ' + line for line in lines[::50]]
    columns = "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,STORETIME,CATEGORY,DESCRIPTION,CGID,ISERROR,TEXT"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(columns.split(","))
        for row in range(1, count + 1):
            said = (
                f"Note {row}. Pt. reports {rng.choice((*SYMPTOMS, 'nothing'))} since [**5-{row % 28 + 1}**]."
            )
            text = "\n".join([said, *rng.choices(lines, k=rng.randint(5, 54))])
            cells = ("2151-08-04", "", "", "Nursing", "Report", "", "", text)
            writer.writerow((row, row // 40, row // 8, *cells))


def run_child(code, *words):
    """What a script prints last, as words, run in a process of its own. Raises BadInput if it fails."""
    place = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    command = [sys.executable, "-c", place + PEAK + code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"a measured process failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout.splitlines()[-1].split()


def run_predict(run, notes, out):
    """(wall seconds, peak memory in bytes) of predict.py in its own process."""
    flags = ["--out", out, "--device", "cpu", "--text-columns", "TEXT", "--row-column", "ROW_ID"]
    began = time.perf_counter()
    (peak,) = run_child(PREDICT, run, notes, *flags)
    return time.perf_counter() - began, int(peak)


def volume_rows(run, sizes=(20_000, 200_000)):
    """Rows, a dict each: notes, seconds, notes/s, peak memory and its ratio to that of the first row."""
    table = []
    with tempfile.TemporaryDirectory() as directory:
        for count in sizes:
            write_random_notes(notes := Path(directory) / f"{count}.csv", count)
            took, peak = run_predict(run, notes, Path(directory) / f"{count}.out.csv")
            table.append({"notes": count, "seconds": took, "notes_per_s": count / took, "peak_bytes": peak})
    for row in table:
        row["peak_ratio"] = row["peak_bytes"] / table[0]["peak_bytes"]
    return table


def volume_table(rows):
    """(header, cells) of volume_rows."""
    header = ["predict.py, synthetic notes", "seconds", "notes/s", "peak memory, MB", "x the first"]
    cells = [
        [
            f"{row['notes']:,}",
            f"{row['seconds']:.1f}",
            f"{row['notes_per_s']:,.0f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['peak_ratio']:.3f}",
        ]
        for row in rows
    ]
    return header, cells


def reading_rows(run, sizes, rounds=3):
    """Rows, a dict each: from CSV to what, how many notes, in how many seconds, with what peak memory.

    To labelled notes, the best of several rounds: ours and, if it is installed, pandas.read_csv with the same
    labels, by turns. To the first batch of token ids, once, with nothing kept from before.
    """
    table = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as directory:
            write_mimic_notes(notes := Path(directory) / "NOTEEVENTS.csv", count)
            readers = {"labels": OURS, **({"labels, pandas": PANDAS} if find_spec("pandas") else {})}
            read = [(name, run_child(readers[name], notes)) for _ in range(rounds) for name in readers]
            for name in readers:
                rows = [reading_row(name, count, *found) for which, found in read if which == name]
                table.append(min(rows, key=lambda row: row["seconds"]))
            found = run_child(FIRST_BATCH, notes, run, f"{directory}/cache")
            table.append(reading_row("first batch", count, *found))
    return table


def reading_row(what, count, labelled, seconds, cpu, peak, read=None, tokens=None):
    """A row of reading_rows, from the words that a process printed."""
    row = {"row": what, "notes": count, "labelled": int(labelled), "seconds": float(seconds)}
    row |= {"cpu_seconds": float(cpu), "notes_per_s": count / float(seconds), "peak_bytes": int(peak)}
    return row | {"read_seconds": read and float(read), "tokens": tokens and int(tokens)}


def reading_table(rows):
    """(header, cells) of reading_rows."""
    header = ["from CSV to", "notes", "labelled", "seconds", "CPU s", "notes/s", "peak memory, MB"]
    cells = [
        [
            row["row"],
            f"{row['notes']:,}",
            f"{row['labelled']:,}",
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['notes_per_s']:,.0f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        ]
        for row in rows
    ]
    return header, cells
