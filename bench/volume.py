"""predict.py over many notes: notes/s end to end (reading, tokenising, writing), and peak memory.

Each number of notes has a process of its own, which tells its peak memory when it ends.
"""

import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cli import BadInput

ROOT = Path(__file__).resolve().parent.parent
WORDS = [
    *("patient", "denies", "reports", "chest", "abdominal", "pain", "fever", "cough", "edema", "bleeding"),
    *("stable", "improved", "daily", "mg", "left", "right", "no", "acute", "severe"),
]
CHILD = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
import predict
from cli import run_script
run_script(lambda: predict.main(sys.argv[1:]))
try:  # of this process alone; ru_maxrss begins with what the parent had
    kilobytes = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except (OSError, StopIteration):
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
print("peak", int(kilobytes * 1024))
"""


def write_random_notes(path, count, words=12):
    """A CSV of synthetic notes of `words` words each."""
    generator = random.Random(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("ROW_ID", "TEXT"))
        writer.writerows((row, " ".join(generator.choices(WORDS, k=words))) for row in range(count))


def run_predict(run, notes, out):
    """(wall seconds, peak memory in bytes) of predict.py in its own process. Raises BadInput if it fails."""
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(ROOT),
        str(run),
        str(notes),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    command += ["--text-columns", "TEXT", "--row-column", "ROW_ID"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise BadInput(f"predict.py failed: {(done.stderr.strip().splitlines() or [done.returncode])[-1]}")
    return took, int(done.stdout.split()[-1])


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
