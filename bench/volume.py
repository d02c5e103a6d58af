"""Many notes: predict.py end to end (reading, tokenising, writing), and reading them for training.

Each measurement has a process of its own. Its peak memory is what it and its helpers have together, looked at
once a second where the system tells it (Linux), or else what it tells itself when it ends.
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
import os, resource, sys
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
def cpu_seconds():  # of this process and of those that it has ended
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
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
from fast import cpu
from tasks.symptoms import Symptoms
cpu.keep_memory()
began, cpu, counts = time.perf_counter(), cpu_seconds(), Counter()
notes = Symptoms().read_by_all(sys.argv[1], lambda row_id: True, counts)
print(len(notes), time.perf_counter() - began, cpu_seconds() - cpu, peak())
"""
PANDAS = """
import time
import pandas
from tasks.symptoms import SYMPTOMS, first_match
began, cpu = time.perf_counter(), cpu_seconds()
table = pandas.read_csv(sys.argv[1], usecols=["ROW_ID", "SUBJECT_ID", "TEXT"]).dropna(subset="TEXT")
table["TEXT"] = table.TEXT.str.lower().str[:1000]
table["label"] = [first_match(text, SYMPTOMS) for text in table.TEXT]
print(len(table.dropna(subset="label")), time.perf_counter() - began, cpu_seconds() - cpu, peak())
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
began, cpu = time.perf_counter(), cpu_seconds()
examples, facts = task.load(sys.argv[1], 1.0, 0.1, 0.2, 42)
read = time.perf_counter()
notes = Notes.read(task, examples, tokenizer, 256, sys.argv[3])
rows = notes.rows["train"]
collate(rows, make_batches(rows.lengths, 16, 0)[0], notes.pad_id)
tokens = sum(int(notes.rows[split].starts[-1]) for split in notes.rows)
seconds = time.perf_counter() - began
print(facts["notes"], seconds, cpu_seconds() - cpu, read - began, tokens, peak())
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
    """(what a script prints last, as words, peak memory in bytes), run in a process of its own.

    Raises BadInput if it fails.
    """
    place = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    command = [sys.executable, "-c", place + PEAK + code, *map(str, words)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as faults:
        process, seen = subprocess.Popen(command, stdout=out, stderr=faults), 0
        try:
            while process.poll() is None:
                seen = max(seen, memory_of(process.pid))
                time.sleep(1)  # looking costs the process some time, too
        finally:
            process.kill()
        out.seek(0), faults.seek(0)
        if process.returncode:
            last = (faults.read().decode().strip().splitlines() or ["?"])[-1]
            raise BadInput(f"a measured process failed: {last}")
        *found, peak = out.read().decode().splitlines()[-1].split()
    return found, seen or int(peak)


def memory_of(process):
    """Bytes of a process and of those that it started, pages that they share counted once; 0 if unknown."""
    place = Path(f"/proc/{process}")
    try:
        children = (place / "task" / str(process) / "children").read_text().split()
        lines = (place / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    return own + sum(memory_of(int(child)) for child in children)


def run_predict(run, notes, out):
    """(wall seconds, peak memory in bytes) of predict.py in its own process."""
    flags = ["--out", out, "--device", "cpu", "--text-columns", "TEXT", "--row-column", "ROW_ID"]
    began = time.perf_counter()
    _, peak = run_child(PREDICT, run, notes, *flags)
    return time.perf_counter() - began, peak


def volume_rows(run, sizes):
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
                rows = [reading_row(name, count, *measured) for which, measured in read if which == name]
                table.append(min(rows, key=lambda row: row["seconds"]))
            measured = run_child(FIRST_BATCH, notes, run, f"{directory}/cache")
            table.append(reading_row("first batch", count, *measured))
    return table


def reading_row(what, count, printed, peak):
    """A row of reading_rows, from the words that a process printed, and its peak memory."""
    labelled, seconds, cpu, read, tokens = [*printed, None, None][:5]
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
