"""Training in one process and in two of one thread each, as torchrun starts them: tokens/s of an epoch.

Every call is train.py itself, with the arguments of --training; validation and saves are not counted.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.shape import alternating
from cli import BadInput
from files import read_json

LAUNCH = {  # processes: the words before train.py
    1: [sys.executable],
    2: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
}
SCRIPT = Path(__file__).resolve().parent.parent / "train.py"


def trained(processes, words):
    """run.json of base after an epoch on the CPU. Raises BadInput if train.py fails."""
    with tempfile.TemporaryDirectory() as out:
        flags = ["--epochs", "1", "--device", "cpu", "--cache", "none", "--name", "base", "--out", out]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        call = [*LAUNCH[processes], SCRIPT, *words, *flags]
        done = subprocess.run(call, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["?"]  # torchrun's own report comes last
            said = [line for line in lines if line.startswith("error: ")] or lines
            raise BadInput(f"train.py in {processes} processes: {said[-1].removeprefix('error: ')}")
        return read_json(Path(out) / "base" / "run.json")


def process_rows(words, rounds=3):
    """Rows of the comparison, a dict for each number of processes."""
    found = {processes: [] for processes in LAUNCH}
    for processes in alternating(LAUNCH, rounds, "processes"):
        found[processes].append(trained(processes, words))
    return [
        {
            "row": f"{processes} of one thread",
            "processes": processes,
            "tokens_per_s": statistics.median(run["tokens_per_s"] for run in runs),
            "least": min(run["tokens_per_s"] for run in runs),
            "most": max(run["tokens_per_s"] for run in runs),
            "training_loss": runs[0]["history"][-1]["TrainingLoss"],
            "test_loss": runs[0]["test"]["overall"]["Loss"],
            "rounds": rounds,
        }
        for processes, runs in found.items()
    ]


def process_table(rows):
    """(header, cells): tokens/s, how many times one process's, and the losses, which shall be equal."""
    header = ["processes", "tokens/s", "x one", "training loss", "test loss"]
    cells = [
        [
            row["row"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['tokens_per_s'] / rows[0]['tokens_per_s']:.2f}",
            f"{row['training_loss']:.4f}",
            f"{row['test_loss']:.4f}",
        ]
        for row in rows
    ]
    return header, cells
