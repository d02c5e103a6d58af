"""The short form of kills.py: scripts killed at random moments end with the files of an uninterrupted run."""

import subprocess
import sys

from conftest import ROOT, read_csv


def test_killed_scripts_end_with_the_same_files(tmp_path):
    words = ["--only", "symptoms base,predict.py,report", "--seed", "7", "--csv", tmp_path / "kills.csv"]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "kills.py", "--kills", "5", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_csv(tmp_path / "kills.csv")
    assert {row["script"] for row in rows} == {
        "train.py symptoms base",
        "predict.py",
        "predict.py --embeddings",
        "report.py",
    }
    assert sum(int(row["kills"]) for row in rows) >= 5 and {row["unequal"] for row in rows} == {"0"}
